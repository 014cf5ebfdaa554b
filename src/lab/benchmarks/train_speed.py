"""Measure a training step against the plain recipe's: `make bench-train`.

    python -m src bench-train                      (synthetic images of 32x32, or --arrays out/arrays)
    python -m src bench-train --large 6 --window 0.25 (GB: an array larger than its window, against memory)

Plain: per-sample transforms in a `DataLoader` of two workers, float32, contiguous. Ours: `train_epoch` with the learner
that the train stage has. Network, optimiser, learning rate, batch size and images are the same. Each has a
process of its own, is warmed up, then timed in turn. The loader's workers take cores from its step, so run this when the
machine is quiet, and read the ratios.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from src.core import arrays
from src.core.arrays import Split
from src.core.command import UserError, cores, table
from src.core.files import replacing
from src.images.augment_params import Augment
from src.lab.benchmarks.per_sample import PerSample
from src.system.params import load
from src.training import loop, optimizer, start
from src.training.batches import Batches
from src.training.loop import Learner
from src.training.memory import Room
from src.training.meter import Meter
from src.training.task import Task, of
from src.training.train_params import Train
from src.training.world import World

_CLASSES, _SIDE = 10, 32
_AUGMENT = Augment(crop=4, flip=True, rotate=0, scale=0, brightness=0, contrast=0, cutout=0, erase=0, mixup=0, cutmix=0)
_PIECE = 10_000
_SPAWN = multiprocessing.get_context("spawn")


class Ours:
    """The train stage's own loop on a task."""

    def __init__(self, task: Task, params: Train) -> None:
        """Build what a run has."""
        torch.manual_seed(params.seed)
        classifier, frozen = start.start(task, params)
        self.learner, self.batches, _ = loop.prepare(classifier, frozen, task, params, World(), print, None)
        self._meter = Meter(self.learner.device, 1, self.learner.bf16, World())
        self._threads, self._epoch = torch.get_num_threads(), 0

    def epoch(self) -> tuple[float, float]:
        """Train for an epoch; return images a second and the share of time spent on data."""
        torch.set_num_threads(self._threads)
        self.learner.classifier.train()
        self._epoch += 1
        loop.train_epoch(self.learner, self.batches, self._meter, self._epoch)
        row = self._meter.rows[-1]
        return float(row["images_per_second"]), float(row["data_wait_share"])


class Plain:
    """The plain recipe on the same task, on as many threads as PyTorch takes by itself."""

    def __init__(self, task: Task, params: Train) -> None:
        """Build a fresh network and a loader whose workers stay."""
        torch.manual_seed(params.seed)
        self._learner = _plain_learner(task, params)
        images = PerSample(np.array(task.training.images[:]), task.training.labels, params.augment.crop, False)
        self._loader: Iterable[Any] = DataLoader(
            images, params.batch_size, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True
        )

    def epoch(self) -> tuple[float, float]:
        """Train for an epoch; return images a second and the share of time spent waiting for the loader."""
        torch.set_num_threads(cores())
        self._learner.classifier.train()
        began, waited, count = time.perf_counter(), 0.0, 0
        for images, labels, seconds in _timed(self._loader):
            waited += seconds
            _plain_step(self._learner, images.to(self._learner.device), labels.to(self._learner.device))
            count += len(labels)
        if self._learner.device.type == "cuda":
            torch.cuda.synchronize()
        spent = time.perf_counter() - began
        return count / spent, waited / spent


def _plain_learner(task: Task, params: Train) -> Learner:
    device = torch.device("cuda" if params.device != "cpu" and torch.cuda.is_available() else "cpu")
    classifier, frozen = start.start(task, params)
    classifier.to(device)
    built, weights = optimizer.build(classifier, params), torch.ones(len(task.classes), device=device)
    return Learner(classifier, classifier, frozen, built, None, weights, device, False, World(), params)


def _timed(loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor, float]]:
    iterator = iter(loader)
    while True:
        asked = time.perf_counter()
        try:
            images, labels = next(iterator)
        except StopIteration:
            return
        yield images, labels, time.perf_counter() - asked


def _plain_step(learner: Learner, images: Tensor, labels: Tensor) -> None:
    logits = learner.forward(images)
    loss = F.cross_entropy(logits, labels, label_smoothing=learner.params.label_smoothing)
    learner.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    if learner.params.gradient_clip:
        nn.utils.clip_grad_norm_(learner.learning, learner.params.gradient_clip)
    learner.optimizer.step()


