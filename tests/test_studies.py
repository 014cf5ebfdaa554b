"""Studies tell what data and augmentations buy: python -m pytest tests/test_studies.py"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, write_params

from src.command import UserError
from src.experiments import (
    ablation,
    arrivals,
    cost,
    crossed,
    learning_curve,
    parts,
    staleness,
    trainings,
    variants,
    verdicts,
)
from src.experiments.arrivals import Period
from src.experiments.cost import Cost
from src.experiments.crossed import Effect
from src.experiments.trainings import Answers
from src.files import sha256
from src.params import Params
from src.training.loop import fit

QUICK = {
    "train__epochs": 3,
    "train__width": 4,
    "train__batch_size": 32,
    "train__warmup_epochs": 0.5,
    "train__label_smoothing": 0,
}
OFF = {f"train__augment__{name}": 0 for name in ("crop", "rotate", "scale")}


def write_arrays(folder: Path, manifest: str = "m", each: tuple[int, int, int] = (160, 60, 60)) -> Path:
    """Prepared arrays of two classes, a bright left or a bright right half: mirroring an image destroys its label."""
    random = np.random.default_rng(3)
    folder.mkdir(parents=True)
    for split, count in zip(("train", "validation", "test"), each, strict=True):
        labels = np.arange(count) % 2
        images = random.integers(0, 60, (count, 8, 8, 1))
        images[labels == 0, :, :4] += 120
        images[labels == 1, :, 4:] += 120
        np.save(folder / f"{split}.images.npy", images.astype(np.uint8))
        np.save(folder / f"{split}.labels.npy", labels.astype(np.int64))
    card = {"classes": ["left", "right"], "size": [8, 8], "channels": 1, "fit": "crop", "manifest_sha256": manifest}
    (folder / "card.json").write_text(json.dumps(card))
    return folder


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    return write_arrays(tmp_path / "arrays")


@pytest.fixture
def quick(params: Callable[..., Params]) -> Params:
    return params(**QUICK, **OFF)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The trainings of a study that are really done."""
    done: list[str] = []

    def counting(*arguments: Any, **options: Any) -> Any:
        done.append(options["tags"]["training"])
        return fit(*arguments, **options)

    monkeypatch.setattr(trainings, "fit", counting)
    return done


# ---------------------------------------------------------------------------------------------------------------------
# Seeds and images crossed
# ---------------------------------------------------------------------------------------------------------------------


def test_an_interval_over_seeds_and_images_covers_the_truth_as_often_as_it_says() -> None:
    random, covered = np.random.default_rng(0), 0
    for _ in range(400):
        seeds, images = random.normal(0, 0.1, (4, 1)), random.normal(0, 0.5, (1, 60))
        found = crossed.effect(0.3 + seeds + images + random.normal(0, 0.5, (4, 60)), 0.95)
        covered += found.low <= 0.3 <= found.high
    assert 0.92 <= covered / 400 <= 1


def test_what_differs_by_seed_is_not_taken_for_certain_however_many_images_there_are() -> None:
    values = np.repeat(np.array([[0.1], [-0.05], [0.2]]), 5000, axis=1)
    found = crossed.effect(values, 0.95)
    assert found.low < 0 < found.high


def test_no_difference_at_all_has_an_interval_of_nothing_and_no_p_value() -> None:
    assert crossed.effect(np.zeros((3, 50)), 0.95) == Effect(0, 0, 0, 1)
    assert crossed.effect(-np.ones((3, 50)), 0.95) == Effect(-1, -1, -1, 0)


# ---------------------------------------------------------------------------------------------------------------------
# The learning curve
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("exponent", "floor"), [(0.35, 0.02), (0.5, 0.0), (1.0, 0.05)])
def test_the_fitted_law_recovers_the_exponent_and_the_floor(exponent: float, floor: float) -> None:
    images = [125, 250, 500, 1000, 2000]
    law = learning_curve.fitted(images, [2 * count**-exponent + floor for count in images])
    assert law.exponent == pytest.approx(exponent, rel=0.05)
    assert law.floor == pytest.approx(floor, abs=0.01)
    assert law.error(4000) == pytest.approx(2 * 4000**-exponent + floor, abs=0.004)


def test_a_curve_that_is_flat_or_rises_promises_nothing() -> None:
    for errors in ([0.1, 0.1, 0.1], [0.1, 0.11, 0.12]):
        law = learning_curve.fitted([100, 200, 400], errors)
        assert law.error(400) - law.error(800) == pytest.approx(0, abs=1e-6)


def test_what_more_data_buy_lies_in_its_interval(random: np.random.Generator) -> None:
    images = [125, 250, 500, 1000]
    hardness = random.uniform(0, 1, 800)  # a harder image needs more data
    values = [np.stack([(hardness < 3 * count**-0.5).astype(float)] * 2) for count in images]
    law, (more,) = learning_curve.gains(images, values, [1000], 0.95)
    assert more.low <= law.error(1000) - law.error(2000) <= more.high
    assert more.low <= 3 * (1000**-0.5 - 2000**-0.5) <= more.high


