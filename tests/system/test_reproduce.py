"""A run tells what it did, or what failed and why: python -m pytest tests/system/test_reproduce.py"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT, write_params
from ruamel.yaml import YAML

from src.core.command import UserError
from src.system import reproduce

Run = Callable[..., tuple[subprocess.CompletedProcess[str], dict[str, Any]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in a small repository with one stage, `train`, that does what it is told."""
    environment = {
        **os.environ,
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(tmp_path / "site"),
        "PYTHONPATH": str(ROOT),
    }
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    monkeypatch.delenv("GITHUB_EVENT_NAME", raising=False)
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x").write_text("x")

    def go(stage: str, *arguments: str, **params: Any) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
        (tmp_path / "stage.py").write_text(stage)
        with (tmp_path / "dvc.yaml").open("w") as file:
            YAML().dump({"stages": {"train": {"cmd": "python stage.py", "deps": ["stage.py"], "params": ["train"]}}}, file)
        write_params(tmp_path / "params.yaml", **params)
        command = [sys.executable, "-m", "src", "reproduce", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert "Traceback" not in done.stderr
        return done, json.loads((tmp_path / "out/run.json").read_text())

    return go


@pytest.mark.journey
def test_a_failed_stage_is_named_with_its_last_words(run: Run) -> None:
    done, told = run("import sys\nprint('\\n'.join(map(str, range(99))))\nsys.exit('train: the disk is full')")
    assert done.returncode == 1
    assert told["failed"] == "train"
    assert "train: the disk is full" in told["said"]
    assert "98" in told["said"]
    assert len(told["said"].splitlines()) <= 60
    assert "train: the disk is full" in done.stdout  # shown as it happens, too
    assert set(told["hardware"]) == {"accelerator", "cores", "machine", "memory_gib", "processor"}
    assert told["seconds"]["train"] > 0


@pytest.mark.journey
def test_a_run_ends_with_its_budget_of_minutes_and_takes_its_children_along(run: Run, tmp_path: Path) -> None:
    note = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))"
    done, told = run(f"import os, time\n{note}\nprint('on it', flush=True)\ntime.sleep(600)", "--minutes", "0.2")
    assert done.returncode == 1
    assert told["failed"] == "train"
    assert told["said"].splitlines()[-1] == "stopped: the budget of 0.2 minutes ran out"
    assert "Lower train.epochs, or name a faster machine in the variable TRAIN_RUNNER" in done.stderr
    pid = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Reproduce without DVC, with a pipeline that fails; return run.json."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_EVENT_NAME", raising=False)
    monkeypatch.setattr(reproduce, "_pull", lambda told: None)
    monkeypatch.setattr(reproduce, "watch_dvc", lambda *_, **__: 3)

    def go(epochs: int | None = None, **params: Any) -> dict[str, Any]:
        if params or epochs:
            write_params(tmp_path / "params.yaml", **params)
        with pytest.raises(UserError):
            reproduce.reproduce(pull=False, epochs=epochs, minutes=None, journal_path=tmp_path / "run.json")
        return json.loads((tmp_path / "run.json").read_text())  # type: ignore[no-any-return]

    return go


def test_a_small_budget_lowers_the_epochs_and_says_so(budget: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    assert budget(4, train__epochs=9)["budget"] == {"asked": 9, "epochs": 4}
    train = YAML(typ="safe").load((tmp_path / "params.yaml").read_text())["train"]
    assert (train["epochs"], train["warmup_epochs"]) == (4, 1)
    assert "# of first weights, shuffling and augmentation" in (tmp_path / "params.yaml").read_text()
    assert budget(20, train__epochs=9)["budget"] is None
    assert budget(20, train__epochs=9, train__folds=5, train__repeats=3)["budget"] == {"asked": 9, "epochs": 9}
    train = YAML(typ="safe").load((tmp_path / "params.yaml").read_text())["train"]
    assert (train["epochs"], train["folds"], train["repeats"]) == (9, 0, 1)


def test_a_merge_queue_trains_nothing(budget: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_EVENT_NAME", "merge_group")
    monkeypatch.setattr(reproduce.dvc_lock, "stale", lambda _: ["src/model.py"])
    monkeypatch.setattr(reproduce, "watch_dvc", None)
    told = budget(9)
    assert told["failed"] == "review"
    assert "another model than the one that was reviewed (src/model.py differ from dvc.lock)" in told["said"]


@pytest.mark.journey
def test_a_password_in_an_address_is_in_no_file_of_a_run(run: Run, tmp_path: Path) -> None:
    """run.json is an artifact, and its last lines are posted: neither an own message nor a raw one tells the password."""
    word = "hun" + "ter2"
    stage = """
import sys
from src.system.mlflow_client import connect
address = "http://user:%s@127.0.0.1:1/" % ("hun" + "ter2")
try:
    connect(address)
except Exception as error:
    assert "hun" + "ter2" not in str(error)
    print(error)
sys.exit(f"train: {address} is down")
"""
    _, told = run(stage)
    assert "MLflow at http://127.0.0.1:1 does not answer" in told["said"]
    assert "train: http://127.0.0.1:1/ is down" in told["said"]
    held = [path for path in tmp_path.rglob("*") if path.is_file() and word.encode() in path.read_bytes()]
    assert held == []


def test_data_that_were_never_pushed_are_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "has_unrecorded_changes", lambda _: False)
    monkeypatch.setattr(reproduce, "dvc", lambda *_: subprocess.CompletedProcess([], 1))
    monkeypatch.setattr(reproduce, "bring", lambda *_: "team: it does not hold all of it")
    told: dict[str, Any] = {}
    with pytest.raises(UserError, match=r"in no store that this machine reaches \(team: it does not hold"):
        reproduce._pull(told)
    assert told["failed"] == "data"
