"""Folds and seeds: dealt as scikit-learn deals, resumed, the same however many run at once, judged and told.

python -m pytest tests/training/test_folds.py
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw_colours, write_params
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_train import QUICK, pass_validation

from src.core import arrays, results, significance
from src.core.command import UserError
from src.core.files import write_json
from src.core.inference import Model
from src.core.manifest import read_manifest
from src.images.prepare import prepare
from src.training import folds, series
from src.training.series import Job, Setting
from src.training.train import train
from src.training.world import World

CLASSES = ["cat", "dog", "owl", "emu"]


# Dealing


@st.composite
def labelled(draw: Any) -> tuple[np.ndarray, int, int]:
    """Labels with at least k images of each class, k, and a seed."""
    k = draw(st.integers(2, 6))
    counts = draw(st.lists(st.integers(k, 40), min_size=2, max_size=4))
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(draw(st.integers(0, 99))).permutation(labels), k, draw(st.integers(0, 2**32 - 1))


@given(labelled())
@settings(max_examples=30, deadline=None)
def test_folds_hold_every_image_out_once_and_share_the_classes_evenly(case: tuple[np.ndarray, int, int]) -> None:
    labels, k, seed = case
    dealt = folds.split(labels, [None] * len(labels), k, seed, CLASSES)
    assert all(sorted([*training, *held]) == list(range(len(labels))) for training, held in dealt)
    assert sorted(np.concatenate([held for _, held in dealt])) == list(range(len(labels)))
    counts = np.array([np.bincount(labels[held], minlength=len(CLASSES)) for _, held in dealt])
    assert (np.ptp(counts, axis=0) <= 1).all()


@given(labelled(), st.integers(6, 30), st.booleans())
@settings(max_examples=30, deadline=None)
def test_no_group_is_on_two_sides(case: tuple[np.ndarray, int, int], size: int, some_alone: bool) -> None:
    labels, k, seed = case
    drawn = np.random.default_rng(size).integers(0, size, len(labels))
    groups = [None if some_alone and number % 3 == 0 else f"g{number:02d}" for number in drawn]
    try:
        dealt = folds.split(labels, groups, k, seed, CLASSES)
    except UserError:  # some draws have too few groups
        return
    for training, held in dealt:
        sides = ({groups[row] for row in rows} - {None} for rows in (training, held))
        assert not set.intersection(*sides)
        assert sorted([*training, *held]) == list(range(len(labels)))
    assert sorted(np.concatenate([held for _, held in dealt])) == list(range(len(labels)))


# Training


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    draw_colours(folder / "data", 30, np.random.default_rng(7))
    params = write_params(folder / "params.yaml", **QUICK)
    prepare(folder / "data", folder / "arrays", folder / "m.parquet", params.prepare)
    pass_validation(folder)
    return folder


BOTH = {"train__folds": 3, "train__repeats": 2}


@pytest.fixture(scope="module")
def run(prepared: Path) -> Callable[..., Path]:
    def go(name: str, **changes: Any) -> Path:
        params = write_params(prepared / "params.yaml", **(QUICK | {"train__epochs": 1} | changes)).train
        places = (prepared / part for part in ("arrays", "validation.json", name, f"{name}-history", f"{name}-ck"))
        train(*places, params, manifest=prepared / "m.parquet")
        return prepared / name

    return go


@pytest.fixture(scope="module")
def whole(run: Callable[..., Path]) -> Path:
    """Model, folds and seeds, trained without a break."""
    return run("whole", **BOTH)


def test_the_model_that_ships_is_the_same_with_folds_and_seeds_or_without(
    run: Callable[..., Path], whole: Path, prepared: Path
) -> None:
    alone = run("alone")
    more = {path.name for path in whole.iterdir()} - {path.name for path in alone.iterdir()}
    assert more == {"folds.json", "repeats.json"}
    for path in alone.iterdir():
        assert path.read_bytes() == (whole / path.name).read_bytes()
    assert sorted(path.name for path in (prepared / "whole-ck").glob("*") if path.name != "lock") == []
    made = json.loads((whole / "folds.json").read_text())
    of_first = ["fold 1 of 3", "fold 2 of 3", "fold 3 of 3"]
    assert [one["name"] for one in made["runs"]] == [*of_first, *(f"{name}, seed 2" for name in of_first)]
    images = len(arrays.load(prepared / "arrays").split("train").labels)
    assert sum(one["examples"] for one in made["runs"]) == 2 * images
    assert all(one["examples"] + one["training_examples"] == images for one in made["runs"])
    seeds = json.loads((whole / "repeats.json").read_text())["runs"]
    assert [one["seed"] for one in seeds] == [1, 2]
    card = json.loads((alone / "card.json").read_text())
    assert seeds[0]["accuracy"] == pytest.approx(card["validation"]["accuracy"], abs=0.11)  # bf16 there, fp32 here


def test_every_answer_is_kept_under_its_example(whole: Path, prepared: Path) -> None:
    """The marks add up to the accuracies, fold by fold; those of the test split are the shipped model's own."""
    made = {kind: json.loads((whole / f"{kind}.json").read_text()) for kind in ("folds", "repeats")}
    rows = read_manifest(prepared / "m.parquet").to_pylist()
    places = {f"{row['digest']} {row['label']}": row["split"] for row in rows}
    for kind, split in (("folds", "train"), ("repeats", "test")):
        kept = made[kind]["answers"]
        assert sorted(kept["examples"]) == sorted(example for example, place in places.items() if place == split)
        assert set(kept["right"]) == {"1", "2"}
        assert {len(marks) for marks in kept["right"].values()} == {len(kept["examples"])}
        assert not any("right" in one for one in made[kind]["runs"])
    for seed, marks in made["folds"]["answers"]["right"].items():
        right = sum(one["accuracy"] * one["examples"] for one in made["folds"]["runs"] if str(one["seed"]) == seed)
        assert marks.count("1") == pytest.approx(right, abs=0.01)
    test = arrays.load(prepared / "arrays").split("test")
    answers = Model(whole).probabilities(test.examples).argmax(axis=1)
    assert made["repeats"]["answers"]["right"]["1"] == "".join("01"[right] for right in (answers == test.labels).astype(int))


