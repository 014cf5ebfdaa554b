"""From the bytes of image files to probabilities, through the very code that made the training images."""

import gc
import io
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src import images
from src.images import UndecodableError
from src.inference import Model
from src.serving.identity import Identity
from src.serving.problems import ProblemError
from src.serving.settings import Settings

Predictions = list[list[tuple[str, float]]]

# pixels; a transparent one was measured to take 33 bytes while it is laid on white
_SMALL_TOGETHER = 2_000_000  # of all threads at once: 66 MB
_SMALL = 500_000  # so large each may be in any case: larger ones would wait for each other where there are many cores


class Predictor:
    """The model, and the threads that decode and compute. Each request is computed by one thread on one core."""

    def __init__(self, identity: Identity, settings: Settings) -> None:
        """Open the model and warm it up.

        Raises:
            UserError: ONNX Runtime cannot open it, or it has other classes than its card.
        """
        self._model = Model(settings.model, threads=1)  # more threads would only take cores from other requests
        self._fit = str(identity.card["fit"])
        self._max_pixels = settings.max_pixels
        self._small = min(max(_SMALL, _SMALL_TOGETHER // settings.threads), settings.max_pixels)
        self._one_large_at_a_time = threading.Lock()
        self.threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="predict")
        self._warm_up(settings.threads)

    def _warm_up(self, threads: int) -> None:
        """Let decoders, memory pools and threads come into being before the first request does."""
        picture = Image.new("RGB", (self._model.size[1], self._model.size[0]))
        files = [io.BytesIO() for _ in images.FORMATS]
        for file, kind in zip(files, images.FORMATS, strict=True):
            picture.save(file, kind)
        contents = [file.getvalue() for file in files]
        for _ in range(2):
            list(self.threads.map(lambda _: self.predict(contents, 1, time.monotonic() + 60), range(threads)))
        gc.collect()
        gc.freeze()  # what lives now lives on: the collector need not look at it again

    def predict(self, contents: Sequence[bytes], top: int, deadline: float) -> Predictions:
        """Return for each image file the `top` most probable labels with their probabilities, falling.

        Args:
            contents: the files' bytes.
            top: how many labels, 1 to the number of classes.
            deadline: `time.monotonic()` after which nobody waits for the answer.

        Raises:
            ProblemError: a file is no usable image (400; 413 where it is alone and too large), or time is over (504).
        """
        batch = np.stack(self._decode_all(contents, deadline))
        check_time(deadline)
        probabilities = self._model.probabilities(batch)
        if not np.isfinite(probabilities).all():
            raise ValueError("the model gave a probability that is no number")
        return [self._top(row, top) for row in probabilities]

    def _top(self, row: NDArray[np.float32], top: int) -> list[tuple[str, float]]:
        order = np.argsort(-row, kind="stable")[:top]
        return [(self._model.classes[i], round(float(row[i]), 6)) for i in order]

    def _decode_all(self, contents: Sequence[bytes], deadline: float) -> list[images.Pixels]:
        faults: dict[int, str] = {}
        decoded = []
        for index, content in enumerate(contents):
            check_time(deadline)
            try:
                decoded.append(self._decode(content, deadline))
            except UndecodableError as error:
                faults[index] = _reason(error)
        if not faults:
            return decoded
        if len(contents) == 1:
            raise ProblemError(413 if faults[0].startswith("too large") else 400, faults[0])
        listed = "; ".join(f"{index}: {reason}" for index, reason in list(faults.items())[:10])
        sentence = f"{len(faults)} of {len(contents)} images cannot be used (counted from 0): {listed}"
        raise ProblemError(400, sentence, indices=list(faults))

    def _decode(self, content: bytes, deadline: float) -> images.Pixels:
        """Decode one file; of large images only one at a time, so that memory stays within that of one."""
        if not content:
            raise UndecodableError("empty file: 0 bytes")
        try:
            return self._pixels(content, self._small)
        except UndecodableError as error:
            if self._max_pixels == self._small or not str(error).startswith("too large"):
                raise
        if not self._one_large_at_a_time.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise _late()
        try:
            return self._pixels(content, self._max_pixels)
        finally:
            self._one_large_at_a_time.release()

    def _pixels(self, content: bytes, max_pixels: int) -> images.Pixels:
        return images.fit(images.decode(content, max_pixels).pixels, self._model.size, self._model.channels, self._fit)


def check_time(deadline: float) -> None:
    """Stop work for which nobody waits any more.

    Raises:
        ProblemError: the deadline has passed.
    """
    if time.monotonic() > deadline:
        raise _late()


def _late() -> ProblemError:
    return ProblemError(
        504, "not computed in time: the service is busy, or the images are many or large", {"Retry-After": "1"}
    )


def _reason(error: UndecodableError) -> str:
    """Return the reason in a client's words: the parameter that limits training images is not what limits these."""
    return str(error).replace("prepare.max_megapixels", "the limit in megapixels,")
