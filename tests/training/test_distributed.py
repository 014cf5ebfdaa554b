"""Several processes train one model, are lost, go on, and never write twice.

python -m pytest tests/training/test_distributed.py

The processes are real and talk over gloo, as they do on machines without a GPU.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import PATIENCE, ROOT, until, write_params

from src.images.prepare import prepare
from src.lab.datasets import digits
from src.system.mlflow_client import connect

RECIPE = {
    "train__epochs": 20,
    "train__width": 8,
    "train__warmup_epochs": 1,
    "train__compile": "off",
    "prepare__image_size": 8,
}

PROBE = """
import os, signal, sys
from pathlib import Path
import torch
from torch import nn
from src.core.command import UserError
from src.system.command_line import run
from src.training.world import joined

def fine(world, folder):
    assert world.sum(torch.tensor([1.0, world.rank])).tolist() == [2.0, 1.0]
    state = {"epoch": 3, "best": {"weights": {"w": torch.arange(4.0)}}, "history": [{"a": 0.1}]} if world.writes else None
    state = world.share(state)
    assert state["best"]["weights"]["w"].tolist() == [0, 1, 2, 3] and state["history"] == [{"a": 0.1}]
    assert world.share(None) is None
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    nn.init.constant_(net[0].weight, float(world.rank))
    net[1].running_mean.fill_(world.rank)
    net[1].running_var.copy_(torch.tensor([0.1, 1 / 3, 1e-8, 3.3e7]))
    before = net[1].running_var.clone()
    world.level(net)
    assert net[1].running_mean.tolist() == [0.5] * 4 and torch.equal(net[1].running_var, before)
    forward = world.wrap(net)
    assert not net[0].weight.any()  # those of rank 0
    torch.manual_seed(world.rank)
    forward(torch.randn(8, 3)).square().sum().backward()
    mean = world.sum(net[0].bias.grad) / world.size
    assert torch.allclose(mean, net[0].bias.grad)
    (folder / f"fine-{world.rank}-of-{world.size}").touch()
    print("said once")

def mistake(world, folder):
    raise UserError("the learning rate is too high")

def lost(world, folder):
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    world.sum(torch.zeros(1))

def main():
    with joined() as world:
        globals()[sys.argv[1]](world, Path(sys.argv[2]))