class Runner:
    """A process that trains in one way, an epoch whenever it is asked: what one sets of its process, the other has not."""

    def __init__(self, way: type[Plain] | type[Ours], args: argparse.Namespace) -> None:
        """Start the process, which builds its task anew."""
        here, there = _SPAWN.Pipe()
        self._pipe = here
        self._process = _SPAWN.Process(target=_serve, args=(there, way, args))
        self._process.start()
        there.close()

    def epoch(self) -> tuple[float, float]:
        """Train for an epoch; return images a second and the share of time spent waiting for data."""
        try:
            self._pipe.send(None)
            answer: tuple[float, float] = self._pipe.recv()
        except (EOFError, BrokenPipeError):
            raise UserError("a process that was measured has ended; it says why above") from None
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def _serve(pipe: Connection, way: type[Plain] | type[Ours], args: argparse.Namespace) -> None:
    trained = way(_given(args), _params(args))
    with suppress(EOFError, BrokenPipeError):  # the benchmark has ended
        while True:
            pipe.recv()
            pipe.send(trained.epoch())


def compare(args: argparse.Namespace) -> str:
    """Time an epoch of each in turn; return a table of medians and whether the two promises hold."""
    ours = Runner(Ours, args)
    ours.epoch()  # a first one each, which warms up
    plain = Runner(Plain, args)
    try:
        plain.epoch()
        pairs = np.array([(plain.epoch(), ours.epoch()) for _ in range(args.rounds)])  # (rounds, 2, 2)
    finally:
        plain.close()
        ours.close()
    ratio = float(np.median(pairs[:, 1, 0] / pairs[:, 0, 0]))
    speeds, waits = np.median(pairs[:, :, 0], axis=0), np.median(pairs[:, :, 1], axis=0)
    rows = [
        ["images/s", *(f"{speed:,.0f}" for speed in speeds), f"{ratio:.2f}"],
        ["waiting for data, share of the time", *(f"{wait:.2%}" for wait in waits), ""],
    ]
    title = f"{args.network} {args.width}, batch {args.batch}, {cores()} cores"
    told = [
        table([title, "plain", "ours", "ratio"], rows),
        f"at least {args.least:g} times the images/s: {_holds(ratio >= args.least)}",
        f"under 1 % of the time spent on data: {_holds(waits[1] < 0.01)}",
    ]
    return "\n".join(told)


def _holds(true: bool) -> str:
    return "holds" if true else "does not hold"


# ---------------------------------------------------------------------------------------------------------------------
# An array larger than its window
# ---------------------------------------------------------------------------------------------------------------------


def large(folder: Path, gigabytes: float, window: float, images: int, params: Train) -> str:
    """Train on so many images out of a large array, through a window and from memory, each in a process of its own.

    Args:
        folder: where the array is, or is to be made.
        gigabytes: its size, in 10^9 bytes.
        window: the same of the memory that the first process may reckon with.
        images: how many images each trains on.
        params: the section `train`.
    """
    path = folder / "large.npy"
    if not path.is_file():
        _write(path, int(gigabytes * 1e9 / (_SIDE * _SIDE * 3)))
    command = [sys.executable, "-m", "src", "bench-train", "--part", str(path), "--images", str(images)]
    command += [f"--{name}={value}" for name, value in _settings(params).items()]
    streamed, resident = (_told([*command, f"--window={limit}"]) for limit in (window, 0))
    ratio = streamed["images_per_second"] / resident["images_per_second"]
    rows = [
        [name, f"{part['images_per_second']:,.0f}", f"{part['wait']:.2%}", f"{part['peak'] / 2**20:,.0f}", part["where"]]
        for name, part in (("whole array", streamed), ("its first part", resident))
    ]
    size = path.stat().st_size / 1e9
    header = [f"array of {size:.1f} GB", "images/s", "waiting", "peak memory over the start, MiB", "images"]
    return f"{table(header, rows)}\nat least half the speed in memory ({ratio:.2f}): {_holds(ratio >= 0.5)}"


def _settings(params: Train) -> dict[str, Any]:
    return {"network": params.network, "width": params.width, "batch": params.batch_size, "device": params.device}


