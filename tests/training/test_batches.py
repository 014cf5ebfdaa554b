"""Every image once, labels in step, honest shuffling, bounded memory, wherever the images lie.

python -m pytest tests/training/test_batches.py
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy import stats

from src.core.arrays import Split
from src.images.augment_params import Augment
from src.training import batches as module
from src.training.batches import Batches, Room
from src.training.start import channel_statistics
from src.training.streaming import Reader, Window
from src.training.world import World

CPU = torch.device("cpu")
ROOMS = {"resident": Room(10**9, 10**9), "windowed": Room(0, 0)}
PATHS = pytest.mark.parametrize("room", ROOMS.values(), ids=ROOMS.keys())
OFF = {"crop": 0, "flip": False, "rotate": 0, "scale": 0, "brightness": 0, "contrast": 0, "cutout": 0, "erase": 0}
OFF |= {"mixup": 0, "cutmix": 0}


def mapped(folder: Path, images: np.ndarray) -> np.ndarray:
    """Write images as `prepare` does, and map them."""
    np.save(folder / "images.npy", images)
    return np.load(folder / "images.npy", mmap_mode="r")


@pytest.fixture
def flat(tmp_path: Path) -> Split:
    """Each image is one flat colour that is its own label, so any slip between pixels and labels shows."""
    images = np.repeat(np.arange(203, dtype=np.uint8), 6 * 5 * 3).reshape(203, 6, 5, 3)
    return Split(mapped(tmp_path, images), np.arange(203))


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 40 images of `flat` pass for a window."""
    monkeypatch.setattr(module, "_WINDOW", (2**12, 2**12))


def shown(split: Split, room: Room, world: World | None = None, seed: int = 1, **strength: object) -> list:
    made = Batches(split, CPU, Augment(**(OFF | strength)), 203, world, room)
    return list(made.epoch(10, seed))


@PATHS
@pytest.mark.parametrize("strength", [{}, {"flip": True, "rotate": 10}, {"crop": 9, "contrast": 0.1}])
@pytest.mark.parametrize("subset", [False, True])
@pytest.mark.usefixtures("small_windows")
def test_an_epoch_shows_every_image_once_with_its_label(flat: Split, room: Room, strength: dict, subset: bool) -> None:
    split = flat.subset(np.random.default_rng(2).permutation(203)[:103]) if subset else flat
    seen = []
    for images, labels in shown(split, room, **strength):
        assert 10 <= len(labels) <= 11
        assert images.shape == (len(labels), 3, 6, 5)
        assert torch.equal(images.float().amax(dim=(1, 2, 3)).round().long(), labels)
        seen += labels.tolist()
    assert sorted(seen) == sorted(split.labels.tolist())
    assert seen != split.labels.tolist()


@PATHS
@pytest.mark.usefixtures("small_windows")
def test_the_seed_alone_decides_what_comes(flat: Split, room: Room) -> None:
    first, again, other = (shown(flat, room, seed=seed, crop=2, rotate=20, cutmix=1) for seed in (1, 1, 2))
    assert all(torch.equal(x, y) for one, two in zip(first, again, strict=True) for x, y in zip(one, two, strict=True))
    assert not all(torch.equal(one[1], two[1]) for one, two in zip(first, other, strict=True))


@PATHS
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.usefixtures("small_windows")
def test_processes_share_an_epoch_and_take_equally_many_steps(flat: Split, room: Room, size: int) -> None:
    shares = [shown(flat, room, World(rank, size, rank, size), crop=1) for rank in range(size)]
    assert len({len(share) for share in shares}) == 1
    for together in zip(*shares, strict=True):
        assert 10 <= sum(len(labels) for _, labels in together) <= 11
    assert sorted(label for share in shares for _, labels in share for label in labels.tolist()) == list(range(203))
    plain = [list(Batches(flat, CPU, Augment(**OFF), 203, World(r, size, r, size), room).in_order(7)) for r in range(size)]
    assert sorted(torch.cat([labels for share in plain for _, labels in share]).tolist()) == list(range(203))