run("probe", main)
"""


@pytest.fixture
def probe(tmp_path: Path) -> Callable[[str], "subprocess.CompletedProcess[str]"]:
    """Return a function that runs one function of PROBE in two processes."""
    (tmp_path / "probe.py").write_text(PROBE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options: Any = {"env": os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, "timeout": PATIENCE}
    return lambda what: subprocess.run(
        [*torchrun, str(tmp_path / "probe.py"), what, str(tmp_path)], capture_output=True, text=True, **options
    )


@pytest.mark.journey
def test_two_processes_add_share_level_and_average(probe: Callable[[str], Any], tmp_path: Path) -> None:
    done = probe("fine")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.glob("fine-*")) == ["fine-0-of-2", "fine-1-of-2"]
    assert done.stdout.splitlines() == ["said once"]


# The stage, on real digits

# Python runs this first in every process: it notes who opens for writing, makes, moves or removes what in the tests' folder
WATCH = """
import os, sys
watched, log = os.environ.get("WATCHED"), os.environ.get("WATCH_LOG")
if watched and log:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    def note(event, arguments):
        writes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir") or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and str(arguments[0]).startswith(watched):
            os.write(descriptor, f"{os.environ.get('RANK')} {event} {arguments[0]}\\n".encode())
    sys.addaudithook(note)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the arrays of the digits, their passed validation, and the watch."""
    folder = tmp_path_factory.mktemp("prepared")
    digits.write(folder / "data")
    params = write_params(folder / "params.yaml", **RECIPE)
    prepare(folder / "data", folder / "arrays", folder / "m.parquet", params.prepare)
    card = json.loads((folder / "arrays" / "card.json").read_text())
    report = {"passed": True, "findings": [], "manifest_sha256": card["manifest_sha256"]}
    (folder / "validation.json").write_text(json.dumps(report))
    (folder / "watch").mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(WATCH)
    return folder


class Stage:
    """The command of the stage in a folder of its own."""

    def __init__(self, prepared: Path, folder: Path, **changes: Any) -> None:
        folder.mkdir()
        self.folder, self.log = folder, folder.with_name(f"{folder.name}.writes")
        write_params(folder / "params.yaml", **(RECIPE | changes))
        watch = {"PYTHONPATH": str(prepared / "watch"), "WATCHED": str(folder), "WATCH_LOG": str(self.log)}
        self._environment = os.environ | watch
        places = [prepared / "arrays", prepared / "validation.json", folder / "model", folder / "history"]
        self._command = ["-m", "src", "train", *map(str, places)]
        self._command += ["--checkpoints", str(folder / "ck"), "--params", str(folder / "params.yaml")]

    def start(self, *launcher: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, *launcher, *self._command],
            cwd=ROOT,
            env=self._environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self) -> str:
        process = self.start()
        said = process.communicate()[0]
        assert process.returncode == 0, said
        return said

    def saved(self) -> set[int]:
        """Return when the states that lie there were written."""
        return {path.stat().st_mtime_ns for path in (self.folder / "ck").glob("*.pt")}

    @property
    def history(self) -> list[list[float]]:
        lines = (self.folder / "model" / "history.csv").read_text().splitlines()[1:]
        return [[float(cell) for cell in line.split(",")] for line in lines]

    @property
    def writers(self) -> set[str]:
        return {line.split()[0] for line in self.log.read_text().splitlines()}


def ranks(parent: int) -> dict[int, psutil.Process]:
    """Return the processes that train, by rank."""
    found = {}
    for process in psutil.Process(parent).children(recursive=True):
        try:
            found[int(process.environ()["RANK"])] = process
        except (KeyError, psutil.Error):
            continue
    return found


def ended(processes: Iterable[psutil.Process]) -> bool:
    """Tell whether all are gone within a minute."""
    return not psutil.wait_procs(list(processes), timeout=60)[1]


def wait_for(condition: Callable[[], Any], process: "subprocess.Popen[str]") -> Any:
    until(lambda: condition() or process.poll() is not None)
    assert process.poll() is None, process.communicate()[0]
    return condition()


@pytest.mark.journey
@pytest.mark.filterwarnings("ignore")  # deprecations inside MLflow
def test_killed_it_goes_on_and_ends_as_an_unbroken_run(
    prepared: Path, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 and torchrun itself are killed in turn, each some random time after a checkpoint; one run is tracked."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    chance = random.Random(os.environ.get("CHANCE", "1"))
    unbroken = Stage(prepared, tmp_path / "unbroken", train__processes=2)
    assert "2 processes, 32 images of each batch in each" in unbroken.run()
    client = connect()[0]
    (logged,) = client.search_runs([client.get_experiment_by_name("image-classifier").experiment_id])
    assert logged.info.status == "FINISHED"
    assert len(client.get_metric_history(logged.info.run_id, "validation_loss")) == RECIPE["train__epochs"]
    assert json.loads((unbroken.folder / "history" / "throughput.json").read_text())["hardware"]["cores"] >= 1
    broken = Stage(prepared, tmp_path / "broken", train__processes=2)
    for victim in (1, None):
        before, process = broken.saved(), broken.start()
        wait_for(lambda before=before: broken.saved() - before, process)
        workers = ranks(process.pid)
        time.sleep(chance.uniform(0, 0.5))
        (process if victim is None else workers[victim]).kill()
        process.communicate()
        assert process.returncode  # the tests' epochs are so many that it was not done
        assert ended(workers.values()), "an orphan trains on"
    assert "going on after epoch" in broken.run()
    for name in ("model.onnx", "weights.safetensors", "history.csv", "card.json"):
        assert (broken.folder / "model" / name).read_bytes() == (unbroken.folder / "model" / name).read_bytes(), name
    assert [row[0] for row in broken.history] == list(range(1, RECIPE["train__epochs"] + 1))
    assert broken.writers == {"0"}
