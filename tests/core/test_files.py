"""Files are whole or absent, mistakes are one sentence: python -m pytest tests/core/test_files.py"""

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

from src.core import files
from src.core.command import UserError


def test_a_file_appears_whole_and_replaces_the_old(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    files.write_json(path, {"b": 1, "a": "ä"})
    assert path.read_text() == '{\n  "a": "ä",\n  "b": 1\n}\n'
    files.write_json(path, [2])
    assert json.loads(path.read_text()) == [2]
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]


@pytest.mark.parametrize("folder", [True, False])
def test_a_failure_leaves_the_old_and_no_rest(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "x"
    if folder:
        path.mkdir()
        (path / "old").touch()
    else:
        path.write_text("old")

    def fail() -> None:
        with files.replacing(path) as fresh:
            if folder:
                fresh.mkdir()
                (fresh / "new").touch()
            else:
                fresh.write_text("half")
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert (path / "old").exists() if folder else path.read_text() == "old"


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with files.replacing(tmp_path / "x") as fresh:
            fresh.mkdir()
            (fresh / name).touch()
    assert [entry.name for entry in (tmp_path / "x").iterdir()] == ["second"]


def test_a_folder_is_not_replaced_by_a_file_nor_a_file_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a folder, and a file is to be written there"):
        files.write_json(tmp_path / "folder", 1)
    with pytest.raises(UserError, match="is no folder"), files.replacing(tmp_path / "file") as fresh:
        fresh.mkdir()
    assert (tmp_path / "folder" / "mine").exists()
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.journey
def test_what_a_killed_process_left_is_swept_and_a_living_ones_is_not(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    for pid in (dead.pid, os.getppid()):
        (tmp_path / f".x.json.{pid}.abc").mkdir()
    files.write_json(tmp_path / "x.json", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".x.json.{os.getppid()}.abc", "x.json"]


@pytest.mark.parametrize("output", ["data", "data/arrays", ".", "data/../data"])
def test_an_output_that_would_destroy_an_input_is_refused(
    tmp_path: Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="would overwrite the input data: name another place"):
        files.check_outputs([Path("data")], folders=[Path(output)])


def test_numbers_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "x.json", {"a": float("nan")})
    with pytest.raises(ValueError, match="finite"):
        files.rounded(float("inf"))
    assert list(tmp_path.iterdir()) == []


def test_reading_says_which_stage_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing: run `dvc repro train`"):
        files.read_json(tmp_path / "x.json", made_by="train")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        files.read_json(tmp_path / "x.json", made_by="train")
    for content in ("[]", "{}", '{"a": 1}'):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(UserError, match="lacks"):
            files.read_json(tmp_path / "x.json", made_by="train", keys=("a", "b"))
