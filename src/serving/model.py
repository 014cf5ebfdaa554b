"""The model of one process: from image files or pixels to probabilities, and to where it looked."""

import asyncio
import io
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
from src.serving import layout
from src.serving.batching import Batcher, Observed, Probabilities
from src.serving.decoding import Decoder
from src.serving.identity import Identity
from src.serving.metrics import Metrics
from src.serving.problems import ProblemError, check_time
from src.serving.settings import Settings

_MEASURED = 1.0  # seconds between two batches whose input is measured
_TIMED = 8  # of so many requests, and of so many batches, one is timed: to count all would take as long as a small picture


class Explanation(NamedTuple):
    """Where the model looked: `heat` is float32 of shape (rows, columns) in 0..1."""

    label: str
    probability: float
    heat: NDArray[np.float32]


class ServedModel:
    """The model with its decoder and its queue."""

    def __init__(self, identity: Identity, settings: Settings, folder: Path | None) -> None:
        """Open the model, and warm everything up.

        Args:
            identity: says which precision the release has chosen.
            settings: of the service.
            folder: shared with other processes of this service.

        Raises:
            UserError: ONNX Runtime cannot open it, or it has other classes than its card.
        """
        released = str(identity.release.get("precision", "fp32"))
        self.precision = released if settings.precision == "auto" else settings.precision
        cpu = settings.device == "cpu"
        model = Model(settings.model, 1 if cpu else settings.threads, settings.device, self.precision)
        self.sha256, self.classes, self.metrics = model.sha256, model.classes, Metrics(identity, self.precision)
        self._compute, self._shape = model.probabilities, model.spec.shape
        self._max_batch, self._next_measured, self._requests, self._batches = settings.max_batch, 0.0, 0, 0
        self._decoder = Decoder(model.spec, settings.max_pixels, max(2, settings.threads), folder)
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="explain")
        example = np.zeros((1, *self._shape), dtype=np.uint8)
        self._compute(example)
        inline = cpu and not layout.is_heavy(settings.model)
        size = layout.batch(settings.model, settings.batch_seconds, inline=inline)
        lanes = 0 if inline else settings.threads if cpu else 1
        wide = None
        if lanes > 1 and layout.fits(2 * model.path.stat().st_size):  # its weights are there twice then
            wide = Model(settings.model, settings.threads, settings.device, self.precision).probabilities
            wide(example)
        self._batcher = Batcher(self._compute, size, settings.queue, self._observe, lanes, wide)
        self.layout = (
            f"{settings.workers} x {settings.threads} threads on {settings.device}, {self.precision}, batches of {size}"
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

    async def predict(self, contents: Sequence[bytes] | bytes, deadline: float) -> Probabilities:
        """Return the probabilities of some images, float32 (n, classes).

        Args:
            contents: image files; or as one object the pixels of images, uint8 of shape (n, height, width, channels).
            deadline: `time.monotonic()` after which nobody waits for the answer.

        Raises:
            ProblemError: see `Decoder.decode`, `Batcher.submit`; and pixels that are no whole number of images (400).
        """
        if isinstance(contents, bytes):
            pixels = self._array(contents)
        else:
            began = time.monotonic()
            pixels, areas = await self._decoder.decode(contents, deadline)
            if self._requests % _TIMED == 0:
                self.metrics.decode.observe(time.monotonic() - began)
                self.metrics.megapixels.observe(areas[0] / 1e6)
            self._requests += 1
        return await self._batcher.submit(pixels, deadline)

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

    def _observe(self, observed: Observed) -> None:
        metrics = self.metrics
        if self._batches % _TIMED == 0:
            metrics.batch.observe(len(observed.images))
            metrics.waiting.set(self._batcher.waiting)
            metrics.inference.observe(observed.seconds)
            metrics.queue.observe(observed.waited)
        self._batches += 1
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
        pixels, _ = await self._decoder.decode([content], deadline)
        probabilities = (await self._batcher.submit(pixels, deadline))[0]
        number = int(probabilities.argmax()) if label is None else self.classes.index(label)

        def compute(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
            check_time(deadline)
            return self._compute(batch)

        heat = await asyncio.wrap_future(self._helper.submit(occlusion, pixels[0], number, compute))
        return Explanation(self.classes[number], round(float(probabilities[number]), 6), heat)
