"""From the bytes of image files to what the model sees, through the very code that made the training images.

Small pictures are decoded where the request is, others in threads, and large ones one at a time in this container: so small
ones need not wait for large ones, and memory stays within that of one large picture.
"""

import asyncio
import fcntl
import io
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.core.shape import Spec
from src.images import images
from src.images.images import UndecodableError
from src.serving.problems import ProblemError, check_time, late

Pixels = NDArray[np.uint8]

logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it says of a damaged file, the sender of the file could choose

_QUICK = 256 * 256  # pixels of a PNG that is decoded within a fifth of a millisecond
_QUICK_BYTES = 4 * _QUICK
_QUICK_KINDS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")  # PNG and JPEG
_QUICK_FILES = 4  # of one request
_PROGRESSIVE = b"\xff\xc2"  # a JPEG of several scans over the whole picture
_SCAN = b"\xff\xda"
# pixels; a transparent one was measured to take 33 bytes while it is laid on white
_SMALL_TOGETHER = 2_000_000  # of all threads at once: 66 MB
_SMALL = 500_000  # so large each may be in any case: larger ones would wait for each other where there are many processors
_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd8\xff])")  # of a JPEG's segment; restarts have no length
_SCANS = 20  # of a progressive JPEG, which has about ten; each goes over the whole picture anew
_COMPRESSION, _JPEG = 259, 7  # a tag of TIFF, and its value for JPEG inside
_POLL = 0.01  # seconds
_POLITE = 10  # added to the niceness of the thread that decodes large pictures


class _Seen(NamedTuple):
    """What the model sees of a picture, uint8 of shape (height, width, channels), and how many pixels its file has."""

    pixels: Pixels
    area: int


def look(content: bytes, limits: tuple[int, int], spec: Spec) -> tuple[Pixels, int]:
    """Return what the model sees of a file and how many pixels it has, as `images.encode`, within the limits of serving.

    Args:
        content: the file's bytes.
        limits: pixels that are decoded now, and that may be decoded at all.
        spec: what the model takes.

    Raises:
        UndecodableError: it is no usable image. `area` is set where it has too many pixels, for now or at all.
    """
    if not content:
        raise UndecodableError("empty file: 0 bytes")
    if content.count(_SCAN) > _SCANS and (_count_scans(content) > _SCANS or _is_progressive_tiff(content)):
        raise UndecodableError(f"a JPEG of more than {_SCANS} scans: save it again, as any program does")
    try:
        array, decoded = images.encode(content, spec, limits[0])
        return array, math.prod(decoded.size)
    except UndecodableError as error:
        if error.area is None or error.area <= limits[1]:
            raise
        sentence = f"too large: {error.area / 1e6:g} megapixels, the limit is {limits[1] / 1e6:g}"
        raise UndecodableError(sentence, error.area) from None


