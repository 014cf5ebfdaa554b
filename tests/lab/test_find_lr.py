"""The learning-rate finder reads curves rightly and changes nothing: python -m pytest tests/lab/test_find_lr.py"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_params

from src.core.arrays import Split
from src.core.command import UserError
from src.images.prepare_params import image_spec
from src.lab.experiments import find_lr
from src.lab.experiments.find_lr import Round, find, smoothed, suggested
from src.system.params import Params
from src.training.task import Task

RATES = np.geomspace(1e-5, 10, 100)


def curve(fall_at: float, rise_at: float, noise: float = 0.0, seed: int = 0) -> Round:
    """Return losses that fall around one rate and rise around another, as training's do."""
    x = np.log10(RATES)
    losses = 2.3 - 1 / (1 + np.exp(-6 * (x - np.log10(fall_at)))) + 3 / (1 + np.exp(-6 * (x - np.log10(rise_at))))
    return Round(RATES, losses + noise * np.random.default_rng(seed).normal(size=len(RATES)))


@pytest.mark.parametrize(("fall_at", "rise_at"), [(0.01, 1.0), (0.001, 0.1)])
def test_the_steepest_fall_is_found_where_it_is(fall_at: float, rise_at: float) -> None:
    found = suggested([curve(fall_at, rise_at, noise=0.02, seed=seed) for seed in range(5)])
    assert found is not None
    assert found[1] == pytest.approx(fall_at, rel=0.4)
    assert 0.1 * fall_at < found[0] < found[1]


@pytest.fixture(scope="module")
def task() -> Task:
    random = np.random.default_rng(5)
    labels = np.arange(96) % 3
    images = (random.integers(0, 60, (96, 8, 8, 3)) + 150 * np.eye(3)[labels][:, None, None]).astype(np.uint8)
    split = Split(images, labels.astype(np.int64))
    return Task(split, split.subset(np.arange(24)), list("abc"), image_spec((8, 8)), "0")


SMALL = {"train__width": 8, "train__batch_size": 16}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train__augment__mixup": 0.2, "train__layer_decay": 0.7, "train__ema": 0.9},
    ],
)
def test_it_trains_as_params_say_and_twice_alike(task: Task, params: Callable[..., Params], changes: dict) -> None:
    recipe = params(**SMALL | changes).train
    first, second = (find(task, recipe, np.geomspace(1e-4, 1, 30), 2) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.losses, other.losses)
    assert not np.array_equal(first[0].losses, first[1].losses)
    assert min(smoothed(first[0])) < 0.9 * first[0].losses[0]


def test_the_command_writes_a_picture_and_nothing_else(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(tmp_path / "params.yaml", **SMALL)
    before = (tmp_path / "params.yaml").read_bytes()
    monkeypatch.setattr(find_lr.arrays, "load", lambda *_: None)
    monkeypatch.setattr(find_lr, "of", lambda _: task)
    line = ["find-lr", str(tmp_path / "arrays"), str(tmp_path / "out"), "--params", str(tmp_path / "params.yaml")]
    monkeypatch.setattr("sys.argv", [*line, "--rounds", "2", "--steps", "40"])
    torch.manual_seed(0)
    find_lr.main()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["rates.png"]
    assert (tmp_path / "params.yaml").read_bytes() == before
    assert capsys.readouterr().out.splitlines()[-1].startswith("train.learning_rate is 0.1")
    monkeypatch.setattr("sys.argv", [*line, "--steps", "3"])
    with pytest.raises(UserError, match="use --steps of 20 or more"):
        find_lr.main()