@PATHS
@pytest.mark.parametrize("crop", [0, 2])
@pytest.mark.parametrize("subset", [False, True])
def test_evaluation_sees_every_image_unchanged_and_in_order(flat: Split, room: Room, crop: int, subset: bool) -> None:
    split = flat.subset(np.random.default_rng(2).permutation(203)[:103]) if subset else flat
    made = Batches(split, CPU, Augment(**(OFF | {"crop": crop, "flip": True})), 203, None, room)
    ways = "lie in the memory of the CPU", "pass by blocks through a window of 16 MiB, which shuffles them"
    assert made.where == ways[room == ROOMS["windowed"]]
    for _ in range(2):  # before an epoch has padded them, and after
        images, labels = (torch.cat(column) for column in zip(*made.in_order(10), strict=True))
        np.testing.assert_array_equal(images.permute(0, 2, 3, 1), split.examples[:])
        assert torch.equal(labels, torch.from_numpy(split.labels))
        next(made.epoch(10, 1))
    images, labels = made.example(4)
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1), split.examples[:4])
    assert labels.tolist() == split.labels[:4].tolist()


@PATHS
@pytest.mark.parametrize("kind", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}])
@pytest.mark.usefixtures("small_windows")
def test_mixed_labels_say_how_much_of_which_image_is_there(flat: Split, room: Room, kind: dict) -> None:
    """The mean colour of a mixture of flat colours is the mean of its labels."""
    mixed = shown(flat, room, **kind)
    grey = torch.arange(203).float()
    for images, targets in mixed:
        assert targets.shape == (len(images), 203)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(len(images)))
        torch.testing.assert_close(images.mean(dim=(1, 2, 3)), targets @ grey, atol=1e-3, rtol=1e-5)
    assert max(int((targets > 0).sum(dim=1).max()) for _, targets in mixed) == 2


@pytest.mark.parametrize("rows", [None, "four fifths"])
def test_a_window_over_sorted_classes_draws_as_at_random(tmp_path: Path, rows: str | None) -> None:
    """40,000 images sorted by 10 classes: each batch's counts pass a chi-squared test as often as random ones do."""
    images = mapped(tmp_path, np.zeros((40_000, 4, 4, 3), np.uint8))
    split = Split(images, np.repeat(np.arange(10), 4000))
    if rows:
        split = split.subset(np.flatnonzero(np.random.default_rng(1).random(40_000) < 0.8))
    window = Window(Reader(split.examples), 5, 0, len(split.labels), 2**19)  # a quarter of the whole
    counts, seen = [], []
    for _ in range(len(split.labels) // 250):
        drawn = window.draw(250)[1]
        counts.append(np.bincount(split.labels[drawn], minlength=10))
        seen.append(drawn)
    assert len(np.unique(np.concatenate(seen))) == 250 * len(seen)
    expected = np.bincount(split.labels) / len(split.labels) * 250
    passing = stats.chi2.sf(((np.array(counts) - expected) ** 2 / expected).sum(axis=1), 9)
    assert stats.kstest(passing, "uniform").pvalue > 0.001


def test_channel_statistics_are_exact(tmp_path: Path, random: np.random.Generator) -> None:
    images = random.integers(0, 256, (600, 7, 5, 3), dtype=np.uint8)
    rows = random.permutation(600)[:400]
    whole = Split(mapped(tmp_path, images), np.zeros(600, np.int64))
    for split, expected in ((whole, images), (whole.subset(rows), images[rows])):
        mean, deviation = channel_statistics(split.examples)
        np.testing.assert_allclose(mean, expected.mean(axis=(0, 1, 2)), atol=1e-4)
        np.testing.assert_allclose(deviation, expected.std(axis=(0, 1, 2)), atol=1e-4)


@pytest.mark.journey
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak of this process alone")
def test_memory_stays_bounded_by_the_window(tmp_path: Path) -> None:
    """An array of 400 MB through a window of 16 MiB: statistics, an epoch and an evaluation take little more than that."""
    images = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, (130_000, 32, 32, 3))
    images.flush()
    code = rf"""
import re, numpy as np, torch
from pathlib import Path
from src.core.arrays import Split
from src.training.batches import Batches
from src.images.augment_params import Augment
from src.training.batches import Room
from src.training.start import channel_statistics
peak = lambda: int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
images = np.load({str(tmp_path / "images.npy")!r}, mmap_mode="r")
split = Split(images, np.zeros(len(images), np.int64))
small = Split(images[:2000], split.labels[:2000])
train = lambda split: sum(len(labels) for _, labels in Batches(
    split, torch.device("cpu"), Augment(**{OFF | {"crop": 4, "flip": True}!r}), 10, None, Room(0, 0)).epoch(512, 1))
channel_statistics(small.examples), train(small)
before = peak()
assert train(split) == len(images)
channel_statistics(images)
evaluated = Batches(split, torch.device("cpu"), Augment(**{OFF!r}), 10, None, Room(0, 0)).in_order(512)
assert sum(len(labels) for _, labels in evaluated) == len(images)
print((peak() - before) // 1024)
"""
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(told.stdout) < 64
