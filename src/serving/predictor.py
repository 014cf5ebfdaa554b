"""The model of one process: from image files or pixels to labels with probabilities, and to where it looked."""

import asyncio
import io
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.core import statistics
from src.core.inference import Model
from src.images import images
from src.images.occlusion import occlusion
from src.serving import batching, layout
from src.serving.batching import Batcher, Observed
from src.serving.decoding import Decoder
from src.serving.identity import Identity
from src.serving.metrics import Metrics
from src.serving.problems import ProblemError, check_time
from src.serving.settings import Settings

Predictions = list[list[tuple[str, float]]]

_INLINE = 0.002  # seconds of one image: less than that is computed right where requests are, for a thread costs time too
_INLINE_BATCH = 0.005  # seconds that requests may have to wait for a batch there
_LARGEST = 64  # images of a batch: larger ones gain nothing more
_MEASURED = 1.0  # seconds between two batches whose input is measured


class Explanation(NamedTuple):
    """Where the model looked: `heat` is float32 of shape (rows, columns) in 0..1."""

    label: str
    probability: float
    heat: NDArray[np.float32]


def _wide(settings: Settings, precision: str, file: Path, example: NDArray[np.uint8]) -> batching.Compute | None:
    """Return the model computing on all threads, for an image that is alone; None where its weights do not fit twice."""
    if not layout.fits(2 * file.stat().st_size):
        return None
    compute = Model(settings.model, settings.threads, settings.device, precision).probabilities
    compute(example)
    return compute


class Predictor:
    """The model with its queue and decoder."""

    def __init__(self, identity: Identity, settings: Settings, metrics: Metrics, folder: Path | None) -> None:
        """Open the model, measure it, and warm everything up.

        Args:
            identity: says which precision the release has chosen.
            settings: of the service.
            metrics: told of every prediction.
            folder: shared with other processes of this service.

        Raises:
            UserError: ONNX Runtime cannot open it, or it has other classes than its card.
        """
        released = str(identity.release.get("precision", "fp32"))
        self.precision = released if settings.precision == "auto" else settings.precision
        model = Model(settings.model, 1 if settings.device == "cpu" else settings.threads, settings.device, self.precision)
        self.sha256, self.classes = model.sha256, model.classes
        self._compute, self._metrics = model.probabilities, metrics
        self._shape = model.spec.shape
        self._max_batch, self._next_measured = settings.max_batch, 0.0
        self._decoder = Decoder(
            model.spec,
            settings.max_pixels,
            max(2, settings.threads),
            folder,
            metrics.seen,
        )
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="explain")
        example = np.zeros((1, *self._shape), dtype=np.uint8)
        size, single = batching.fitting(self._compute, example, settings.batch_seconds, _LARGEST)
        inline = single < _INLINE and settings.device == "cpu"
        if inline:
            size = max(1, min(size, int(_INLINE_BATCH / single)))
        lanes = 0 if inline else settings.threads if settings.device == "cpu" else 1
        wide = _wide(settings, self.precision, model.path, example) if lanes > 1 else None
        self._batcher = Batcher(self._compute, size, settings.queue, self._observe, lanes, wide)
        self.layout = (
            f"{settings.workers} x {settings.threads} threads on {settings.device}, {self.precision}, "
            f"batches up to {size}, {single * 1000:.2f} ms an image"
        )
        asyncio.run(self._warm_up())

    async def _warm_up(self) -> None:
        """Let decoders, memory pools and threads come into being before the first request does."""
        picture = Image.new("RGB", (self._shape[1], self._shape[0]))
        files = [io.BytesIO() for _ in images.FORMATS]
        for file, kind in zip(files, images.FORMATS, strict=True):
            picture.save(file, kind)
        contents = [file.getvalue() for file in files]
        for chosen in (contents, contents[:1], contents):
            await self._decoder.decode(chosen, time.monotonic() + 60)

    async def predict(self, contents: Sequence[bytes] | bytes, top: int, deadline: float) -> Predictions:
        """Return for each image the `top` most probable labels with their probabilities, falling.

        Args:
            contents: image files; or as one object the pixels of images, uint8 of shape (n, height, width, channels).
            top: how many labels, 1 to the number of classes.
            deadline: `time.monotonic()` after which nobody waits for the answer.

        Raises:
            ProblemError: see `Decoder.decode`, `Batcher.submit`; and pixels that are no whole number of images (400).
        """
        if isinstance(contents, bytes):
            pixels = self._array(contents)
        else:
            began = time.monotonic()
            pixels = await self._decoder.decode(contents, deadline)
            self._metrics.took("decode", time.monotonic() - began)
        probabilities = await self._batcher.submit(pixels, deadline)
        return [self._ranked(row, top) for row in probabilities]

    def _array(self, content: bytes) -> NDArray[np.uint8]:
        size = int(np.prod(self._shape))
        number, rest = divmod(len(content), size)
        if rest or not 1 <= number <= self._max_batch:
            shape = "x".join(map(str, self._shape))
            sentence = (
                f"{len(content)} bytes are not 1 to {self._max_batch} images of {shape} uint8 (height, width, channels)"
            )
            raise ProblemError(400, f"{sentence}, {size} bytes each: send pixels of that shape")
        return np.frombuffer(content, dtype=np.uint8).reshape(number, *self._shape)

    def _ranked(self, row: NDArray[np.float32], top: int) -> list[tuple[str, float]]:
        values, order = row.tolist(), np.argsort(-row, kind="stable")[:top].tolist()
        if not math.isfinite(sum(values)):
            raise ValueError("the model gave a probability that is no number")
        self._metrics.predicted(order[0], values[order[0]])
        return [(self.classes[i], round(values[i], 6)) for i in order]

    def _observe(self, observed: Observed) -> None:
        metrics = self._metrics
        metrics.batch(len(observed.images), self._batcher.waiting)
        metrics.took("inference", observed.seconds)
        for seconds in observed.waited:
            metrics.took("queue", seconds)
        now = time.monotonic()
        if now >= self._next_measured:  # a sample: to measure a picture takes as long as to classify a small one
            self._next_measured = now + _MEASURED
            metrics.measured(statistics.measure(observed.images[:1]))

    async def explain(self, content: bytes, label: str | None, deadline: float) -> Explanation:
        """Return how much each place of a picture spoke for a label; without one, for the most probable.

        Args:
            content: an image file.
            label: one of the classes.
            deadline: `time.monotonic()` after which nobody waits for the answer.

        Raises:
            ProblemError: there is no such label (400); else as `predict`.
        """
        if label is not None and label not in self.classes:
            raise ProblemError(400, f"there is no label {label[:40]!r}: GET /model lists them under classes")
        pixels = await self._decoder.decode([content], deadline)
        probabilities = (await self._batcher.submit(pixels, deadline))[0]
        number = int(probabilities.argmax()) if label is None else self.classes.index(label)

        def compute(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
            check_time(deadline)
            return self._compute(batch)

        work = self._helper.submit(occlusion, pixels[0], number, compute)
        heat = await asyncio.wrap_future(work)
        return Explanation(self.classes[number], round(float(probabilities[number]), 6), heat)