def test_a_killed_series_does_not_train_again_what_was_finished(
    run: Callable[..., Path], whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, begun = series.train, []

    def killed(setting: Setting, one: Job, world: World | None = None) -> dict[str, Any]:
        begun.append(one.name)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return real(setting, one, world)

    monkeypatch.setattr(series, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        run("broken", **BOTH)
    assert "7 further trainings for folds and seeds" in capsys.readouterr().out
    broken = run("broken", **BOTH)
    said = capsys.readouterr().out
    assert "5 further trainings for folds and seeds, 2 were done before" in said
    assert "going on after epoch 1" in said  # the model itself, too
    assert "folds: deviation" in said
    of_second = [f"fold {number} of 3, seed 2" for number in (1, 2, 3)]
    assert begun == ["fold 1 of 3", "fold 2 of 3", "fold 3 of 3", "fold 3 of 3", *of_second, "seed 2"]
    for path in whole.iterdir():
        assert (broken / path.name).read_bytes() == path.read_bytes()


def test_intervals_are_those_of_the_textbook() -> None:
    values = np.array([0.90, 0.93, 0.91, 0.95, 0.92])
    plain = significance.spread(values, 0, 0.95)
    low, high = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
    assert (plain.low, plain.high) == (pytest.approx(low), pytest.approx(high))
    corrected = significance.spread(values, 0.25, 0.95)
    assert (corrected.high - corrected.low) / (high - low) == pytest.approx(((1 / 5 + 1 / 4) / (1 / 5)) ** 0.5)


@pytest.fixture
def trained(tmp_path: Path) -> Iterator[Path]:
    runs = [
        {"name": f"fold {i} of 3", "seed": 1, "epoch": 2, "examples": 10, "training_examples": 20, "macro_f1": 0.9,
         "accuracy": 0.9 + i / 100, "log_loss": 0.2, "ece": 0.01}
        for i in range(1, 4)
    ]  # fmt: skip
    write_json(tmp_path / "folds.json", {"runs": runs, "split_sha256": "a", "grouped": False})
    write_json(tmp_path / "repeats.json", {"runs": runs, "split_sha256": "b"})
    return tmp_path


def test_metrics_hold_mean_deviation_and_interval(trained: Path, tmp_path: Path) -> None:
    found = results.trainings(trained, 0.95)
    assert found["folds"]["overlap"] == 0.5
    assert found["repeats"]["overlap"] == 0
    assert found["folds"]["accuracy"]["mean"] == pytest.approx(0.92)
    assert found["folds"]["accuracy"]["deviation"] == pytest.approx(0.01)
    widths = [found[kind]["accuracy"]["high"] - found[kind]["accuracy"]["low"] for kind in ("folds", "repeats")]
    assert widths[0] / widths[1] == pytest.approx(((1 / 3 + 0.5) / (1 / 3)) ** 0.5, rel=1e-4)
    assert results.trainings(tmp_path / "nothing", 0.95) == {}
