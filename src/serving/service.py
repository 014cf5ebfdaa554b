"""The BentoML service: `bentoml serve src.serving.service:ImageClassifier`, or `make serve`, which looks first.

Reads out/model (model.onnx, card.json), manifest.json and, in an image, out/release/identity.json. `bentofile.yaml` builds
it. This module is imported by two processes, the one that watches and the one that computes: what only the latter needs is
imported when it starts.
"""

import os
import re
import sys
from pathlib import Path
from typing import NoReturn

import bentoml
from bentoml.images import Image

from src.core.command import UserError
from src.serving import logs, settings
from src.serving.engine import Engine, share, watch


def _fail(error: UserError) -> NoReturn:
    print(f"serve: {error}", file=sys.stderr, flush=True)
    raise SystemExit(1)


def _engine() -> Engine:
    try:
        return Engine(settings.read())
    except UserError as error:
        _fail(error)


ENGINE = _engine()

HOME_FOLDERS = ("bentos", "models", "envs", "tmp", "prometheus_multiproc_dir")

# "none" is no distribution that BentoML knows: so it installs no compiler and no git (50 MB), which nothing here needs
IMAGE = Image(
    base_image=os.environ.get("BASE_IMAGE") or "python:3.11-slim",
    distro="none",
    python_version="3.11",
    lock_python_packages=False,
)
# BentoML would install the newest uv; this one is pinned, pip compares its SHA-256, and without the lock there is no image
UV = Path("requirements/uv.txt")
_pinned = " ".join(re.findall(r"^uv==\S+|--hash=\S+", UV.read_text(), re.MULTILINE)) if UV.is_file() else ""
IMAGE.run(f"echo '{_pinned}' | pip install --no-cache-dir --no-deps --require-hashes -r /dev/stdin && command -v uv")
# BentoML makes these at every start where they are not; made here, the root file system can be read-only
IMAGE.run("mkdir -p -m 755 " + " ".join(f"/home/bentoml/{name}" for name in HOME_FOLDERS))
# the official image has no bytecode of Python's library, which nobody can write later: each start would compile it anew
IMAGE.run(
    """python -c "import compileall, re, sysconfig; compileall.compile_dir(sysconfig.get_path('stdlib'), quiet=2, """
    """rx=re.compile('/(dist-packages|ensurepip|idlelib|lib2to3|pydoc_data|site-packages|test|tests|tkinter|turtledemo)/'))\""""
)

# one thread of number libraries, few memory pools that give large pieces back, no traces (they would go nowhere)
ENVIRONMENT = {
    "OTEL_SDK_DISABLED": "true",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "1048576",
    "BENTOML_DO_NOT_TRACK": "true",
    "ORT_DISABLE_TELEMETRY": "1",  # since 1.29 the official Linux builds send session facts to their maker
}


@bentoml.service(
    name="image-classifier",
    image=IMAGE,
    workers=ENGINE.settings.workers,
    traffic={"timeout": ENGINE.settings.timeout + 10},  # the front's own limit comes first
    metrics={"enabled": False},  # the front's are better: see src/serving/metrics.py
    logging={"access": {"enabled": False}},
    envs=[{"name": name, "value": value} for name, value in ENVIRONMENT.items()],
)
class ImageClassifier:
    """Classify images with the reviewed model."""

    def __init__(self) -> None:
        ENGINE.start(bentoml.server_context.worker_index)

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Look at the model before any worker starts: what is not there now will not come by starting again."""
        try:
            ENGINE.check()
        except UserError as error:
            _fail(error)
        logs.configure(ENGINE.settings)
        watch()
        share(ENGINE.settings.workers)

    async def __is_ready__(self) -> bool:
        """Tell /readyz."""
        return ENGINE.ready


if "uvicorn" in sys.modules:  # this is a worker; BentoML has no setting for the protocol of its server
    from uvicorn.config import HTTP_PROTOCOLS

    from src.serving.http import protocol

    logs.configure(ENGINE.settings)
    HTTP_PROTOCOLS["auto"] = protocol(ENGINE)  # type: ignore[assignment]
