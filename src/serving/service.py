"""The BentoML service: `bentoml serve src.serving.service:ImageClassifier`, or `make serve`, which looks first.

Reads out/model (model.onnx, card.json), manifest.json and, in an image, out/release/identity.json. `bentofile.yaml` names
its files, src/release/Dockerfile makes its image. This module is imported by the
process that watches and by those that compute: what only the latter need is imported when they start.
"""

import sys
from typing import NoReturn

import bentoml

from src.core.command import UserError
from src.serving import logs, settings
from src.serving.engine import Engine, share
from src.serving.http import Application


def _fail(error: UserError) -> NoReturn:
    print(f"serve: {error}", file=sys.stderr, flush=True)
    raise SystemExit(1)


try:
    ENGINE = Engine(settings.read())
except UserError as error:
    _fail(error)

# one thread of number libraries, few memory pools that give large pieces back, no traces (they would go nowhere);
# src/release/Dockerfile has them too, for the process that watches
ENVIRONMENT = {
    "OTEL_SDK_DISABLED": "true",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "1048576",
    "BENTOML_DO_NOT_TRACK": "true",
    "ORT_DISABLE_TELEMETRY": "1",  # since 1.29 the official Linux builds send session facts to their maker
}


logs.configure()  # before uvicorn asks whether somebody reads its own lines of access


@bentoml.service(
    name="image-classifier",
    workers=ENGINE.settings.workers,
    traffic={"timeout": ENGINE.settings.timeout + 10},  # the application's own limit comes first
    metrics={"enabled": False},  # the application's are better: see src/serving/metrics.py
    tracing={"excluded_urls": ".*"},  # nothing would read the traces, and they cost a request as much as a small model
    logging={"access": {"enabled": False}},
    envs=[{"name": name, "value": value} for name, value in ENVIRONMENT.items()],
)
class ImageClassifier:
    """Classify images with the reviewed model."""

    def __init__(self) -> None:
        logs.configure()  # BentoML has set up its own since
        ENGINE.start()

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Look at the model before any worker starts: what is not there now will not come by starting again."""
        try:
            ENGINE.check()
        except UserError as error:
            _fail(error)
        share(ENGINE.settings.workers)


ImageClassifier.add_asgi_middleware(Application, engine=ENGINE)  # type: ignore[attr-defined]
