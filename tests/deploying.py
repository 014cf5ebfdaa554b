"""Commands of the release on small versions instead of BentoML's, each in a process of its own. The guard is the real one,
on the same host.

What the commands import takes seconds, MLflow above all: one process imports it, and each command is a fork of that.
"""

import importlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from src.core.command import UserError
from src.release import guard, guarding, site
from src.release.journal import Journal
from src.release.settings import Settings
from src.release.workload import ABSENT, State, Workload
from src.system.command_line import run

_IMPORTED = [
    "mlflow.store.model_registry.sqlalchemy_workspace_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    *(f"src.release.{command}" for command in ("deploy", "rollback", "status")),
]
ROOT = Path(os.environ["TEST_ROOT"])
MARK = "DEPLOY_PROCESS"  # the variable by which a version is known
_FORKS = multiprocessing.get_context("forkserver")


class SmallProcesses:
    """A host of small servers, each a process that carries a mark; what runs stands in <home>/processes."""

    kind = "docker"

    def __init__(self, settings: Settings) -> None:
        self._settings, self._records = settings, settings.home / "processes"

    def pull(self, image: Mapping[str, Any]) -> None:
        pass

    def start(self, workload: Workload) -> None:
        self.remove(workload.name)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", workload.port))
            except OSError:
                raise UserError(f"port {workload.port} of 127.0.0.1 is taken: set another DEPLOY_PORT") from None
        self._launch(workload.name, {"folder": str(workload.image["bento"]), "port": workload.port})

    def _launch(self, name: str, record: dict[str, Any]) -> None:
        mark, log = uuid.uuid4().hex, self._settings.home / "logs" / f"{name}.log"
        for folder in (log.parent, self._records):
            folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(ROOT / "tests" / "small_version.py"), record["folder"], str(record["port"])]
        environment = {"PATH": os.environ["PATH"], MARK: mark}
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["sh", "-c", '"$@" & echo $!', "sh", *command], env=environment, cwd="/", start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output, text=True,
            )  # fmt: skip
        pid = int(process.stdout.readline())
        process.stdout.close()
        process.wait()
        started = datetime.now(UTC).isoformat(timespec="milliseconds")
        (self._records / f"{name}.json").write_text(json.dumps({**record, "pid": pid, "mark": mark, "started": started}))

    def resume(self, name: str) -> None:
        record = self._read(name)
        if record is None:
            raise UserError(f"there is no process {name} on this host")
        if not is_running(record):
            self._launch(name, record)

    def stop(self, name: str, *, wait: bool = True) -> None:
        record = self._read(name)
        if record and is_running(record):
            os.kill(record["pid"], signal.SIGTERM)
            while wait and is_running(record):
                time.sleep(0.02)

    def remove(self, name: str) -> None:
        record = self._read(name)
        while record and is_running(record):
            with suppress(ProcessLookupError):
                os.kill(record["pid"], signal.SIGKILL)
            time.sleep(0.02)
        (self._records / f"{name}.json").unlink(missing_ok=True)

    def state(self, name: str) -> State:
        record = self._read(name)
        if record is None:
            return ABSENT
        running = is_running(record)
        memory = psutil.Process(record["pid"]).memory_info().rss if running else None
        return State(True, running, 0, record["started"], memory, False, None)

    def names(self) -> list[str]:
        return sorted(path.stem for path in self._records.glob("*.json"))

    def logs(self, name: str, lines: int = 50) -> str:
        log = self._settings.home / "logs" / f"{name}.log"
        return "".join(log.read_text().splitlines(keepends=True)[-lines:]) if log.is_file() else ""

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self._records / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None


def is_running(record: Mapping[str, Any]) -> bool:
    try:
        return f"{MARK}={record['mark']}".encode() in Path(f"/proc/{record['pid']}/environ").read_bytes()
    except OSError:  # it has ended
        return False


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
    guarding.COMMAND = [sys.executable, __file__]
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


if __name__ == "__main__":  # the guard, on the host of these tests
    site.open_host = SmallProcesses  # type: ignore[assignment]
    run("guard", guard.main)
