"""After a kill the next run goes on, and two runs do not meet: python -m pytest tests/system/test_dvc_locks.py"""

import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from conftest import ROOT, write_params
from ruamel.yaml import YAML

from src.system import dvc_locks


@pytest.fixture
def listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which DVC keeps who reads and writes what."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    return tmp_path / ".dvc/tmp/rwlock"


@pytest.mark.parametrize("content", ["", '{"write": {"/a": {"pid": 1', "[]", '{"write": {"/a": {"cmd": "dvc repro"}}}'])
def test_a_spoilt_list_is_removed(listing: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    listing.write_text(content)
    dvc_locks.mend()
    assert not listing.exists()
    assert "rwlock was spoilt" in capsys.readouterr().out


def test_who_no_longer_lives_is_removed_and_who_does_stays(listing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of one is another program's by now."""
    commands = {2: ["/usr/bin/python", "-m", "dvc", "repro"], 3: ["/usr/bin/vim"]}

    def process(number: int) -> SimpleNamespace:
        if number not in commands:
            raise psutil.NoSuchProcess(number)
        return SimpleNamespace(cmdline=lambda: commands[number])

    monkeypatch.setattr(psutil, "Process", process)
    dead, alive, another = ({"pid": number, "cmd": "dvc repro"} for number in (1, 2, 3))
    listing.write_text(json.dumps({"write": {"/a": dead, "/b": alive}, "read": {"/c": [dead, alive], "/d": [another]}}))
    dvc_locks.mend()
    assert json.loads(listing.read_text()) == {"write": {"/b": alive}, "read": {"/c": [alive]}}


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """Start `make reproduce` in a small repository whose stage waits for a line of a pipe."""
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x").write_text("x")
    write_params(tmp_path / "params.yaml")
    (tmp_path / "stage.py").write_text("open('pipe').read()")
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "dvc.yaml").open("w") as file:
        YAML().dump({"stages": {"train": {"cmd": "python stage.py", "deps": ["stage.py"]}}}, file)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_SITE_CACHE_DIR": str(tmp_path / "site")}
    command = [sys.executable, "-m", "src", "reproduce"]
    return lambda: subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.journey
def test_a_second_run_names_the_first_and_waits_for_it(start: Any, tmp_path: Path) -> None:
    (tmp_path / ".dvc/tmp/rwlock").touch()  # as a kill left it
    first = start()
    with (tmp_path / "pipe").open("w"):  # returns once the first one's stage reads
        second = start()
        assert f"(process {first.pid}): waiting for it" in second.stdout.readline()
        assert second.poll() is None
    assert "rwlock was spoilt" in first.communicate()[0]
    said = second.communicate()[0]
    assert "Running stage" not in said
    assert "busy" not in said
