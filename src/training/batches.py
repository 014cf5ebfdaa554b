"""Training batches straight from the decoded array, wherever it fits.

The images lie on the device; or, too many for the memory that is free there, blocks of the file pass through a window that
shuffles them, and a thread works ahead, so that the device does not wait. Both pass every image once an epoch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.core import cgroups
from src.core.arrays import Split
from src.images import augment
from src.images.augment_params import Augment
from src.training.streaming import Reader, Window, ahead
from src.training.world import World

_SHARE_OF_MEMORY = 0.4  # what padded images on the device may take; twice that while they are padded
_SHARE_OF_WINDOW = 0.25
_WINDOW = (2**24, 2**31)  # bytes of the smallest and the largest window; more would only take longer to fill
_GROUP = {"cpu": 2**20, "cuda": 2**24}  # numbers that are augmented at once: more than one small batch, within the caches
_PIECE = 2**26  # bytes that are brought to the device at once

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Room:
    """Bytes that are free: `device` where the run computes, `host` in this machine's memory for each of its processes."""

    device: int
    host: int


def free_room(device: torch.device, world: World) -> Room:
    """Return what can be taken now without swapping, of the machine, of this process's control group and of the GPU.

    Processes that train together on one machine share what it has.
    """
    machine, left = int(psutil.virtual_memory().available), cgroups.memory_left()
    host = max(0, machine if left is None else min(machine, left)) // world.local_size
    return Room(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host, host)


