"""What is free to change is a list: python -m pytest tests/system/test_protection.py"""

import re
import subprocess

import pytest
from conftest import ROOT

from src.system.protection import FREE, RULES, protected, rules_changed

PARAMS = """train:
  epochs: 3
evaluate:
  confidence: 0.95
gates:
  levels:
    judging: enforce  # asks

report:
  a: 1
"""
LOOKS_FREE = [
    "docs", "docs/../Makefile", "docs//a.md", "docs/./a.md", "/docs/a.md", "data", "data.dvc/x", "README.md/x", "readme.md",
    "src/DATA.py", "src/data.pyx", "src/data/__init__.py", "src/model.py ", "tests/test_yours.py.bak", "a/README.md",
    "params.yaml.orig", "mydocs/a.md", "docs2/a.md", "docs\\a.md", "./README.md", "",
]  # fmt: skip


def test_all_that_is_tracked_is_protected_but_the_list() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [path for path in tracked.split("\0") if path]
    free = set(paths) - set(protected(paths))
    assert {path for path in free if not path.startswith(("docs/", "data/"))} <= set(FREE)
    assert len(free) < 30 < len(paths)


def test_the_list_is_free_with_all_that_its_folders_hold() -> None:
    assert protected([name + "a/b.txt" if name.endswith("/") else name for name in FREE]) == []


@pytest.mark.parametrize("path", LOOKS_FREE)
def test_a_name_that_only_looks_like_a_free_one_is_protected(path: str) -> None:
    assert protected([path, "README.md"]) == [path]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("judging: enforce", "judging: off", ["gates"]),
        ("confidence: 0.95", "confidence: 0.5", ["evaluate"]),
        ("gates:\n", "x:\n", ["gates"]),
        ("report:", "gates: {}\nreport:", ["gates"]),
        ("report:", '"gates": {}\nreport:', ["its form"]),
        ("report:", "? gates\n: {}\nreport:", ["its form"]),
        ("report:", "gates : {}\nreport:", ["its form"]),
        ("report:", "<<: *x\nreport:", ["its form"]),
        ("report:", "---\nreport:", ["its form"]),
        ("report:", "extends: docs/params.yaml\nreport:", ["extends"]),
        ("epochs: 3\n", "epochs: 3\u2028gates: {}\n", ["gates"]),
        (PARAMS, "docs/params.yaml", ["evaluate", "gates", "its form"]),
        (PARAMS, "".join(f"  {line}\n" for line in PARAMS.splitlines()), ["evaluate", "gates"]),
        (PARAMS, "", ["evaluate", "gates"]),
    ],
)
def test_a_changed_rule_is_seen_however_it_is_written(old: str, new: str, named: list[str]) -> None:
    assert rules_changed(PARAMS, PARAMS.replace(old, new)) == [f"params.yaml: {name}" for name in named]


@pytest.mark.parametrize(("old", "new"), [("epochs: 3", "epochs: 4"), ("  # asks", ""), ("\n\nreport", "\n# words\nreport"),
                                          ("report:\n  a: 1\n", ""), ("train:", "own: {}\ntrain:")])  # fmt: skip
def test_all_else_in_params_is_free(old: str, new: str) -> None:
    assert old in PARAMS
    assert rules_changed(PARAMS, PARAMS.replace(old, new)) == []


@pytest.mark.template
def test_code_owners_and_documents_name_the_same_list() -> None:
    owners = re.findall(r"^(?:# )?(\*|/\S+)(?: +(@\S+))?$", (ROOT / ".github/CODEOWNERS").read_text(), re.MULTILINE)
    assert owners == [("*", "@OWNER"), *((f"/{name}", "") for name in FREE)]
    for document in ("README.md", "docs/gates.md"):
        text = " ".join((ROOT / document).read_text().split())
        said = ", ".join(f"`{name}`" for name in FREE if name != "params.yaml")
        assert f"`params.yaml` (but {' and '.join(f'`{name}`' for name in RULES)}), {said}" in text, document
