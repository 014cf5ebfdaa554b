"""From the bytes of image files to what the model sees, through the very code that made the training images.

Small pictures are decoded where the request is, others in threads, and large ones one at a time in this container: so small
ones need not wait for large ones, and memory stays within that of one large picture.
"""

import asyncio
import fcntl
import io
import logging
import math
import re
import time
from collections.abc import Iterator, Sequence
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

_QUICK = 256 * 256  # pixels that are decoded within half a millisecond: a thread would take longer than they
_QUICK_BYTES = 4 * _QUICK
_QUICK_FILES = 4  # of one request
_QUICK_FORMATS = (b"\x89PNG", b"\xff\xd8")
_PROGRESSIVE = b"\xff\xc2"  # a JPEG of several scans over the whole picture
_SCAN = b"\xff\xda"
# pixels; a transparent one was measured to take 33 bytes while it is laid on white
_SMALL_TOGETHER = 2_000_000  # of all threads at once: 66 MB
_SMALL = 500_000  # so large each may be in any case: larger ones would wait for each other where there are many processors
_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd8\xff])")  # of a JPEG's segment; restarts have no length
_SCANS = 20  # of a progressive JPEG, which has about ten; each goes over the whole picture anew
_COMPRESSION, _JPEG = 259, 7  # a tag of TIFF, and its value for JPEG inside
_POLL = 0.01  # seconds


class Seen(NamedTuple):
    """What the model sees of a picture, uint8 of shape (height, width, channels), and how many pixels its file has."""

    pixels: Pixels
    area: int


def look(content: bytes, most: int, limit: int, spec: Spec) -> Seen:
    """Return what the model sees of a file, by the code that made the training images, within the limits of serving.

    Args:
        content: the file's bytes.
        most: pixels that are decoded now.
        limit: pixels that may be decoded at all.
        spec: what the model takes.

    Raises:
        UndecodableError: it is no usable image. `area` is set where it has too many pixels, for now or at all.
    """
    if not content:
        raise UndecodableError("empty file: 0 bytes")
    if content.count(_SCAN) > _SCANS and (_count_scans(content) > _SCANS or _is_progressive_tiff(content)):
        raise UndecodableError(f"a JPEG of more than {_SCANS} scans: save it again, as any program does")
    try:
        array, decoded = images.encode(content, spec, most)
        return Seen(array, math.prod(decoded.size))
    except UndecodableError as error:
        error.__context__ = error.__traceback__ = None  # else it keeps the file for long
        if error.area is None or error.area <= limit:
            raise
        raise UndecodableError(
            f"too large: {error.area / 1e6:g} megapixels, the limit is {limit / 1e6:g}", error.area
        ) from None


class Decoder:
    """The decoder of one process."""

    def __init__(self, spec: Spec, max_pixels: int, threads: int, folder: Path | None) -> None:
        """Start no thread yet.

        Args:
            spec: what the model takes.
            max_pixels: of a picture's file.
            threads: that decode pictures which are not small.
            folder: shared with the other processes of this service; None: there is none.
        """
        self._spec, self._max_pixels = spec, max_pixels
        self._small = min(max(_SMALL, _SMALL_TOGETHER // threads), max_pixels)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="decode-large")
        self._lock = folder / "large.lock" if folder else None

    async def decode(self, contents: Sequence[bytes], deadline: float) -> tuple[Pixels, list[int]]:
        """Return what the model sees of some image files, uint8 of shape (n, height, width, channels), and their own pixels.

        Args:
            contents: the files' bytes.
            deadline: `time.monotonic()` after which nobody waits for the answer.

        Raises:
            ProblemError: a file is no usable image (400; 413 where it is alone and too large), or time is over (504).
        """
        if len(contents) <= _QUICK_FILES and all(
            len(content) <= _QUICK_BYTES and content.startswith(_QUICK_FORMATS) and _PROGRESSIVE not in content
            for content in contents
        ):
            decoded = [self._look(content, min(_QUICK, self._small)) for content in contents]
        else:
            decoded = [None] * len(contents)
        slow = [place for place, one in enumerate(decoded) if one is None or _waits(one, self._max_pixels)]
        if slow:
            work = self._threads.submit(self._each, [contents[place] for place in slow], deadline)
            for place, one in zip(slow, await _in_time(work, deadline), strict=True):
                decoded[place] = one
                if _waits(one, self._max_pixels):
                    decoded[place] = await _in_time(self._large.submit(self._alone, contents[place], deadline), deadline)
        return _whole(decoded), [one.area for one in decoded]

    def _look(self, content: bytes, most: int) -> Any:
        """Return the pixels of a file, or why it has none."""
        try:
            return look(content, most, self._max_pixels, self._spec)
        except UndecodableError as error:
            return error

    def _each(self, contents: Sequence[bytes], deadline: float) -> list[Any]:
        decoded = []
        for content in contents:
            check_time(deadline)
            decoded.append(self._look(content, self._small))
        return decoded

    def _alone(self, content: bytes, deadline: float) -> Any:
        check_time(deadline)
        with _held(self._lock, deadline):
            return self._look(content, self._max_pixels)


def _waits(one: Any, limit: int) -> bool:
    """Say whether a file was not decoded for having too many pixels for now, but not too many at all."""
    return isinstance(one, UndecodableError) and one.area is not None and one.area <= limit


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


@contextmanager
def _held(lock: Path | None, deadline: float) -> Iterator[None]:
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
