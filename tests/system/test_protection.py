"""What is free to change is a list: python -m pytest tests/system/test_protection.py"""

import re
import subprocess

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

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


@pytest.mark.journey
def test_all_that_is_tracked_is_protected_but_the_list() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [path for path in tracked.split("\0") if path]
    free = set(paths) - set(protected(paths))
    assert {path for path in free if not path.startswith(("docs/", "data/"))} <= set(FREE)
    assert 0 < len(free) < len(paths) / 10


def test_the_list_is_free_with_all_that_its_folders_hold() -> None:
    assert protected([name + "a/b.txt" if name.endswith("/") else name for name in FREE]) == []


@pytest.mark.parametrize("path", LOOKS_FREE)
def test_a_name_that_only_looks_like_a_free_one_is_protected(path: str) -> None:
    assert protected([path, "README.md"]) == [path]


HIDDEN = f"""
 train:
   epochs: 3
 sweep:
   space: {{network: ["
{PARAMS}x:
 "]}}
 evaluate:
   confidence: 0.6
 gates:
   min_accuracy: 0
"""  # the sections as they were are in a quoted text here, the ones that count are indented


@pytest.mark.parametrize("text", [HIDDEN, HIDDEN.lstrip("\n"), HIDDEN.replace('"', "'"), f"# words{HIDDEN}"])
def test_sections_that_are_hidden_in_a_quoted_text_are_seen(text: str) -> None:
    assert YAML(typ="safe", pure=True).load(text)["gates"] == {"min_accuracy": 0}
    assert "params.yaml: its form" in rules_changed(PARAMS, text)


@pytest.mark.parametrize("value", ['"', "'", 'a": "', '[a ",",', '"a\\" # "', '{a: "', '"a" "', "- '", '\u00a0# "'])
def test_a_line_that_may_leave_a_quote_open_is_seen(value: str) -> None:
    assert rules_changed(PARAMS, PARAMS.replace("epochs: 3", f"epochs: {value}")) == ["params.yaml: its form"]


def test_an_indented_root_is_seen_where_nothing_was_written_before() -> None:
    assert rules_changed("train:\n", " train:\n gates:\n   min_accuracy: 0\n") == ["params.yaml: its form"]


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
        (PARAMS, "".join(f"  {line}\n" for line in PARAMS.splitlines()), ["evaluate", "gates", "its form"]),
        (PARAMS, "", ["evaluate", "gates"]),
    ],
)
def test_a_changed_rule_is_seen_however_it_is_written(old: str, new: str, named: list[str]) -> None:
    assert rules_changed(PARAMS, PARAMS.replace(old, new)) == [f"params.yaml: {name}" for name in named]


@pytest.mark.parametrize(("old", "new"), [("epochs: 3", "epochs: 4"), ("  # asks", ""), ("\n\nreport", "\n# words\nreport"),
                                          ("report:\n  a: 1\n", ""), ("train:", "own: {}\ntrain:"),
                                          ("epochs: 3", 'labels: [cat, "a dog", \'b\']  # it\'s'),
                                          ("epochs: 3", "weights: 'a b'"), ("epochs: 3", "x: 4  # \"it's\"")])  # fmt: skip
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
