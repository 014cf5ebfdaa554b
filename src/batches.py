"""Training batches straight from the decoded array: on the device where it fits, else gathered from the memory map."""

import os
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src import augment
from src.arrays import Split
from src.params import Augment
from src.training.world import World

_SHARE_OF_MEMORY = 0.5  # what the images may take; the rest is the network's


class Batches:
    """One split as batches on a device.

    `resident` says whether the whole split lies there (padded for random crops); if not, each batch is gathered from
    disk, padded and sent over. With several processes each yields its share of every batch.
    """

    def __init__(self, split: Split, device: torch.device, params: Augment, classes: int, world: World) -> None:
        self._device, self._params, self._classes, self._world = device, params, classes, world
        self._host = split.images
        self._margin = params.crop
        self.labels = torch.from_numpy(split.labels.copy()).to(device)
        self.resident = _padded_bytes(split.images, params.crop) < _SHARE_OF_MEMORY * _free_bytes(device)
        if self.resident:
            self._images = augment.pad(torch.from_numpy(np.array(split.images[:])), params.crop).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def where(self) -> str:
        """Say where the images lie."""
        return (
            f"lie in the memory of the {'GPU' if self._device.type == 'cuda' else 'CPU'}"
            if self.resident
            else "stay on disk"
        )

    def steps(self, size: int) -> int:
        """Return how many batches an epoch has."""
        return max(1, len(self) // size)

    def example(self, size: int) -> tuple[Tensor, Tensor]:
        """Return the first images and labels, unchanged: uint8 (n, channels, height, width), and int64 (n,)."""
        images = torch.from_numpy(np.array(self._host[:size])).to(self._device)
        return images.permute(0, 3, 1, 2), self.labels[:size]

    def epoch(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield augmented images and targets in random order: (n, channels, height, width) in 0..255, uint8 or float,
        and int64 (n,), or float (n, classes) where labels are mixed.

        Batches are of equal length, `size` or a little more: a short last one would weigh more and upset batch norm.
        With several processes `size` is that of all of them together. The seed alone decides what comes.
        """
        order = torch.randperm(len(self), generator=torch.Generator(self._device).manual_seed(seed), device=self._device)
        generator = torch.Generator(self._device).manual_seed(seed + 1 + self._world.rank)
        for batch in order.tensor_split(self.steps(size)):
            rows = batch.tensor_split(self._world.size)[self._world.rank]
            images = self._cropped(rows, generator).permute(0, 3, 1, 2).float()
            yield augment.apply(images, self._params, generator), self.labels[rows]

    def in_order(self, size: int, whole: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels unchanged, in order: uint8 (n, channels, height, width), and int64 (n,).

        With several processes each yields its share, unless the `whole` is asked for.
        """
        rank, ranks = (0, 1) if whole else (self._world.rank, self._world.size)
        for start in range(rank * size, len(self), ranks * size):
            images = torch.from_numpy(np.array(self._host[start : start + size])).to(self._device)
            yield images.permute(0, 3, 1, 2), self.labels[start : start + size]

    def _cropped(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        if self.resident:
            return augment.crop(self._images, rows, self._margin, generator)
        gathered = torch.from_numpy(self._host[rows.cpu().numpy()])
        if self._device.type == "cuda":
            gathered = gathered.pin_memory().to(self._device, non_blocking=True)
        everything = torch.arange(len(rows), device=self._device)
        return augment.crop(augment.pad(gathered, self._margin), everything, self._margin, generator)


def _padded_bytes(images: NDArray[np.uint8], margin: int) -> int:
    n, height, width, channels = images.shape
    return int(n * (height + 2 * margin) * (width + 2 * margin) * channels)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2 * 2**30  # macOS does not say; beyond that the memory map serves as well
