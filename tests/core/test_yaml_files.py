"""YAML within bounds: python -m pytest tests/core/test_yaml_files.py"""

from pathlib import Path

import pytest

from src.core.command import UserError
from src.core.yaml_files import parse_yaml
from src.system import dvc_lock

LAUGHS = "a0: &a0 [ha, ha]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)  # 9 ** 11 values


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (LAUGHS, "with its aliases it holds more than 100,000 values"),
        (LAUGHS.replace("[ha, ha]", "{x: 1}").replace(" [", "\n  <<: ["), "it holds more than 100,000 values"),
        ("- x\n" * 110_000, "holds more than 100,000 values"),
        ("a: " + "x" * 2**20, "its size is 1,048,579, allowed are 524,288"),
        ("stages: &a [*a]", "the alias *a stands for nothing that ends before it"),
        ("[" * 5000, "more than 50 lists and mappings lie inside each other"),
        ("- " * 500, "more than 50 lists and mappings lie inside each other"),
        ("!!bool x", "not valid YAML"),
        ("!!python/object/apply:os.system [true]", "could not determine a constructor"),
    ],
    ids=["laughs", "merges", "values", "size", "itself", "flow", "block", "odd", "code"],
)
def test_a_file_that_is_no_ordinary_one_is_refused_by_name(text: str, fault: str) -> None:
    with pytest.raises(UserError, match=r"^dvc\.lock is not valid YAML .*restore it with git checkout") as caught:
        parse_yaml(text, "dvc.lock")
    assert fault in str(caught.value)


def test_anchors_of_an_ordinary_file_stay_allowed() -> None:
    text = "base: &base {a: 1, b: &list [1, 2]}\nother:\n  <<: *base\n  a: *list\n"
    assert parse_yaml(text, "params.yaml")["other"] == {"a": [1, 2], "b": [1, 2]}
    assert parse_yaml("", "params.yaml") is None


@pytest.mark.parametrize("name", ["dvc.lock", "dvc.yaml", "data.dvc", "params.yaml"])
def test_lineage_ends_at_an_alias_bomb(tmp_path: Path, name: str) -> None:
    files = {"dvc.lock": "{}", "dvc.yaml": "stages: {s: {cmd: c, deps: [data], params: [p]}}", "params.yaml": "{}"}
    files |= {"dvc.lock": "stages: {s: {cmd: c}}", name: LAUGHS}
    for path, text in files.items():
        (tmp_path / path).write_text(text)
    with pytest.raises(UserError, match=rf"{name} is not valid YAML"):
        dvc_lock.stale(tmp_path)
    if name == "dvc.lock":
        with pytest.raises(UserError, match=r"dvc.lock is not valid YAML"):
            dvc_lock.inputs(tmp_path)
