"""What answers requests: it loads the model beside the server, tells when it is ready, and limits how much it takes on."""

import asyncio
import ctypes
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from src.command import UserError
from src.serving import identity
from src.serving.problems import ProblemError
from src.serving.settings import ROOT, Settings

if TYPE_CHECKING:  # imported by the process that computes only; the one that watches over it stays small
    from src.serving.identity import Identity
    from src.serving.metrics import Metrics
    from src.serving.predictor import Predictions, Predictor

_BODIES = 4  # of the largest size, in memory at once; smaller ones as many as fit into that

log = logging.getLogger("bentoml.image_classifier")  # below BentoML's own, whose handlers print it


def _end_with_parent() -> None:
    """Ask Linux for SIGTERM when the process that watches over this one dies.

    BentoML gives each worker a session of its own, so that killing the server's process group does not reach it: it would
    live on and keep the port. See prctl(2), PR_SET_PDEATHSIG.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _place_metrics(workers: int) -> None:
    """Say where metrics live, before their library is imported: in memory, or for several processes in files.

    BentoML names a folder for them, which is on the read-only root in a hardened container; there /tmp is private.
    """
    given = os.environ.pop("PROMETHEUS_MULTIPROC_DIR", "")
    if workers > 1:
        shared = Path(given if os.access(given, os.W_OK) else f"{tempfile.gettempdir()}/serving-metrics-{os.getppid()}")
        shared.mkdir(mode=0o700, exist_ok=True)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(shared)


class Engine:
    """The state of one worker process. `identity` and `predictor` are there once the model is loaded and warm."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.identity: Identity | None = None
        self.metrics: Metrics | None = None
        self._predictor: Predictor | None = None
        self._active = 0
        self._held = 0

    @property
    def ready(self) -> bool:
        """Whether predictions are answered."""
        return self._predictor is not None

    def check(self) -> None:
        """Look whether the model is there and the one of its card, without loading it.

        Raises:
            UserError: it is not.
        """
        identity.read(self.settings.model, ROOT)

    def start(self) -> None:
        """Begin to load the model, in a thread: meanwhile /livez says that the process lives and /readyz that it waits."""
        _end_with_parent()
        _place_metrics(self.settings.workers)
        from src.serving.metrics import Metrics

        self.metrics = Metrics()
        threading.Thread(target=self.load, name="load", daemon=True).start()

    def load(self) -> None:
        """Load the model and warm it up; a fault is logged in one sentence, and the service stays unready."""
        began = time.monotonic()
        try:
            from src.serving.predictor import Predictor

            found = identity.read(self.settings.model, ROOT)
            predictor = Predictor(found, self.settings)
        except UserError as error:
            log.error("the model cannot be served: %s", error)  # noqa: TRY400 - a user's mistake has no trace
            return
        if self.metrics:
            self.metrics.introduce(found)
        self.identity, self._predictor = found, predictor
        log.info("version %s ready after %.2f s, %d threads", found.version, time.monotonic() - began, self.settings.threads)

    def admit(self) -> None:
        """Take a request in.

        Raises:
            ProblemError: the model is not loaded yet (503), or too many requests are here already (429).
        """
        if not self.ready:
            raise ProblemError(503, "the model is being loaded: try again in a second", {"Retry-After": "1"})
        if self._active >= self.settings.concurrency:
            sentence = f"all {self.settings.concurrency} places are taken: try again in a second"
            raise ProblemError(429, sentence, {"Retry-After": "1"})
        self._active += 1

    def release(self) -> None:
        """Let a request go that was taken in."""
        self._active -= 1

    def hold(self, size: int) -> None:
        """Count bytes of bodies in memory, or with a negative size let them go: many at once may not exhaust it.

        Raises:
            ProblemError: bodies take all the memory that they may (429).
        """
        if size > 0 and self._held + size > _BODIES * self.settings.max_body:
            raise ProblemError(429, "many large requests are here already: try again in a second", {"Retry-After": "1"})
        self._held += size

    async def predict(self, contents: Sequence[bytes], top: int, deadline: float) -> "Predictions":
        """Compute in a thread what `Predictor.predict` says, and count it.

        Raises:
            ProblemError: see there; and 504 when the deadline passes while the request waits for a thread.
        """
        assert self._predictor
        work = self._predictor.threads.submit(self._predictor.predict, contents, top, deadline)
        waiting = asyncio.wrap_future(work)
        done, _ = await asyncio.wait([waiting], timeout=deadline - time.monotonic() + 0.05)
        if not done:
            waiting.cancel()  # and with it the work, if no thread has begun it
            raise ProblemError(504, "not computed in time: the service is busy", {"Retry-After": "1"})
        predictions = waiting.result()
        if self.metrics:
            self.metrics.predicted(predictions)
        return predictions
