"""Images that are too many for the device: read by blocks, shuffled in a window of bounded size, by a thread ahead of use.

Reader(split.examples).take(rows)               any rows of an array that `prepare` wrote
Window(reader, seed, first, count, room).draw(n)   the next images of an epoch, in random order
ahead(items)                                  the same items, made by another thread
"""

import mmap
import os
import queue
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from src.core.arrays import Rows
from src.core.command import UserError

T = TypeVar("T")

_AHEAD = 2  # finished batches that wait to be used; one more is being made
_BLOCK = 2**18  # bytes of neighbouring images that are read in one go
_BLOCKS = 2048  # a window holds at least so many blocks, smaller ones where it must


class Reader:
    """Reads rows of examples by explicit reads: a memory map would keep what it touched.

    An array that is no whole memory map, or a part of one, lies in memory already: its rows are copied.
    """

    def __init__(self, examples: NDArray[Any] | Rows) -> None:
        base = examples.base if isinstance(examples, Rows) else examples
        self.chosen = examples.rows if isinstance(examples, Rows) else None
        self.shape, self.dtype = tuple(examples.shape), examples.dtype
        self.row_bytes = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        self._base, self._file, self._name, self._offset = base, -1, "", 0
        if isinstance(base, np.memmap) and isinstance(getattr(base, "base", None), mmap.mmap) and base.flags.c_contiguous:
            self._name, self._offset = str(base.filename), int(base.offset)
            self._file = os.open(self._name, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return int(self.shape[0])

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Copy rows of the split: (len(rows), *spec.shape).

        Rows that follow each other in the file are read in one go, so their order decides how fast this is.

        Raises:
            UserError: the file has become shorter.
        """
        rows = rows if self.chosen is None else self.chosen[rows]
        if self._file < 0:
            return self._base[rows]
        images = np.empty((len(rows), *self.shape[1:]), self.dtype)
        starts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist()] if len(rows) else []
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True) if starts else ():
            part = images[start:stop].data.cast("B")
            if os.preadv(self._file, [part], self._offset + int(rows[start]) * self.row_bytes) < len(part):
                raise UserError(f"{self._name} has become shorter while it was read: run `dvc repro -f prepare`")
        return images


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
        rows = rows[rows < len(reader)][first : first + count]
        # of a choice of rows, neighbours in the file make a block
        self._coming = rows if reader.chosen is None else np.argsort(reader.chosen, kind="stable")[rows]
        self._reader, self._random = reader, np.random.default_rng((seed, first))
        self._filled = min(count, max(1, room // reader.row_bytes))
        self._rows, self._coming = self._coming[: self._filled].copy(), self._coming[self._filled :]
        self._images = reader.take(self._rows)

    def draw(self, count: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return the next examples, (count, *spec.shape), and their rows."""
        images, rows = np.empty((count, *self._reader.shape[1:]), self._reader.dtype), np.empty(count, np.int64)
        done = 0
        while done < count:
            part = slice(done, done + min(self._filled, count - done))
            places = self._random.choice(self._filled, part.stop - done, replace=False)
            images[part], rows[part] = self._images[places], self._rows[places]
            self._replace(places)
            done = part.stop
        return images, rows

    def _replace(self, places: NDArray[np.int64]) -> None:
        """Put the next rows where images were taken out; when none are left, close the gaps from the end."""
        fresh, self._coming = self._coming[: len(places)], self._coming[len(places) :]
        places, gaps = places[: len(fresh)], places[len(fresh) :]
        self._rows[places], self._images[places] = fresh, self._reader.take(fresh)
        self._filled -= len(gaps)
        moved = np.setdiff1d(np.arange(self._filled, self._filled + len(gaps)), gaps)
        gaps = gaps[gaps < self._filled]
        self._rows[gaps], self._images[gaps] = self._rows[moved], self._images[moved]


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
