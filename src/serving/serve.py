"""Serve the current model on this machine, without a container: `make serve`.

Reads out/model, which the pipeline made; BentoML's own files go to out/bentoml, or where BENTOML_HOME says.
http://127.0.0.1:3000 shows what can be asked.

python -m src serve [--port 3000] [--host 127.0.0.1] [--model out/model]
"""

import argparse
import math
import os
import socket
import sys
from pathlib import Path

from src.core.command import UserError
from src.serving import identity, settings
from src.serving.settings import ROOT

SERVICE = "src.serving.service:ImageClassifier"
_GRACE = 5  # seconds beyond the longest request: uvicorn would wait for ever for a connection that came as it stopped


def main() -> None:
    """Look whether the model can be served, then become the server."""
    parser = argparse.ArgumentParser(prog="serve", description="Serve a model over HTTP")
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--host", default="127.0.0.1", help="127.0.0.1: this machine only; 0.0.0.0: whoever reaches it")
    parser.add_argument("--model", type=Path, default=settings.read().model, help="folder with model.onnx and card.json")
    given = parser.parse_args()
    folder = given.model.absolute()
    found = identity.read(folder, ROOT)
    # BentoML would tell of a port that cannot be had by a traceback
    with socket.socket(socket.AF_INET6 if ":" in given.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((given.host, given.port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"port {given.port} of {given.host} cannot be used ({error}): name another with --port"
            ) from None
    host = "127.0.0.1" if given.host in ("0.0.0.0", "::") else given.host  # noqa: S104 - to show, not to listen
    print(f"serve: {found.card.network}, version {found.version}: http://{host}:{given.port} (Ctrl-C stops it)", flush=True)
    os.environ.setdefault("BENTOML_HOME", str(ROOT / "out" / "bentoml"))  # else below the home folder, perhaps read-only
    os.environ |= {"SERVE_MODEL": str(folder), "BENTOML_DO_NOT_TRACK": "true", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "bentoml", "serve", SERVICE, "--host", given.host, "--port", str(given.port)]
    command += ["--timeout-graceful-shutdown", str(math.ceil(settings.read().timeout) + _GRACE)]
    os.chdir(ROOT)
    os.execv(sys.executable, command)  # noqa: S606 - no shell is wanted