class Decoder:
    """The decoder of one process."""

    def __init__(
        self,
        spec: Spec,
        max_pixels: int,
        threads: int,
        folder: Path | None,
        observe: Callable[[int], None],
    ) -> None:
        """Start no thread yet.

        Args:
            spec: what the model takes.
            max_pixels: of a picture's file.
            threads: that decode pictures which are not small.
            folder: shared with the other processes of this service; None: there is none.
            observe: told how many pixels each picture has.
        """
        self._observe = observe
        self._spec, self._max_pixels = spec, max_pixels
        self._small = min(max(_SMALL, _SMALL_TOGETHER // threads), max_pixels)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="decode-large", initializer=_be_polite)
        self._lock = folder / "large.lock" if folder else None

    async def decode(self, contents: Sequence[bytes], deadline: float) -> Pixels:
        """Return what the model sees of some image files, uint8 of shape (n, height, width, channels).

        Args:
            contents: the files' bytes.
            deadline: `time.monotonic()` after which nobody waits for the answer.

        Raises:
            ProblemError: a file is no usable image (400; 413 where it is alone and too large), or time is over (504).
        """
        decoded = self._quick(contents)
        if decoded is None:
            decoded = await _in_time(self._threads.submit(self._each, contents, self._small, deadline), deadline)
        for index, one in enumerate(decoded):
            if isinstance(one, UndecodableError) and one.area is not None and one.area <= self._max_pixels:
                work = self._large.submit(self._one_large, contents[index], deadline)
                decoded[index] = await _in_time(work, deadline)
        pixels = _whole(decoded)
        for one in decoded:
            self._observe(one.area)
        return pixels

    def _quick(self, contents: Sequence[bytes]) -> list[Any] | None:
        """Decode small pictures right here, where a thread would take longer than they; None: they are not that."""
        if len(contents) > _QUICK_FILES:
            return None
        decoded = []
        for content in contents:
            if (
                len(content) > _QUICK_BYTES
                or not content.startswith(_QUICK_KINDS)
                or (content.startswith(b"\xff") and _PROGRESSIVE in content)
            ):
                return None
            try:
                array, found = images.encode(content, self._spec, min(_QUICK, self._small))
            except UndecodableError:
                return None
            decoded.append(_Seen(array, math.prod(found.size)))
        return decoded

    def _each(self, contents: Sequence[bytes], most: int, deadline: float | None = None) -> list[Any]:
        """Return of each file its pixels, or why it has none."""
        decoded: list[_Seen | UndecodableError] = []
        for content in contents:
            if deadline is not None:
                check_time(deadline)
            try:
                limits = (most, self._max_pixels)
                decoded.append(_Seen(*look(content, limits, self._spec)))
            except UndecodableError as error:
                error.__context__ = error.__traceback__ = None  # else it keeps this frame, and the file, for long
                decoded.append(error)
        return decoded

    def _one_large(self, content: bytes, deadline: float) -> Any:
        check_time(deadline)
        with _alone(self._lock, deadline):
            return self._each([content], self._max_pixels)[0]


def _count_scans(content: bytes) -> int:
    """Count the scans of a JPEG up to its end: their bytes can stand in a profile too, or in the video of a motion photo."""
    scans, place = 0, 2
    while content.startswith(b"\xff\xd8") and scans <= _SCANS and (marker := _MARKER.search(content, place)):
        place = marker.end()
        if marker[1] == b"\xd9":
            break
        scans += marker[1] == b"\xda"
        place += int.from_bytes(content[place : place + 2])  # the length of the segment, which counts its own two bytes
    return scans


def _is_progressive_tiff(content: bytes) -> bool:
    """Say whether a TIFF holds progressive JPEG, which the format does not have and its reader takes."""
    if content[:2] not in (b"II", b"MM") or _PROGRESSIVE not in content:
        return False
    try:
        with Image.open(io.BytesIO(content), formats=("TIFF",)) as image:
            return bool(image.tag_v2.get(_COMPRESSION) == _JPEG)  # type: ignore[attr-defined]
    except Exception:  # as `images.decode` will tell, of a damaged file Pillow's readers raise almost any class
        return False


def _be_polite() -> None:
    """Let the requests of others go first, where the system can say so of a single thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _POLITE)


@contextmanager
def _alone(lock: Path | None, deadline: float) -> Iterator[None]:
    """Hold the one place for a large picture that all processes share; the system frees it when one of them dies."""
    if lock is None:
        yield
        return
    with lock.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                check_time(deadline)
                time.sleep(_POLL)
        yield


async def _in_time(work: "Future[Any]", deadline: float) -> Any:
    waiting = asyncio.wrap_future(work)
    done, _ = await asyncio.wait([waiting], timeout=deadline - time.monotonic() + 0.05)
    if not done:
        waiting.cancel()  # and with it the work, if no thread has begun it
        raise late()
    return waiting.result()


def _whole(decoded: Sequence[Any]) -> Pixels:
    """Return all as one batch.

    Raises:
        ProblemError: some are no usable images; it names them, and why.
    """
    faults = {index: one for index, one in enumerate(decoded) if isinstance(one, UndecodableError)}
    if not faults:
        return decoded[0].pixels[np.newaxis] if len(decoded) == 1 else np.stack([one.pixels for one in decoded])
    if len(decoded) == 1:
        raise ProblemError(400 if faults[0].area is None else 413, str(faults[0]))
    listed = "; ".join(f"{index}: {reason}" for index, reason in list(faults.items())[:10])
    sentence = f"{len(faults)} of {len(decoded)} images cannot be used (counted from 0): {listed}"
    raise ProblemError(400, sentence, indices=list(faults))