def test_a_share_keeps_the_classes_in_proportion_and_each_seed_draws_its_own() -> None:
    labels = np.repeat([0, 1, 2], [100, 200, 300])
    first, other = (learning_curve.subset(labels, 0.25, seed) for seed in (1, 2))
    assert np.bincount(labels[first]).tolist() == [25, 50, 75]
    assert first.tolist() != other.tolist()
    assert learning_curve.subset(labels, 1.0, 1).tolist() == list(range(600))
    assert len(learning_curve.subset(np.array([0, 0, 0, 1]), 0.5, 1)) == 2  # one image of a class cannot be cut


# ---------------------------------------------------------------------------------------------------------------------
# Periods and parts
# ---------------------------------------------------------------------------------------------------------------------


def day(year: int, month: int, number: int) -> int:
    return int(datetime(year, month, number, tzinfo=UTC).timestamp())


def test_periods_are_months_and_the_last_one_stays_the_last() -> None:
    dates = np.array([day(2026, month, number) for month in range(1, 11) for number in (3, 20)])
    found = arrivals.periods(dates, 12)
    assert [period.name for period in found] == [f"2026-{month:02d}" for month in range(1, 11)]
    assert found[0] == Period("2026-01", day(2026, 1, 20))
    few = arrivals.periods(dates, 4)
    assert len(few) == 4
    assert few[-1] == found[-1]
    within = arrivals.periods(np.array([day(2026, 1, 1), day(2026, 1, 2)]), 6)
    assert [period.name for period in within] == ["2026-01-01 00:00:00", "2026-01-02 00:00:00"]


def test_the_rate_by_the_month_leaves_out_the_first_delivery_and_needs_a_week() -> None:
    dates = np.array([day(2026, 1, 1)] * 500 + [day(2026, 2, 15)] * 60 + [day(2026, 3, 2)] * 40)
    assert arrivals.monthly(dates) == pytest.approx(50, rel=0.03)
    assert arrivals.monthly(np.array([day(2026, 1, 1), day(2026, 1, 5)])) is None


def test_parts_of_the_data_are_those_until_those_after_and_shares() -> None:
    came = np.repeat([1, 2, 3], 20)
    found = [Period("a", 1), Period("b", 2), Period("c", 3)]
    made, small = parts.parts(np.arange(60) % 2, came, found, [1, 2])
    sizes = {(part.kind, part.name): part.images for part in made}
    assert {
        ("until", "a"): 20,
        ("until", "c"): 60,
        ("after", "a"): 40,
        ("after", "b"): 20,
        ("share", "0.25"): 15,
    }.items() <= (sizes.items())
    assert small == []
    _, small = parts.parts(np.arange(60) % 10, came, found[-1:], [1])
    assert any("share 0.125 has 8 training images, too few" in sentence for sentence in small)
    with pytest.raises(UserError, match="3 training images, too few for a study"):
        parts.parts(np.array([0, 1, 2]), np.ones(3, int), found[-1:], [1])


# ---------------------------------------------------------------------------------------------------------------------
# Variants and verdicts
# ---------------------------------------------------------------------------------------------------------------------