class Batches:
    """One split as batches on a device; with several processes each yields its share of every batch."""

    def __init__(
        self,
        split: Split,
        device: torch.device,
        params: Augment,
        classes: int,
        world: World | None = None,
        room: Room | None = None,
    ) -> None:
        """Choose where the images lie, and bring them there.

        Args:
            split: its images may be any rows of a memory map.
            device: where batches are wanted.
            params: the augmentation.
            classes: how many there are.
            world: the processes that train together.
            room: the memory to reckon with, instead of what is free.
        """
        self._device, self._params, self._classes, self._world = device, params, classes, world or World()
        # rank 0's answer for all: processes that shuffled in different ways would show some images twice
        self._room = room or Room(**self._world.share(vars(free_room(device, self._world))))
        self._reader = Reader(split.examples)
        self.labels = torch.from_numpy(split.labels.copy()).to(device)
        self.resident = _padded_bytes(self._reader.shape, params.crop) < _SHARE_OF_MEMORY * self._room.device
        self._images: Tensor | None = None
        if self.resident:
            dtype = getattr(torch, str(self._reader.dtype))
            self._images = torch.empty(self._reader.shape, dtype=dtype, device=device)
            size = max(1, _PIECE // self._reader.row_bytes)
            for start in range(0, len(self), size):
                self._images[start : start + size] = self._read(start, size)
        self._bank: Tensor | None = None  # the images padded, and mirrored behind them

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def where(self) -> str:
        """Say where the images lie."""
        if self.resident:
            return f"lie in the memory of the {'GPU' if self._device.type == 'cuda' else 'CPU'}"
        return f"pass by blocks through a window of {self._window_bytes() / 2**20:,.0f} MiB, which shuffles them"

    def steps(self, size: int) -> int:
        """Return how many batches an epoch has."""
        return max(1, len(self) // size)

    def example(self, size: int) -> Batch:
        """Return the first images and labels, unchanged: (n, channels, height, width), and int64 (n,)."""
        return next(self._plain(size, 0, len(self) or 1))

    def epoch(self, size: int, seed: int) -> Iterator[Batch]:
        """Yield augmented images and their targets in random order.

        Images are (n, channels, height, width) in 0..255, as in the array or float; targets int64 (n,), or float
        (n, classes) where `mixup` or `cutmix` is on.

        Batches are of equal length, `size` or a little more: a short last one would weigh more and upset batch norm.
        With several processes `size` is that of all of them together. The seed alone decides what comes; through a window
        its size does too, and images come at random as `streaming.Window` says.
        """
        groups = list(self._groups(self._lengths(size)[self._world.rank]))
        draws = torch.Generator(self._device).manual_seed(seed + 1 + self._world.rank)
        finished = self._finished(self._cropped(groups, size, seed, draws), groups, draws)
        if self._device.type == "cpu" and (not self.resident or augment.changes_pixels(self._params)):
            finished = ahead(finished)
        for group in finished:
            yield from group

    def in_order(self, size: int, whole: bool = False) -> Iterator[Batch]:
        """Yield images and labels unchanged, in order: (n, channels, height, width), and int64 (n,).

        With several processes each yields its share, unless the `whole` is asked for.
        """
        rank, ranks = (0, 1) if whole else (self._world.rank, self._world.size)
        plain = self._plain(size, rank * size, ranks * size)
        return plain if self.resident else ahead(plain)

    def _plain(self, size: int, first: int, step: int) -> Iterator[Batch]:
        """Yield `size` unchanged images at a time, every `step` images from the `first` on."""
        for start in range(first, len(self), step):
            images = self._images[start : start + size] if self._images is not None else self._read(start, size)
            yield images.permute(0, 3, 1, 2), self.labels[start : start + size]

    def _read(self, start: int, size: int) -> Tensor:
        rows = np.arange(start, min(start + size, len(self)))
        return torch.from_numpy(self._reader.take(rows)).to(self._device)

    # Where the images lie ------------------------------------------------------------------------------------------

    def _window_bytes(self) -> int:
        """A power of two, so that a little more or less of free memory does not change what a seed decides."""
        return int(2 ** np.floor(np.log2(np.clip(_SHARE_OF_WINDOW * self._room.host, *_WINDOW))))

    def _padded_cache(self, images: Tensor) -> tuple[Tensor, bool]:
        """Return all images padded and, where memory allows, mirrored behind them; made for the first epoch."""
        margin, n = self._params.crop, len(self)
        both = self._params.flip and 2 * _padded_bytes(self._reader.shape, margin) < _SHARE_OF_MEMORY * self._room.device
        if self._bank is None:
            if not margin and not both:
                return images, both
            height, width = (length + 2 * margin for length in images.shape[1:3])
            self._bank = images.new_empty(n * (1 + both), height, width, images.shape[3])
            size = max(1, _PIECE // self._reader.row_bytes)
            for start in range(0, n, size):
                padded = augment.pad(images[start : start + size], margin)
                self._bank[start : start + len(padded)] = padded
                if both:
                    self._bank[n + start : n + start + len(padded)] = padded.flip(2)
            self._images = self._bank[:n, margin : height - margin, margin : width - margin]  # held once
        return self._bank, both

    # An epoch ------------------------------------------------------------------------------------------------------

    def _lengths(self, size: int) -> NDArray[np.int64]:
        """Return how many images each batch has in each process: (processes, batches)."""
        steps, ranks = self.steps(size), self._world.size
        whole = len(self) // steps + (np.arange(steps) < len(self) % steps)
        return whole // ranks + (np.arange(ranks)[:, None] < whole % ranks)

    def _groups(self, lengths: NDArray[np.int64]) -> Iterator[list[int]]:
        """Divide batches into groups that are made at once; the first are small, as nothing hides the time they take."""
        most, start, wanted = _GROUP[self._device.type] // self._reader.row_bytes, 0, 1
        while start < len(lengths):
            fitting = int(np.searchsorted(np.cumsum(lengths[start : start + wanted]), most, side="right"))
            yield lengths[start : start + max(1, fitting)].tolist()
            start, wanted = start + max(1, fitting), 2 * wanted

    def _cropped(self, groups: Sequence[list[int]], size: int, seed: int, draws: torch.Generator) -> Iterator[Batch]:
        """Yield each group's images, cropped and flipped, on the device, and its labels."""
        lengths = [sum(group) for group in groups]
        if self._images is not None:
            bank, both = self._padded_cache(self._images)
            for rows in torch.split(torch.from_numpy(self._order(size, seed)).to(self._device), lengths):
                yield augment.crop(bank, rows, self._params, both, draws), self.labels[rows]
            return
        drawn = self._drawn(lengths, size, seed)
        for images, rows in drawn if self._device.type == "cpu" else ahead(drawn):
            padded = augment.pad(images.to(self._device, non_blocking=True), self._params.crop)
            everything = torch.arange(len(images), device=self._device)
            yield augment.crop(padded, everything, self._params, False, draws), self.labels[rows.to(self._device)]

    def _drawn(self, lengths: Sequence[int], size: int, seed: int) -> Iterator[Batch]:
        """Yield so many images at a time from a window, and their rows: in pinned memory for a GPU to copy by itself."""
        if self._device.index is not None:
            torch.cuda.set_device(self._device)  # of this thread, which would begin with the first GPU
        shares = self._lengths(size).sum(axis=1)
        first, count = int(shares[: self._world.rank].sum()), int(shares[self._world.rank])
        window = Window(self._reader, seed, first, count, self._window_bytes())
        for length in lengths:
            images, rows = map(torch.from_numpy, window.draw(length))
            yield (images, rows) if self._device.type == "cpu" else (images.pin_memory(), rows.pin_memory())

    def _order(self, size: int, seed: int) -> NDArray[np.int64]:
        """Return the rows of this process in the order of an epoch."""
        order = np.random.default_rng(seed).permutation(len(self))
        if self._world.size == 1:
            return order
        lengths = self._lengths(size)
        ends = np.cumsum(lengths.T.ravel())  # the first batch's shares, then the second's
        return np.concatenate(np.split(order, ends[:-1])[self._world.rank :: self._world.size])

    def _finished(
        self, cropped: Iterator[Batch], groups: Sequence[list[int]], draws: torch.Generator
    ) -> Iterator[list[Batch]]:
        """Augment each group and divide it into its batches."""
        for (images, labels), group in zip(cropped, groups, strict=True):
            augmented = augment.apply(images.permute(0, 3, 1, 2), self._params, draws)
            parts = zip(torch.split(augmented, group), torch.split(labels, group), strict=True)
            yield [augment.mix(*part, self._classes, self._params, draws) for part in parts]


def _padded_bytes(shape: tuple[int, ...], margin: int) -> int:
    n, height, width, channels = shape
    return n * (height + 2 * margin) * (width + 2 * margin) * channels
