"""Commands of the release on small versions instead of BentoML's, each in a process of its own. The guard is the real one.

What the commands import takes seconds, MLflow above all: one process imports it, and each command is a fork of that.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conftest import ROOT

from src.release import site
from src.release.journal import Journal
from src.release.processes import Processes
from src.system.command_line import run

_IMPORTED = [
    "mlflow.store.model_registry.sqlalchemy_workspace_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    *(f"src.release.{command}" for command in ("deploy", "rollback", "status")),
]
_FORKS = multiprocessing.get_context("forkserver")


class SmallProcesses(Processes):
    """Processes with a small server in place of BentoML; nothing is to be installed."""

    def _command(self, bento: Path, port: int) -> list[str]:
        return [sys.executable, str(ROOT / "tests" / "small_version.py"), str(bento), str(port)]

    def _python(self, bento: Path) -> Path:
        return Path(sys.executable)


class Command:
    """One command under way, as `python -m src COMMAND ARGUMENTS` would be.

    KILL_AT=n in its environment ends it with -9 as it has written the n-th line of its journal.
    """

    def __init__(self, command: str, arguments: tuple[str, ...], environment: Mapping[str, str], folder: Path) -> None:
        _FORKS.set_forkserver_preload(_IMPORTED)
        with tempfile.NamedTemporaryFile(dir=folder, prefix="printed-", delete=False) as file:
            self._printed = Path(file.name)
        order = (command, arguments, dict(environment), folder, self._printed)
        self._process = _FORKS.Process(target=_obey, args=order)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, seconds: float) -> str:
        """Wait for its end, and return what it printed."""
        self._process.join(seconds)
        said = self._printed.read_text()
        assert self.returncode is not None, f"it did not end within {seconds} s: {said}"
        return said


def _obey(command: str, arguments: tuple[str, ...], environment: dict[str, str], folder: Path, printed: Path) -> None:
    output = os.open(printed, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
    sys.stderr.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [command, *arguments]
    site.open_host = SmallProcesses  # type: ignore[assignment]
    kill_at(int(os.environ.get("KILL_AT", "0")))
    run(command, importlib.import_module(f"src.release.{command}").main)


def kill_at(line: int) -> None:
    """End this process when so many lines were written."""
    write, lines = Journal.note, [0]

    def note(self: Journal, *arguments: Any, **facts: Any) -> None:
        write(self, *arguments, **facts)
        lines[0] += 1
        if lines[0] == line:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.note = note  # type: ignore[method-assign]