def test_what_is_on_is_taken_out_and_what_is_off_is_put_in(params: Callable[..., Params]) -> None:
    train = params().train
    made = {variant.name: variant for variant in variants.variants(train, (8, 8), [], also=False)}
    assert made["crop"].on
    assert made["crop"].params.augment.crop == 0
    assert made["crop"].title == "without crop"
    assert not made["flip"].on
    assert made["flip"].params.augment.flip is True
    assert made["flip"].params.augment.crop == train.augment.crop
    assert set(made) == set(type(train.augment).model_fields), "an augmentation has no suggested strength"
    also = variants.variants(train, (8, 8), ["erase=0.5"], also=True)
    assert also[0].params.augment.erase == 0.5
    assert {variant.name for variant in also[1:]} == {
        "label_smoothing",
        "ema",
        "warmup_epochs",
        "gradient_clip",
        "weight_decay",
    }


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("blur", "--only names 'blur', which cannot be switched; expected one of crop"),
        ("erase=much", "--only erase=much: expected a float"),
        ("erase=7", "--only erase=7: the strength is out of range"),
        ("crop=3", "--only crop=3: it is on in the recipe"),
    ],
)
def test_a_wrong_name_or_strength_is_told(params: Callable[..., Params], item: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        variants.variants(params().train, (8, 8), [item], also=False)


def answers(right: np.ndarray) -> list[Answers]:
    return [Answers(row, np.where(row, 0.1, 2.0)) for row in right]


def test_verdicts_say_what_the_augmentation_does_whichever_way_it_was_switched(
    params: Callable[..., Params], random: np.random.Generator
) -> None:
    good, poor = random.random((3, 300)) < 0.95, random.random((3, 300)) < 0.7
    tried = variants.variants(params().train, (8, 8), ["crop", "flip", "mixup"], also=False)
    costs = {"crop": Cost(0.5, 0.4, 0.6), "flip": Cost(1.0, 0.9, 1.1), "mixup": Cost(1.2, 1.1, 1.3)}
    found = verdicts.judge(tried, answers(good), [answers(poor), answers(poor), answers(good)], costs, 0.95)
    assert [finding.verdict for finding in found] == [
        "earns its cost",
        "hurts",
        "no difference seen, costs 20% of the time",
    ]
    assert found[0].time == Cost(2.0, 1 / 0.6, 2.5)  # with it over without it
    assert verdicts.sentence(found) == "Earns its cost: crop. Hurts: flip. No difference seen: mixup."


# ---------------------------------------------------------------------------------------------------------------------
# Whole studies
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_augmentation_that_destroys_labels_hurts_and_one_that_does_nothing_shows_nothing(
    halves: Path, tmp_path: Path, quick: Params, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "_TURNS", 1)
    out = tmp_path / "ablation"
    quick = quick.model_copy(update={"train": trainings.changed(quick.train, epochs=6)})
    # a network that has both sides under one label is right by chance: how often hangs on the seed
    found = ablation.ablate(halves, out, quick, 6, ["flip", "brightness=0.000001"], also=False)
    assert found[0].verdict == "hurts"
    assert found[0].accuracy.high < 0
    assert found[1].verdict.startswith("no difference seen")
    page = (out / "ablation.md").read_text()
    assert "Hurts: flip." in page
    assert "no change of the recipe is surely better" in page
    assert (out / "ablation.png").stat().st_size > 5000
    assert len((out / "ablation.csv").read_text().splitlines()) == 3
    assert len(counted) == 18
    # the recipe that has it on is told to switch it off, and what is known is not trained again
    wrong = quick.model_copy(update={"train": trainings.changed(quick.train, augment__flip=True)})
    ablation.ablate(halves, out, wrong, 6, ["flip"], also=False)
    assert len(counted) == 18
    assert "augment:\n    flip: false" in (out / "ablation.md").read_text()


def test_a_study_that_was_stopped_goes_on_and_a_damaged_result_is_made_again(
    halves: Path, tmp_path: Path, quick: Params, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = trainings.changed(quick.train, epochs=1)
    task = ablation.of(staleness.arrays.load(halves))
    wanted = [trainings.Training(f"seed {seeded.seed}", task, seeded) for seeded in trainings.seeds(recipe, 3)]

    def go() -> list[Answers]:
        return trainings.train_all(wanted, "trial", task.validation, "validation", tmp_path / "out")

    real, calls = trainings.answer, []

    def killed(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(trainings, "answer", killed)
    with pytest.raises(KeyboardInterrupt):
        go()
    first = go()
    assert counted == ["seed 1", "seed 2", "seed 2", "seed 3"]
    kept = sorted((tmp_path / "out" / "runs").glob("*.npz"))
    assert len(kept) == 3
    kept[0].write_bytes(kept[0].read_bytes()[:100])
    again = go()
    assert len(counted) == 5
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.right, other.right)
        assert np.array_equal(one.losses, other.losses)


def test_a_training_that_fails_is_named(halves: Path, tmp_path: Path, quick: Params) -> None:
    task = ablation.of(staleness.arrays.load(halves))
    wanted = [trainings.Training("the odd one", task, trainings.changed(quick.train, network="nothing"))]
    with pytest.raises(UserError, match=r"trial, training 'the odd one': train\.network is 'nothing'"):
        trainings.train_all(wanted, "trial", task.validation, "validation", tmp_path)


def test_a_study_without_images_to_judge_by_says_what_to_do(tmp_path: Path, quick: Params) -> None:
    folder = write_arrays(tmp_path / "arrays", each=(40, 0, 0))
    with pytest.raises(UserError, match=r"no validation split to judge by: raise prepare\.validation_share"):
        ablation.ablate(folder, tmp_path / "out", quick, 1, [], also=False)
    with pytest.raises(UserError, match=r"no test split to score on: raise prepare\.test_share"):
        staleness.measure(folder, tmp_path / "m.parquet", tmp_path / "out", quick, 1, 6)
    with pytest.raises(UserError, match=r"m\.parquet is missing or not that of"):
        staleness.measure(write_arrays(tmp_path / "b"), tmp_path / "m.parquet", tmp_path / "out", quick, 1, 6)


# ---------------------------------------------------------------------------------------------------------------------
# A real history
# ---------------------------------------------------------------------------------------------------------------------


def write_manifest(path: Path, train: int, test: int) -> None:
    """A manifest of so many images: image i of a split has the same digest in every version, and its row moves."""
    rows = [
        {"digest": f"{split}-{i}", "split": split, "index": count - 1 - i}
        for split, count in (("train", train), ("test", test))
        for i in range(count)
    ]
    rows.append({"digest": "left out", "split": None, "index": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose manifest came in two versions, in January and in March 2026, the older one only in the remote."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    root = tmp_path / "repository"
    root.mkdir()
    monkeypatch.chdir(root)
    dvc = [sys.executable, "-m", "dvc"]
    stages = {"stages": {"prepare": {"cmd": "true", "outs": ["out/manifest.parquet"]}}}
    for command in (
        ["git", "init", "-q"],
        [*dvc, "init", "-q"],
        [*dvc, "remote", "add", "-d", "store", str(tmp_path / "store")],
    ):
        subprocess.run(command, check=True, capture_output=True)
    (root / "dvc.yaml").write_text(json.dumps(stages))
    for date, train, test in (("2026-01-10", 100, 30), ("2026-03-10", 160, 60)):
        write_manifest(root / "out" / "manifest.parquet", train, test)
        when = {"GIT_AUTHOR_DATE": f"{date}T00:00:00Z", "GIT_COMMITTER_DATE": f"{date}T00:00:00Z"}
        identity = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        commit = [*identity, "commit", "-q", "-m", date]
        for command in ([*dvc, "commit", "-f", "-q"], [*dvc, "push", "-q"], ["git", "add", "."], commit):
            subprocess.run(command, check=True, capture_output=True, env={**os.environ, **when})
    for path in (root / ".dvc" / "cache").rglob("*"):
        if path.is_file():
            path.unlink()
    return root


@pytest.mark.slow
def test_an_image_came_with_the_first_commit_whose_manifest_has_it(history: Path) -> None:
    manifest = Path("out/manifest.parquet")
    found = arrivals.read(manifest, Path("keep"), datetime(2026, 6, 1, tzinfo=UTC))
    assert found.versions == 2
    assert found.notes == []
    assert found.training.tolist() == [day(2026, 3, 10)] * 60 + [day(2026, 1, 10)] * 100  # rows run backwards here
    assert found.test.tolist() == [day(2026, 3, 10)] * 30 + [day(2026, 1, 10)] * 30
    write_manifest(manifest, 161, 60)  # one image that is not committed yet
    assert arrivals.read(manifest, Path("keep"), datetime(2026, 6, 1, tzinfo=UTC)).training[0] == day(2026, 6, 1)


@pytest.mark.slow
def test_a_version_that_nobody_has_any_more_is_noted(history: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "store").rglob("*"):
        if path.is_file():
            path.unlink()
    found = arrivals.read(Path("out/manifest.parquet"), Path("keep"), datetime(2026, 6, 1, tzinfo=UTC))
    assert found.versions == 0
    assert "2 of 2 versions of the data are no longer in the DVC remote" in found.notes[0]


@pytest.mark.slow
def test_staleness_tells_what_the_last_month_added_and_what_another_would(history: Path, quick: Params) -> None:
    manifest = Path("out/manifest.parquet")
    folder = write_arrays(history / "arrays", sha256(manifest))
    said = staleness.measure(folder, manifest, history / "study", quick, 2, 6)
    assert "The data that came last (2026-03, +60 training images) added" in said
    assert "Another month at 31 images a month" in said
    page = (history / "study" / "staleness.md").read_text()
    for part in (
        "## By the date of the data",
        "| 2026-01 | 100 |",
        "on the 30 newest",
        "## Without the oldest",
        "Fitted law",
    ):
        assert part in page
    rows = (history / "study" / "staleness.csv").read_text().splitlines()
    assert [row.split(",")[:3] for row in rows[1:4]] == [
        ["until", "2026-01", "100"],
        ["until", "2026-03", "160"],
        ["after", "2026-01", "60"],
    ]
    assert (history / "study" / "staleness.png").stat().st_size > 5000


@pytest.mark.slow
def test_the_commands_take_what_the_makefile_gives_them(halves: Path, tmp_path: Path) -> None:
    write_params(tmp_path / "params.yaml", **QUICK, **OFF)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def go(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", *arguments, "--params", "params.yaml", "--seeds", "1", "--epochs", "1"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = go("src.experiments.ablation", "arrays", "out", "--only", "flip")
    assert done.returncode == 0, done.stderr
    assert "augmentation" in done.stdout
    wrong = go("src.experiments.staleness", "arrays", "m.parquet", "out", "--points", "1")
    assert wrong.returncode == 1
    assert "--points at least 2" in wrong.stderr
    assert "Traceback" not in wrong.stderr
