"""The whole pipeline as its user runs it, with other data, another network, and faults.

python -m pytest tests/test_pipeline.py
"""

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, copy_files, draw_colours, encode, write_params
from ruamel.yaml import YAML

from src.core.files import read_json

ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "MLFLOW_TRACKING_URI": "",
    "DVC_NO_ANALYTICS": "1",
}


def copy_repository(folder: Path) -> Path:
    """Copy what Git knows of into a repository of its own, as a fork would have it."""
    copy_files(ROOT, folder)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    for arguments in (["init", "--quiet"], ["add", "--all", "--force"], ["commit", "--quiet", "--message", "fork"]):
        subprocess.run([*git, *arguments], cwd=folder, check=True)
    return folder


def python(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, **options)


def require_success(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


@pytest.mark.journey
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to a core")
def test_a_run_is_repeated_by_nothing_and_forced_makes_every_output_the_same_on_other_cores(tmp_path: Path) -> None:
    """First on one core, then on all of them, shared with neighbours. .ci/run holds the starter's own recipe to the same.

    The model is small: one that takes several threads sums in another order with each number of them.
    """
    folder, everywhere = copy_repository(tmp_path / "fork"), os.sched_getaffinity(0)
    write_params(folder / "params.yaml", train__epochs=3, train__warmup_epochs=1)
    one_core = partial(os.sched_setaffinity, 0, {min(everywhere)})
    first = require_success(python(folder, "src", "reproduce", preexec_fn=one_core))
    for word in ("accuracy", "logistic regression", "out/evaluation/"):
        assert word in first
    lock, metrics = ((folder / name).read_bytes() for name in ("dvc.lock", "metrics.json"))
    assert lock != (ROOT / "dvc.lock").read_bytes()
    second = require_success(python(folder, "src", "reproduce"))
    assert "Nothing changed since the last run." in second
    assert "Running stage" not in second
    neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in everywhere]
    try:
        require_success(python(folder, "dvc", "repro", "--force", "--no-run-cache"))
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()
    assert (folder / "dvc.lock").read_bytes() == lock  # which has the digest of every output
    assert (folder / "metrics.json").read_bytes() == metrics


@pytest.mark.journey
def test_a_plain_pull_of_a_fresh_clone_brings_data_and_model(tmp_path: Path) -> None:
    folder = copy_repository(tmp_path / "fork")
    require_success(python(folder, "dvc", "pull"))
    assert (folder / "data" / "digits.parquet").exists()
    evaluate = YAML(typ="safe").load((folder / "dvc.yaml").read_text())["stages"]["evaluate"]["cmd"].split()
    shipped = read_json(folder / "metrics.json", "")
    require_success(python(folder, *evaluate[2:]))
    assert read_json(folder / "metrics.json", "")["accuracy"] == pytest.approx(shipped["accuracy"], abs=0.003)


@pytest.mark.journey
def test_changes_of_data_that_dvc_does_not_know_are_used_not_lost(tmp_path: Path) -> None:
    folder = copy_repository(tmp_path / "fork")
    write_params(folder / "params.yaml", train__epochs=1)
    require_success(python(folder, "dvc", "pull", "data.dvc"))
    draw_colours(folder / "data", 30, np.random.default_rng(1), side=8)
    said = require_success(python(folder, "src", "reproduce"))
    assert "data/ differs from data.dvc: it is used as it is" in said
    assert "red" in read_json(folder / "metrics.json", "")["per_class"]
    assert len(list((folder / "data" / "red").iterdir())) == 30
    (folder / "data" / "red" / "new.png").write_bytes(encode(np.zeros((8, 8, 3), np.uint8)))
    refused = python(folder, "src", "data-cifar10", "data")
    assert refused.returncode == 1
    assert "data-cifar10: data/ holds files that DVC has no copy of" in refused.stderr
    assert (folder / "data" / "red" / "new.png").exists()


# Bad inputs: one sentence, an exit status, nothing half-written


def folders(**counts: int) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        random = np.random.default_rng(1)
        for label, count in counts.items():
            (root / label).mkdir()
            for i in range(count):
                (root / label / f"{i}.png").write_bytes(encode(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)))

    return make


BAD_DATA = {
    "one class": (folders(cat=30), "1 class found (cat); a classifier needs at least 2"),
    "a class of one image": (folders(cat=60, dog=1), "dog has 0 in"),
    "mostly corrupt": (
        lambda root: (folders(cat=20, dog=20)(root), [(root / "cat" / f"b{i}.png").write_text("x") for i in range(20)]),
        "of the files are no readable image, over validate.max_corrupt",
    ),
}


@pytest.mark.journey
@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_stop_with_one_sentence(tmp_path: Path, case: str) -> None:
    make, words = BAD_DATA[case]
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")
    write_params(tmp_path / "params.yaml")
    (tmp_path / "reference.json").write_text("{}")
    stages = [
        ("src", "prepare", "data", "arrays", "m.parquet"),
        ("src", "validate", "arrays", "m.parquet", "reference.json", "v.json", "profile"),
        ("src", "train", "arrays", "v.json", "model", "history", "--checkpoints", "ck"),
    ]
    said, codes = "", []
    for module, *arguments in stages:
        environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", module, *arguments]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        codes.append(result.returncode)
        said += result.stdout + result.stderr
        if result.returncode and module != "validate":
            break  # after a failed validation, training is tried all the same: it must refuse
    assert words in said
    assert "Traceback" not in said
    assert codes[-1] == 1
    assert not (tmp_path / "model").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.journey
def test_a_disk_that_is_full_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    """A limit on the size of a file stands in for the disk: each stage writes one that is larger."""
    folder = copy_repository(tmp_path / "fork")
    write_params(folder / "params.yaml", train__epochs=1)
    require_success(python(folder, "dvc", "pull", "data.dvc"))
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (10_000, 10_000))
    for stage, wiring in YAML(typ="safe").load((folder / "dvc.yaml").read_text())["stages"].items():
        before = outputs(folder)
        command = wiring["cmd"].split()[2:]
        result = python(folder, *command, preexec_fn=limit)
        assert result.returncode == 1, result.stderr
        assert re.search(rf"^{stage}: a file would grow past this system's limit: raise it", result.stderr, re.MULTILINE)
        assert "Traceback" not in result.stderr
        assert outputs(folder) == before
        require_success(python(folder, *command))


def outputs(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "out").rglob("*") if "checkpoints" not in path.parts)
