"""The work of batch inference: each thread reads, decodes and computes a piece of its own; results keep their order.

A thread computes alone (ONNX Runtime, the decoders and the disk leave Python's lock), because threads that share
one batch wait for each other: with many images at hand that costs a third and gains nothing.
"""

import math
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from src.core.command import UserError
from src.core.inference import Model
from src.images.images import UndecodableError
from src.serving import layout
from src.serving.batch_rows import Content, Piece, Ranked, Scored
from src.serving.decoding import look

Pixels = NDArray[np.uint8]

_SMALL = 1_000_000  # pixels of an image that any thread may decode at any time
_BYTES_OF_A_PIXEL = 33  # of a transparent image while it is laid on white, as measured for the service
_AHEAD = 2  # pieces for each thread that are in work, or done before one that is earlier
_BATCH_BYTES = 2**17  # of pixels that are computed together: on a CPU, what the network makes of more leaves the cache


class Scorer:
    """From a piece to what the model says of its images, under the limits of the service. Threads share it."""

    def __init__(self, model: Model, top: int, max_pixels: int, threads: int) -> None:
        """Take a model that computes in the thread that asks; `top` labels an image are told."""
        self._model, self._top, self._fit = model, top, str(model.card["fit"])
        self._max_pixels, self._small = max_pixels, min(_SMALL, max_pixels)
        room = layout.memory()
        together = threads if room is None else int(room // 2 // (max_pixels * _BYTES_OF_A_PIXEL))
        self._large = threading.BoundedSemaphore(max(1, min(threads, together)))

    def score(self, piece: Piece) -> Scored:
        """Read and decode the images of a piece, and ask the model.

        Raises:
            UserError: ONNX Runtime fails, for want of memory perhaps.
        """
        pixels = np.empty((len(piece), *self._model.size, self._model.channels), dtype=np.uint8)
        errors: list[str | None] = []
        good = 0
        for content in piece.contents():
            try:
                pixels[good] = self._pixels(content)
                good += 1
                errors.append(None)
            except UndecodableError as error:
                errors.append(str(error).replace("prepare.max_megapixels", "SERVE_MAX_MEGAPIXELS"))
        ranked = iter(self._ranked(pixels[:good]))
        rows: list[Ranked] = [[] if error else next(ranked) for error in errors]
        for place, row in enumerate(rows):
            if not row and not errors[place]:
                errors[place] = "the model gave a probability that is no number"
        return Scored(piece, rows, errors)

    def _pixels(self, content: Content) -> Pixels:
        if isinstance(content, UndecodableError):
            raise content
        try:
            return self._load(content, self._small)
        except UndecodableError as error:
            if error.area is None or error.area > self._max_pixels:
                raise
        with self._large:
            return self._load(content, self._max_pixels)

    def _load(self, content: bytes, most: int) -> Pixels:
        return look(content, (most, self._max_pixels), self._model.size, self._model.channels, self._fit)[0]

    def _ranked(self, pixels: Pixels) -> list[Ranked]:
        """Return the most probable labels of each image, rounded as the service does; nothing where one is no number."""
        try:
            probabilities = self._model.probabilities(pixels)
        except Exception as error:  # ONNX Runtime raises classes of its own
            reason = str(error).splitlines()[0][:200]
            raise UserError(
                f"the model failed on {len(pixels)} images ({reason}): run again with a smaller --batch"
            ) from None
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, : self._top]
        values = np.take_along_axis(probabilities, order, axis=1).tolist()
        finite = np.isfinite(probabilities.sum(axis=1))
        classes = self._model.classes
        return [
            [(classes[i], round(value, 6)) for i, value in zip(places, row, strict=True)] if whole else []
            for places, row, whole in zip(order.tolist(), values, finite, strict=True)
        ]


def batch_size(model: Model) -> int:
    """Return how many images are computed together: a power of two from 4 to 128, fewer the larger they are."""
    fitting = _BATCH_BYTES // (model.size[0] * model.size[1] * model.channels)
    return int(2 ** int(math.log2(min(max(fitting, 4), 128))))


def score_all(pieces: Iterator[Piece], scorer: Scorer, threads: int) -> Generator[Scored, None, None]:
    """Score pieces in so many threads; yield them in their order, with a bounded number in memory."""
    waiting: deque[Future[Scored]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="score")
    try:
        while True:
            for piece in islice(pieces, _AHEAD * threads - len(waiting)):
                waiting.append(pool.submit(scorer.score, piece))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
