"""What an edit makes stale, folder by folder: python -m pytest tests/system/test_dvc_lock.py"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from src.system import dvc_lock

ALL = {"prepare", "validate", "train", "evaluate"}
# which stages an edit below src/ makes stale; of a file or folder that is not named here, none
MAKES_STALE = {
    "core": ALL,
    "images": ALL,
    "data.py": {"prepare"},
    "validation": {"validate"},
    "training": {"train", "evaluate"},
    "model.py": {"train", "evaluate"},
    "evaluation": {"evaluate"},
}
SILENT = [
    *(path.relative_to(ROOT).as_posix() for path in (ROOT / "src").glob("*.py") if path.name not in MAKES_STALE),
    *(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "src").glob("*/__init__.py")
        if path.parent.name not in MAKES_STALE
    ),
    *("Makefile", "docs/a.md", "src/core/notes.md", "src/core/__pycache__/a.pyc", "src/corefoo.py"),
]
EDITS = {
    "": SILENT,  # all at once
    **{place: [f"src/{place}" if place.endswith(".py") else f"src/{place}/__init__.py"] for place in MAKES_STALE},
    "core/nested": ["src/core/nested/deep/a.py"],
}
# one process for all edits: DVC takes seconds to start
STATUS = """
import json, sys
from pathlib import Path
from dvc.repo import Repo
for place, names in json.loads(sys.argv[1]).items():
    before = {name: Path(name).read_bytes() for name in names}
    for name in names:
        Path(name).write_bytes(before[name] + b"# edited")
    print(json.dumps([place, list(Repo().status())]))
    for name in names:
        Path(name).write_bytes(before[name])
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a repository with this one's code and wiring, and outputs of which dvc.lock says that they are up to date."""
    folder = tmp_path_factory.mktemp("recorded")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", "reference.json"):
        shutil.copy(ROOT / name, folder / name)
    made = [out for stage in dvc_lock.wiring(ROOT).values() for out in outputs(stage)]
    edited = [name for names in EDITS.values() for name in names]
    for name in [*edited, "data/a/1.png", *(name if Path(name).suffix else f"{name}/part" for name in made)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "src/core/empty").mkdir()
    for command in (
        ["git", "init", "-q"],
        [sys.executable, "-m", "dvc", "init", "-q"],
        [sys.executable, "-m", "dvc", "commit", "-fq"],
    ):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def outputs(stage: dict[str, list[str | dict[str, str]]]) -> list[str]:
    return [next(iter(out)) if isinstance(out, dict) else out for out in [*stage["outs"], *stage.get("metrics", [])]]


@pytest.mark.journey
def test_one_edit_in_each_folder_makes_exactly_its_stages_stale(recorded: Path) -> None:
    assert dvc_lock.stale(recorded) == []  # so each folder's digest is the one that DVC gave it
    command = [sys.executable, "-c", STATUS, json.dumps(EDITS)]
    done = subprocess.run(command, cwd=recorded, check=True, capture_output=True, text=True)
    by_dvc = dict(map(json.loads, done.stdout.splitlines()))
    wiring = dvc_lock.wiring(recorded).items()
    for place, names in EDITS.items():
        folder = place.split("/")[0]
        before = {name: (recorded / name).read_bytes() for name in names}
        for name in names:
            (recorded / name).write_bytes(before[name] + b"# edited")
        named = dvc_lock.stale(recorded)
        for name in names:
            (recorded / name).write_bytes(before[name])
        expected = MAKES_STALE.get(folder, set())
        assert set(by_dvc[place]) == expected, place
        assert named == ([f"src/{folder}"] if expected else []), place
        assert {stage for stage, content in wiring if f"src/{folder}" in content["deps"]} == expected, place


def test_the_kind_of_data_is_filled_in_from_params(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("kind: tables\nprepare: {size: 3}\n")
    stage = "cmd: python -m src prepare ${ prepare.size }\n    deps: [data, 'src/${kind}']\n    outs: ['out/${kind}']"
    (tmp_path / "dvc.yaml").write_text(f"stages:\n  prepare:\n    {stage}\n")
    filled = {"cmd": "python -m src prepare 3", "deps": ["data", "src/tables"], "outs": ["out/tables"]}
    assert dvc_lock.wiring(tmp_path) == {"prepare": filled}
    assert dvc_lock.model_inputs(tmp_path) >= {"data", "src/tables", "dvc.yaml", "params.yaml"}
