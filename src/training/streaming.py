"""Images that are not on the device: shuffled in a window of bounded size, and made by a thread ahead of their use.

Window(reader, order, bytes).draw(into)     the next images of an epoch, in random order
ahead(items)                                the same items, made by another thread
sent(lengths, shape, fill, labels, device)  batches on the device, filled and copied while it computes
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.training.reading import Reader

T = TypeVar("T")
Fill = Callable[[NDArray[np.uint8]], NDArray[np.int64]]

_AHEAD = 2  # finished batches that wait to be used; one more is being made
_BLOCK = 2**18  # bytes of neighbouring images that are read in one go
_BLOCKS = 2048  # a window holds at least so many blocks, smaller ones where it must


class Window:
    """Draws every image of a share of an epoch exactly once, at random, from a window that blocks of the file refill.

    Blocks of neighbouring rows come in random order. The window is filled; each draw takes random images out of it, and
    the next rows take their places. An image can therefore come at any time after its block, and what is in the window at
    any moment stems from at least 2048 random places of the file (fewer if the whole has fewer). Were the file sorted by
    class, the share p of a class in the window would deviate by at most sqrt(p (1 - p) / 2048): 0.7 percentage points of
    10 %, less than the 1.3 by which a batch of 512 random images deviates.
    """

    def __init__(self, reader: Reader, seed: int, first: int, count: int, room: int) -> None:
        """Fill the window.

        Args:
            reader: the rows of the split.
            seed: of the order of blocks, which must be the same for all processes that share an epoch.
            first: where in that order the share of this process begins, in images.
            count: how many images its share has.
            room: bytes that the window may take.
        """
        length = max(1, min(_BLOCK, room // _BLOCKS) // reader.row_bytes)
        order = np.random.default_rng(seed).permutation(-(-len(reader) // length))
        rows = (order[:, None] * length + np.arange(length)).ravel()
        self._coming = rows[rows < len(reader)][first : first + count]
        # of a choice of rows, neighbours in the file make a block
        self._ascending = None if reader.chosen is None else np.argsort(reader.chosen, kind="stable")
        self._reader, self._random = reader, np.random.default_rng((seed, first))
        self._filled = min(count, max(1, room // reader.row_bytes))
        self._images = np.empty((self._filled, *reader.shape[1:]), np.uint8)
        self._rows = self._read(self._images)

    def draw(self, into: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Fill `into`, uint8 (n, height, width, channels), with the next images; return their rows, int64 (n,)."""
        rows, done = np.empty(len(into), np.int64), 0
        while done < len(into):
            part = slice(done, done + min(self._filled, len(into) - done))
            places = self._random.choice(self._filled, part.stop - done, replace=False)
            np.take(self._images, places, axis=0, out=into[part], mode="clip")
            rows[part] = self._rows[places]
            self._replace(places)
            done = part.stop
        return rows

    def _replace(self, places: NDArray[np.int64]) -> None:
        """Put the next rows where images were taken out; when none are left, close the gaps from the end."""
        fresh = np.empty((min(len(places), len(self._coming)), *self._reader.shape[1:]), np.uint8)
        places, gaps = places[: len(fresh)], places[len(fresh) :]
        self._rows[places] = self._read(fresh)
        self._images[places] = fresh
        self._filled -= len(gaps)
        moved = np.setdiff1d(np.arange(self._filled, self._filled + len(gaps)), gaps)
        gaps = gaps[gaps < self._filled]
        self._rows[gaps], self._images[gaps] = self._rows[moved], self._images[moved]

    def _read(self, into: NDArray[np.uint8]) -> NDArray[np.int64]:
        rows, self._coming = self._coming[: len(into)], self._coming[len(into) :]
        rows = rows if self._ascending is None else self._ascending[rows]
        self._reader.take(rows, into)
        return rows


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield what another thread takes from `items`, a few of them early; what goes wrong there is raised here."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def work() -> None:
        try:
            for item in items:
                ready.put((item, None))
                if stopped.is_set():
                    return
            ready.put((None, StopIteration()))
        except BaseException as error:  # whoever waits for the next item must hear of it
            ready.put((None, error))

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        while thread.is_alive():  # it may wait for a place in the queue
            with suppress(queue.Empty):
                ready.get(timeout=0.01)


def sent(
    lengths: Sequence[int], shape: tuple[int, ...], fill: Fill, labels: NDArray[np.int64], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and labels on the device.

    To a GPU they go through pinned memory on a stream of their own, filled by another thread, so that nothing waits but
    what needs them. On the CPU the caller may put all that it does with them into another thread.

    Args:
        lengths: of the batches.
        shape: of an image: (height, width, channels).
        fill: fills a batch of images, uint8 (n, *shape), and returns their rows, int64 (n,).
        labels: of all rows, int64.
        device: where they are to lie.
    """
    if device.type == "cpu":
        yield from _in_memory(lengths, shape, fill, labels)
        return
    for images, targets, copied in ahead(_copied(lengths, shape, fill, labels, device)):
        stream = torch.cuda.current_stream(device)
        stream.wait_event(copied)
        for tensor in (images, targets):
            tensor.record_stream(stream)  # their memory was taken for the other stream, which must not reuse it early
        yield images, targets


def _in_memory(
    lengths: Sequence[int], shape: tuple[int, ...], fill: Fill, labels: NDArray[np.int64]
) -> Iterator[tuple[Tensor, Tensor]]:
    for length in lengths:
        images = np.empty((length, *shape), np.uint8)
        rows = fill(images)
        yield torch.from_numpy(images), torch.from_numpy(labels[rows])


def _copied(
    lengths: Sequence[int], shape: tuple[int, ...], fill: Fill, labels: NDArray[np.int64], device: torch.device
) -> Iterator[tuple[Tensor, Tensor, torch.cuda.Event]]:
    """Copy batches to a GPU by turns through two pairs of pinned buffers, each filled again once its copy has ended."""
    if device.index is not None:
        torch.cuda.set_device(device)  # of this thread, which would begin with the first GPU
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    most = max(lengths)
    slots = [
        _Slot(
            torch.empty(most, *shape, dtype=torch.uint8, pin_memory=True),
            torch.empty(most, dtype=torch.int64, pin_memory=True),
        )
        for _ in range(2)
    ]
    for length, slot in zip(lengths, cycle(slots)):
        if slot.copied is not None:
            slot.copied.synchronize()
        rows = fill(slot.images[:length].numpy())
        slot.labels[:length] = torch.from_numpy(labels[rows])
        with torch.cuda.stream(stream):
            images, targets = (part[:length].to(device, non_blocking=True) for part in (slot.images, slot.labels))
            slot.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            slot.copied.record(stream)
        yield images, targets, slot.copied


@dataclass
class _Slot:
    """Pinned buffers for a batch, and when their last copy to the GPU ended."""

    images: Tensor
    labels: Tensor
    copied: torch.cuda.Event | None = None