def _write(path: Path, count: int) -> None:
    print(f"writing {count:,} images to {path}")
    random = np.random.default_rng(1)
    with replacing(path) as fresh:
        images = np.lib.format.open_memmap(fresh, "w+", np.uint8, (count, _SIDE, _SIDE, 3))
        for first in range(0, count, _PIECE):
            images[first : first + _PIECE] = random.integers(0, 256, images[first : first + _PIECE].shape, np.uint8)
        images.flush()  # pages that wait to be written cannot be dropped from the cache


def _told(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"the process that trains on the large array failed: {done.stderr.strip()[-500:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def train_part(path: Path, window: float, images: int, params: Train) -> dict[str, Any]:
    """Train on part of an epoch of a large array through a window, or, with none, on its first images from memory."""
    before = psutil.Process().memory_info().rss
    mapped = np.load(path, mmap_mode="r")
    whole = Split(mapped, np.arange(len(mapped)) * _CLASSES // len(mapped))  # sorted by class
    part = whole.subset(np.arange(min(images, len(mapped))))
    ours = Ours(_task(whole.subset(np.arange(4 * params.batch_size)) if window else part), params)
    ours.epoch()
    if window:
        start.channel_statistics(mapped)  # what the train stage reads first
        batches = Batches(whole, ours.learner.device, params.augment, _CLASSES, room=Room(0, int(4e9 * window)))
        ours.batches = _First(batches, images)  # type: ignore[assignment]
    speed, wait = ours.epoch()
    return {"images_per_second": speed, "wait": wait, "peak": max(0, _peak() - before), "where": ours.batches.where}


class _First:
    """The first batches of an epoch, as `train_epoch` asks for them."""

    def __init__(self, batches: Batches, images: int) -> None:
        self._batches, self._images, self.where = batches, images, batches.where

    def __len__(self) -> int:
        return self._images

    def steps(self, size: int) -> int:
        return self._images // size

    def epoch(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        return islice(self._batches.epoch(size, seed), self.steps(size))


def _task(split: Split) -> Task:
    none = split.subset(np.arange(0))
    return Task(split, none, [str(label) for label in range(_CLASSES)], (_SIDE, _SIDE), 3, "crop", "")


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


# ---------------------------------------------------------------------------------------------------------------------


def _given(args: argparse.Namespace) -> Task:
    """Return the task to compare on: the first of prepared images, or of synthetic ones."""
    if args.arrays:
        task = of(arrays.load(args.arrays))
        if task.channels != 3:
            raise UserError(f"{args.arrays} holds grey images, and the plain recipe takes colours: prepare 3 channels")
        return replace(task, training=task.training.subset(np.arange(min(args.images, len(task.training.labels)))))
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (args.images, _SIDE, _SIDE, 3), np.uint8)
    return _task(Split(pixels, random.integers(0, _CLASSES, args.images)))


def _params(args: argparse.Namespace) -> Train:
    """Return params.yaml's recipe with what was asked for; augmented as the plain recipe is."""
    changes = {"network": args.network, "width": args.width, "batch_size": args.batch, "device": args.device}
    fixed = {"augment": _AUGMENT, "epochs": 100, "weights": None, "freeze": [], "freeze_until": None, "ema": 0}
    return load(Path("params.yaml")).train.model_copy(update={**changes, **fixed})


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a training step as a ratio to the plain recipe's.")
    parser.add_argument("--arrays", type=Path, help="folder that prepare wrote; else synthetic images of 32x32")
    parser.add_argument("--images", type=int, default=12_800, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed in turn; the median is shown")
    parser.add_argument("--network", default="small_resnet")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--least", type=float, default=3, help="the ratio that is to hold")
    parser.add_argument("--large", type=float, help="train from an array of so many GB instead, against memory")
    parser.add_argument("--window", type=float, default=0.25, help="GB of it that may be in memory at a time")
    parser.add_argument("--keep", type=Path, help="folder to keep the large array in for the next time")
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)  # what the processes of --large are told
    args = parser.parse_args()
    params = _params(args)
    if args.part:
        print(json.dumps(train_part(args.part, args.window, args.images, params)))
    elif args.large:
        with tempfile.TemporaryDirectory() as name:
            print(large(args.keep or Path(name), args.large, args.window, args.images, params))
    else:
        print(compare(args))
