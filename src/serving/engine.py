"""What answers requests: it loads the model beside the server, tells when it is ready, and limits how much it takes on."""

import atexit
import gc
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from src.core.command import UserError
from src.serving import identity
from src.serving.keys import Keys
from src.serving.problems import RETRY, ProblemError
from src.serving.settings import ROOT, Settings

if TYPE_CHECKING:  # imported by the process that computes only; the one that watches over it stays small
    from src.serving.identity import Identity
    from src.serving.model import ServedModel

_BODIES = 4  # of the largest size, in memory at once; smaller ones as many as fit into that
_SHARED = "SERVE_SHARED"  # names the folder in which the processes of one service count together
_COUNTED = "PROMETHEUS_MULTIPROC_DIR"  # likewise for prometheus_client, which reads it when it is imported
_PROBE = 2**20  # bytes: more than the counters of one process take

log = logging.getLogger("bentoml.image_classifier")  # below BentoML's own, whose handlers print it


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


def _count_together() -> Path | None:
    """Let prometheus_client keep the numbers of this process in the folder of all workers, and return that folder.

    Its files are mapped into memory: on a full disk the system would kill whoever counts, so there must be space for them.
    """
    os.environ.pop(_COUNTED, None)  # BentoML's folder: every service of this user empties it when it starts
    folder = os.environ.get(_SHARED)
    if not folder:
        return None
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROBE))
    except OSError as error:
        log.warning("this worker counts alone: /metrics tells only of the one it asks (%s)", error.strerror)
    else:
        os.environ[_COUNTED] = folder
        from src.serving import metrics

        metrics.forget_the_dead(Path(folder))
    return Path(folder)


class Engine:
    """The state of one worker process. `identity` and `model` are there once the model is loaded and warm."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.keys = Keys(settings.keys)
        self.identity: Identity | None = None
        self.model: ServedModel | None = None
        self.labels: list[str] = []  # as JSON has them
        self.signature = "}"  # how the answer to a prediction ends, in JSON
        self.headers: list[tuple[bytes, bytes]] = []  # of every answer to a POST
        self._active = 0
        self._held = 0

    @property
    def ready(self) -> bool:
        """Whether predictions are answered."""
        return self.model is not None

    def check(self) -> None:
        """Look whether the model is there and the one of its card, without loading it.

        Raises:
            UserError: it is not.
        """
        identity.read(self.settings.model, ROOT)

    def start(self) -> None:
        """Load the model before this worker takes connections: those that come meanwhile go to the others, or wait."""
        loading = threading.Thread(target=self.load, name="load")  # the event loop of here runs already
        loading.start()
        loading.join()

    def load(self) -> None:
        """Load the model and warm it up; a fault is logged in one sentence, and the service stays unready."""
        began = time.monotonic()
        try:
            found = identity.read(self.settings.model, ROOT)
            folder = _count_together()
            from src.serving.model import ServedModel

            model = ServedModel(found, self.settings, folder)
        except UserError as error:
            log.error("the model cannot be served: %s", error)  # noqa: TRY400 - a user's mistake has no trace
            return
        gc.collect()
        gc.freeze()  # what lives now lives on: the collector need not look at it again
        gc.set_threshold(5_000, 20, 50)  # a request makes few cycles, and a collection takes longer than it
        # what every answer repeats is written once
        self.labels = [json.dumps(label, ensure_ascii=False) for label in found.card.classes]
        signature = {"model_version": found.version, "manifest": found.manifest}
        self.signature = "," + json.dumps(signature, separators=(",", ":"), ensure_ascii=False)[1:]
        self.headers = [(b"x-model-version", found.version.encode())]
        self.headers += [(b"x-manifest", found.manifest.encode())] if found.manifest else []
        self.identity, self.model = found, model
        log.info("version %s ready after %.2f s: %s", found.version, time.monotonic() - began, model.layout)

    def admit(self) -> "ServedModel":
        """Take a request in, and return the model.

        Raises:
            ProblemError: the model is not loaded yet (503), or too many requests are here already (429).
        """
        if self.model is None:
            raise ProblemError(503, "the model is being loaded: try again in a second", RETRY)
        if self._active >= self.settings.concurrency:
            raise ProblemError(429, f"all {self.settings.concurrency} places are taken: try again in a second", RETRY)
        self._active += 1
        return self.model

    def release(self, size: int) -> None:
        """Let a request go that was taken in, with so many bytes of its body that `hold` had counted."""
        self._active -= 1
        self._held -= size

    def hold(self, size: int) -> None:
        """Count bytes of bodies in memory: many at once may not exhaust it.

        Raises:
            ProblemError: bodies take all the memory that they may (429).
        """
        if self._held + size > _BODIES * self.settings.max_body:
            raise ProblemError(429, "many large requests are here already: try again in a second", RETRY)
        self._held += size
