"""What answers requests: it loads the model beside the server, tells when it is ready, and limits how much it takes on."""

import atexit
import ctypes
import gc
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from src.core.command import UserError
from src.serving import identity, logs
from src.serving.keys import Keys
from src.serving.problems import ProblemError
from src.serving.settings import ROOT, Settings

if TYPE_CHECKING:  # imported by the process that computes only; the one that watches over it stays small
    from src.serving.identity import Identity
    from src.serving.metrics import Metrics
    from src.serving.predictor import Explanation, Predictor

_BODIES = 4  # of the largest size, in memory at once; smaller ones as many as fit into that
_SHARED = "SERVE_SHARED"  # names the folder in which the processes of one service count together
_WATCHER = "SERVE_WATCHER"  # the process that starts the workers and watches over them

log = logging.getLogger("bentoml.image_classifier")  # below BentoML's own, whose handlers print it


def watch() -> None:
    """Tell the workers that this process starts which one watches over them."""
    os.environ[_WATCHER] = str(os.getpid())


def _end_with_watcher() -> None:
    """Ask Linux for SIGTERM when the process that watches over this one dies; if it is dead, end now.

    BentoML gives each worker a session of its own, so that killing the server's process group does not reach it: it would
    live on and keep the port. See prctl(2), PR_SET_PDEATHSIG, which tells of no death that has already been.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.environ.get(_WATCHER, str(os.getppid())) != str(os.getppid()):
        os.kill(os.getpid(), signal.SIGTERM)


def share(workers: int) -> None:
    """Make the folder in which several workers count together, and remove it when this process ends.

    It is in /tmp, which is private in a container whose root is read-only. Without space for it each worker counts alone.
    """
    if workers < 2:
        return
    try:
        folder = tempfile.mkdtemp(prefix="image-classifier-")
    except OSError as error:
        log.warning("the workers cannot count together: /metrics tells of one only (%s)", error.strerror)
        return
    os.environ[_SHARED] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


class Engine:
    """The state of one worker process. `identity` and `predictor` are there once the model is loaded and warm."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.keys = Keys(settings.keys)
        self.identity: Identity | None = None
        self.metrics: Metrics | None = None
        self.served: dict[str, str] = {}  # which file, and by which arithmetic
        self.written: dict[str, str] = {}  # each label as JSON has it
        self.signature = b"}"  # how the answer to a prediction ends, in JSON
        self.headers: list[tuple[bytes, bytes]] = []  # of every answer to a prediction
        self.predictor: Predictor | None = None
        self._shared = Path(os.environ[_SHARED]) if _SHARED in os.environ else None
        self._active = 0
        self._held = 0
        self._explaining = False

    @property
    def ready(self) -> bool:
        """Whether predictions are answered."""
        return self.predictor is not None

    def check(self) -> None:
        """Look whether the model is there and the one of its card, without loading it.

        Raises:
            UserError: it is not.
        """
        identity.read(self.settings.model, ROOT)

    def start(self, worker: int = 1) -> None:
        """Load the model before this worker takes connections: those that come meanwhile go to the others, or wait.

        Args:
            worker: number of this process among those of the service; one that takes its place counts on.
        """
        _end_with_watcher()
        loading = threading.Thread(target=self.load, args=(worker,), name="load")  # the event loop of here runs already
        loading.start()
        loading.join()

    def load(self, worker: int = 1) -> None:
        """Load the model and warm it up; a fault is logged in one sentence, and the service stays unready."""
        began = time.monotonic()
        try:
            from src.serving.predictor import Predictor

            found = identity.read(self.settings.model, ROOT)
            self.metrics = self._count(found, worker)
            predictor = Predictor(found, self.settings, self.metrics, self._shared)
        except UserError as error:
            log.error("the model cannot be served: %s", error)  # noqa: TRY400 - a user's mistake has no trace
            return
        self.metrics.introduce(found, predictor.precision)
        gc.collect()
        gc.freeze()  # what lives now lives on: the collector need not look at it again
        gc.set_threshold(5_000, 20, 50)  # a request makes few cycles, and a collection takes longer than it
        self.served = {"precision": predictor.precision, "served_sha256": predictor.sha256}
        # what every answer repeats is written once
        self.written = {label: json.dumps(label, ensure_ascii=False) for label in found.card.classes}
        signature = {"model_version": found.version, "manifest": found.manifest}
        self.signature = b"," + json.dumps(signature, separators=(",", ":"), ensure_ascii=False).encode()[1:]
        self.headers = [(b"x-model-version", found.version.encode())]
        self.headers += [(b"x-manifest", found.manifest.encode())] if found.manifest else []
        self.identity, self.predictor = found, predictor
        log.info("version %s ready after %.2f s: %s", found.version, time.monotonic() - began, predictor.layout)

    def _count(self, found: "Identity", worker: int) -> "Metrics":
        from src.serving.metrics import Metrics

        classes = found.card.classes
        if self._shared:
            try:
                return Metrics(classes, self._shared / f"{worker}.board")
            except OSError as error:
                log.warning("this worker counts alone: /metrics tells only of the one it asks (%s)", error.strerror)
        return Metrics(classes)

    def admit(self) -> None:
        """Take a request in.

        Raises:
            ProblemError: the model is not loaded yet (503), or too many requests are here already (429).
        """
        if self.predictor is None:
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

    async def explain(self, content: bytes, label: str | None, deadline: float) -> "Explanation":
        """Return where the model looked, as `Predictor.explain` says: one at a time, for it costs as much as many images.

        Raises:
            ProblemError: another one is on its way (429); and see there.
        """
        assert self.predictor
        if self._explaining:
            raise ProblemError(429, "another picture is being explained: try again in a second", {"Retry-After": "1"})
        self._explaining = True
        try:
            return await self.predictor.explain(content, label, deadline)
        finally:
            self._explaining = False

    def refused(self, problem: ProblemError, request: str) -> None:
        """Count what never became a request with a route, and tell the log."""
        if self.metrics:
            self.metrics.answered("other", problem.status, 0.0)
        logs.access("", "other", problem.status, 0.0, request, "", "", problem.detail)
