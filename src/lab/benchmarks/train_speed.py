"""Measure a training step against the plain recipe's: `make bench-train`.

    python -m src bench-train                      (synthetic images of 32x32, or --arrays out/arrays)

Plain: per-sample transforms in a `DataLoader` of two workers, float32, contiguous. Ours: `train_epoch` with the learner
that the train stage has. Network, optimiser, learning rate, batch size and images are the same. Each has a
process of its own, is warmed up, then timed in turn. The loader's workers take cores from its step, so run this when the
machine is quiet, and read the ratios.
"""

import argparse
import multiprocessing
import time
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from src.core import arrays
from src.core.arrays import Split
from src.core.command import UserError, cores, table
from src.images.augment_params import Augment
from src.images.prepare_params import image_spec
from src.system.params import load
from src.training import loop, optimizer, start
from src.training.meter import Meter
from src.training.task import Task, of
from src.training.train_params import Train
from src.training.world import World

_CLASSES, _SIDE = 10, 32
_AUGMENT = Augment(crop=4, flip=True, rotate=0, scale=0, brightness=0, contrast=0, cutout=0, erase=0, mixup=0, cutmix=0)
_SPAWN = multiprocessing.get_context("spawn")


class Ours:
    """The train stage's own loop on a task."""

    def __init__(self, task: Task, params: Train) -> None:
        """Build what a run has."""
        torch.manual_seed(params.seed)
        classifier, frozen = start.start(task, params)
        self.learner, self.batches, _ = loop.prepare(classifier, frozen, task, params, World(), print)
        self._meter = Meter(self.learner.device, World())
        self._threads, self._epoch = torch.get_num_threads(), 0

    def epoch(self) -> tuple[float, float]:
        """Train for an epoch; return images a second and the share of time spent on data."""
        torch.set_num_threads(self._threads)
        self.learner.classifier.train()
        self._epoch += 1
        loop.train_epoch(self.learner, self.batches, self._meter, self._epoch)
        row = self._meter.rows[-1]
        return float(row["examples_per_second"]), float(row["data_wait_share"])


class Plain:
    """The plain recipe on the same task, on as many threads as PyTorch takes by itself."""

    def __init__(self, task: Task, params: Train) -> None:
        """Build a fresh network and a loader whose workers stay."""
        torch.manual_seed(params.seed)
        self._params = params
        self._device = torch.device("cuda" if params.device != "cpu" and torch.cuda.is_available() else "cpu")
        self._classifier = start.start(task, params)[0].to(self._device)
        self._optimizer = optimizer.build(self._classifier, params)
        images = PerSample(np.array(task.training.examples[:]), task.training.labels, params.augment.crop)
        self._loader = DataLoader(
            images, params.batch_size, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True
        )

    def epoch(self) -> tuple[float, float]:
        """Train for an epoch; return images a second and the share of time spent waiting for the loader."""
        torch.set_num_threads(cores())
        self._classifier.train()
        began = asked = time.perf_counter()
        waited, count = 0.0, 0
        for images, labels in self._loader:
            waited += time.perf_counter() - asked
            logits = self._classifier(images.to(self._device))
            loss = F.cross_entropy(logits, labels.to(self._device), label_smoothing=self._params.label_smoothing)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if self._params.gradient_clip:
                nn.utils.clip_grad_norm_(self._classifier.parameters(), self._params.gradient_clip)
            self._optimizer.step()
            count += len(labels)
            asked = time.perf_counter()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        spent = time.perf_counter() - began
        return count / spent, waited / spent


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
    trained = way(_task(args), _params(args))
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
    return "\n".join(
        [
            table([title, "plain", "ours", "ratio"], rows),
            f"at least {args.least:g} times the images/s: {'holds' if ratio >= args.least else 'does not hold'}",
            f"under 1 % of the time spent on data: {'holds' if waits[1] < 0.01 else 'does not hold'}",
        ]
    )


class PerSample(Dataset[tuple[Tensor, int]]):
    """The textbook's data set: uint8 images (n, height, width, 3), each cropped, flipped and sent as float32 (3, h, w)."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], margin: int) -> None:
        """Take the images and the pixels they are moved by."""
        self._images, self._labels, self._margin = images, labels, margin

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        height, width = self._images.shape[1:3]
        image = ImageOps.expand(Image.fromarray(self._images[row]), border=self._margin)
        left, top = (int(torch.randint(2 * self._margin + 1, ())) for _ in range(2))
        image = image.crop((left, top, left + width, top + height))
        if torch.rand(()) < 0.5:
            image = ImageOps.mirror(image)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float(), int(self._labels[row])


def _task(args: argparse.Namespace) -> Task:
    """Return the task to compare on: the first of prepared images, or of synthetic ones."""
    if args.arrays:
        task = of(arrays.load(args.arrays))
        if task.spec.shape[2] != 3:
            raise UserError(f"{args.arrays} holds grey images, and the plain recipe takes colours: prepare 3 channels")
        return replace(task, training=task.training.subset(np.arange(min(args.images, len(task.training.labels)))))
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (args.images, _SIDE, _SIDE, 3), np.uint8)
    split = Split(pixels, random.integers(0, _CLASSES, args.images))
    none = split.subset(np.arange(0))
    return Task(split, none, [str(label) for label in range(_CLASSES)], image_spec((_SIDE, _SIDE)), "")


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
    print(compare(parser.parse_args()))
