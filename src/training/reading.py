"""Rows of an array that `prepare` wrote, read from its file by explicit reads: a memory map would keep what it touched.

reader = Reader(split.images)
reader.take(rows, into)       any rows, by explicit reads
reader.rows(0, 512)           neighbouring rows likewise
reader.gather(rows, into)     any rows through the memory map, where the system's cache may hold all of it
"""

import mmap
import os
import weakref

import numpy as np
from numpy.typing import NDArray

from src.core.arrays import Rows
from src.core.command import UserError
from src.training import memory

_GAP = 2**17  # bytes: closer rows are fetched in one go, as the disk would read on anyway
_SHARE_OF_MEMORY = 0.5  # a file that takes more of it is not kept in the system's cache, where it would evict all else


class Reader:
    """Reads rows of uint8 images (n, height, width, channels) without touching a memory map's pages.

    An array that is no whole memory map, or a part of one, lies in memory already: its rows are copied.
    """

    def __init__(self, images: NDArray[np.uint8] | Rows) -> None:
        base = images.base if isinstance(images, Rows) else images
        self.chosen = images.rows if isinstance(images, Rows) else None
        self.shape = tuple(images.shape)
        self.row_bytes = int(np.prod(self.shape[1:]))
        self._base, self._file, self._name, self._offset, self._forget = base, -1, "", 0, False
        if isinstance(base, np.memmap) and isinstance(getattr(base, "base", None), mmap.mmap) and base.flags.c_contiguous:
            self._name, self._offset = str(base.filename), int(base.offset)
            self._file = os.open(self._name, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
            self._forget = hasattr(os, "posix_fadvise") and base.nbytes > _SHARE_OF_MEMORY * memory.available()

    def __len__(self) -> int:
        return int(self.shape[0])

    def take(self, rows: NDArray[np.int64], into: NDArray[np.uint8]) -> None:
        """Copy rows of the split into `into`, uint8 (len(rows), height, width, channels), C-contiguous.

        Rows that follow each other in the file are read in one go, so their order decides how fast this is.

        Raises:
            UserError: the file has become shorter.
        """
        if self._file < 0:
            self.gather(rows, into)
            return
        rows = rows if self.chosen is None else self.chosen[rows]
        steps = np.diff(rows)
        for first, end in _pieces((steps <= 0) | (steps > max(1, _GAP // self.row_bytes))) if len(rows) else ():
            runs = _pieces(steps[first : end - 1] != 1)
            if len(runs) > 1:
                self._advise(rows[first], rows[end - 1] + 1, "POSIX_FADV_WILLNEED")
            for start, stop in runs:
                self._read(int(rows[first + start]), into[first + start : first + stop])
            if self._forget:
                self._advise(rows[first], rows[end - 1] + 1, "POSIX_FADV_DONTNEED")

    def rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return neighbouring rows of the split, fewer at its end, read explicitly."""
        rows = np.arange(start, min(stop, len(self)))
        block = np.empty((len(rows), *self.shape[1:]), np.uint8)
        self.take(rows, block)
        return block

    def gather(self, rows: NDArray[np.int64], into: NDArray[np.uint8]) -> None:
        """Copy rows as `take` does, but through the memory map: faster for rows apart, once the system holds them."""
        np.take(self._base, rows if self.chosen is None else self.chosen[rows], axis=0, out=into, mode="clip")

    def _read(self, row: int, into: NDArray[np.uint8]) -> None:
        """Fill `into` from a row of the file on."""
        target, place = into.data.cast("B"), self._offset + row * self.row_bytes
        while target:
            count = os.preadv(self._file, [target[: 2**30]], place)  # Linux reads 2 GiB at most
            if count == 0:
                raise UserError(f"{self._name} has become shorter while it was read: run `dvc repro -f prepare`")
            target, place = target[count:], place + count

    def _advise(self, start: int, stop: int, advice: str) -> None:
        if hasattr(os, "posix_fadvise"):
            place, length = self._offset + int(start) * self.row_bytes, int(stop - start) * self.row_bytes
            os.posix_fadvise(self._file, place, length, getattr(os, advice))


def _pieces(breaks: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the ends of the pieces into which breaks between neighbours divide a sequence."""
    cuts = (np.flatnonzero(breaks) + 1).tolist()
    return list(zip([0, *cuts], [*cuts, len(breaks) + 1], strict=True))
