"""A server as a process of its own: started on a free port, watched, and stopped with all that it started."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import psutil

from src.core.command import UserError

_START = 120.0  # seconds
_STOP = 10.0
_TICK = 0.1
_IN_A_ROW = 20  # answers on new connections


class Server:
    """One running server."""

    def __init__(self, name: str, command: Sequence[str], ready: str, folder: Path, home: Path, **variables: str) -> None:
        """Start it, without waiting for it.

        Args:
            name: how messages call it.
            command: of Python (`-m ...`), without the port.
            ready: address that answers with 200 once it is ready.
            folder: to run it in.
            home: a private folder, for its log and what BentoML keeps.
            variables: of the environment, besides those of this process.
        """
        self.name = name
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{port}"
        self._ready = self.url + ready
        self._log = home / f"{name.replace(' ', '-')}.log"
        own = {"BENTOML_HOME": str(home / "bentoml-home"), "BENTOML_DO_NOT_TRACK": "true", "PYTHONPATH": str(folder)}
        # without how a service would be set here: what is measured are the defaults
        settings = ("SERVE_", "BENTOML_", "PROMETHEUS_")
        kept = {variable: value for variable, value in os.environ.items() if not variable.startswith(settings)}
        environment = {**kept, **own, **variables}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command, "--port", str(port)], cwd=folder, env=environment, stdout=log, stderr=log
            )

    def wait(self) -> None:
        """Wait until it is ready, with all its workers: each answers for itself, and any of them may get a connection.

        Raises:
            UserError: it ended, or does not get ready.
        """
        until, good = time.monotonic() + _START, 0
        while time.monotonic() < until and self._process.poll() is None:
            good = good + 1 if self._is_ready() else 0
            if good > _IN_A_ROW:
                return
            time.sleep(_TICK / 4)
        ended = self._process.poll() is not None
        raise UserError(f"{self.name} {'ended' if ended else 'was not ready in time'}: its log says: {self.said()}")

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self._ready, timeout=5) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except OSError:
            return False

    def said(self) -> str:
        """Return the end of its log, on one line."""
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return " / ".join(lines[-2:])[-400:] or "nothing"

    def stop(self) -> None:
        """Stop it, and the workers that BentoML puts into sessions of their own."""
        found, until = set(self._processes()), time.monotonic() + _STOP
        self._process.terminate()
        while self._process.poll() is None and time.monotonic() < until:
            found |= set(self._processes())  # one that is starting up may start more
            time.sleep(_TICK / 2)
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        psutil.wait_procs(found, timeout=_STOP)

    def _processes(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
