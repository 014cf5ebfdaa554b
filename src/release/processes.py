"""Versions as plain processes: `bentoml serve` of a bento, on a machine without a container engine. No limits but the port.

Used through src/release/hosting.py. Below <home>: venvs/ (packages, one environment for each lock file), processes/ (one
file for each version: how it was started and as what it runs), logs/. Nothing comes back after a reboot until deploy, or
whoever calls `resume`, starts it.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from src.core.command import UserError
from src.core.files import read_json, replacing, write_bytes
from src.core.yaml_files import read_yaml
from src.release.settings import Settings
from src.release.workload import ABSENT, State, Workload

_MARK = "DEPLOY_PROCESS"  # the variable by which a version's processes are known, whoever their parent is
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE")  # no token of a job
_LARGEST_LOG = 10 * 2**20  # bytes; then it starts anew
_INSTALL = 1800  # seconds
_LAUNCH = 'exec 3>&1 >>"$1" 2>&1 </dev/null; shift; "$@" 3>&- & echo $! >&3'
_END_LATER = """
left=$2
while [ "$left" -gt 0 ] && grep -qs "$1" /proc/[0-9]*/environ; do sleep 1; left=$((left - 1)); done
for file in $(grep -ls "$1" /proc/[0-9]*/environ); do file=${file%/environ}; kill -KILL "${file#/proc/}"; done
"""


class Processes:
    """The processes of one environment. Each carries a mark, so that a process id used anew is never taken for ours."""

    kind = "processes"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._records = settings.home / "processes"

    def pull(self, image: Mapping[str, Any]) -> None:
        """Install the packages that the bento needs, if no version before needed the same.

        Raises:
            UserError: there is no bento, or its packages cannot be installed.
        """
        self._python(_bento(image))

    def start(self, workload: Workload) -> None:
        """Run it; what is left of an earlier one of this name goes first.

        Raises:
            UserError: its port is taken, or there is no bento.
        """
        self.remove(workload.name)
        write_bytes(self._settings.home / "engine", f"{self.kind}\n".encode())
        bento = _bento(workload.image)
        record = {
            "command": self._command(bento, workload.port),
            "folder": str(bento),
            "port": workload.port,
            "environment": {**_declared(bento), **workload.environment, "BENTOML_HOME": str(self._scratch(workload.name))},
        }
        self._launch(workload.name, record)
        self._forget_packages()

    def _command(self, bento: Path, port: int) -> list[str]:
        python = str(self._python(bento))
        return [python, "-P", "-m", "bentoml", "serve", str(bento), "--host", "127.0.0.1", "--port", str(port)]

    def _launch(self, name: str, record: dict[str, Any]) -> None:
        _check_port(record["port"])
        self._scratch(name).mkdir(parents=True, exist_ok=True)
        mark, log = uuid.uuid4().hex, self._log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {key: os.environ[key] for key in _INHERITED if key in os.environ}
        environment |= {**record["environment"], _MARK: mark, "PYTHONUNBUFFERED": "1"}
        done = subprocess.run(
            ["sh", "-c", _LAUNCH, "sh", str(log), *record["command"]],
            cwd=record["folder"], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True, check=True,
        )  # fmt: skip
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._write(name, {**record, "pid": int(done.stdout), "mark": mark, "started": now})

    def resume(self, name: str) -> None:
        """Run a stopped one again, as it was started; one that runs is left alone.

        Raises:
            UserError: there is none of this name, or its port was taken in the meantime.
        """
        record = self._read(name)
        if record is None:
            raise UserError(f"there is no process {name} on this host: run make deploy, which starts it")
        if not _is_running(record):
            _end(record["mark"], 0)
            self._launch(name, {key: record[key] for key in ("command", "folder", "port", "environment")})

    def stop(self, name: str, *, wait: bool = True) -> None:
        """Let requests in flight end for as long as the settings allow, then stop it."""
        record = self._read(name)
        if record is None or not (_is_running(record) or family(record["mark"])):
            return
        _tell(record)
        if wait:
            _end(record["mark"], self._settings.drain)
            return
        script = f"({_END_LATER}) >/dev/null 2>&1 </dev/null &"
        command = ["sh", "-c", script, "sh", f"{_MARK}={record['mark']}", str(round(self._settings.drain))]
        clean = {"PATH": os.environ.get("PATH", os.defpath)}
        subprocess.run(command, cwd="/", env=clean, start_new_session=True, check=True)

    def remove(self, name: str) -> None:
        """End it at once and forget it."""
        record = self._read(name)
        if record:
            _end(record["mark"], 0)
        (self._records / f"{name}.json").unlink(missing_ok=True)
        shutil.rmtree(self._scratch(name), ignore_errors=True)

    def state(self, name: str) -> State:
        """Return what the system says; why a process ended is not known here."""
        record = self._read(name)
        if record is None:
            return ABSENT
        self._cut_log(name)
        running = _is_running(record)
        memory = sum(map(_resident, family(record["mark"]))) if running else None
        return State(
            exists=True, running=running, restarts=0, started=record["started"], memory=memory, oom=False, exit_code=None
        )

    def names(self) -> list[str]:
        """Return the names of this environment's versions, running or not."""
        return sorted(path.stem for path in self._records.glob("*.json"))

    def logs(self, name: str, lines: int = 50) -> str:
        """Return the last lines that it printed; empty when it is not there."""
        log = self._log(name)
        if not log.is_file():
            return ""
        return "".join(log.read_text(errors="replace").splitlines(keepends=True)[-lines:])

    # -----------------------------------------------------------------------------------------------------------------
    # Its files
    # -----------------------------------------------------------------------------------------------------------------

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self._records / f"{name}.json"
        if not path.is_file():
            return None
        keys = ("command", "folder", "port", "environment", "pid", "mark", "started")
        record: dict[str, Any] = read_json(path, made_by="evaluate", keys=keys)
        return record

    def _write(self, name: str, record: dict[str, Any]) -> None:
        with replacing(self._records / f"{name}.json") as fresh:
            fresh.touch(0o600)  # the environment of a service may hold a key
            fresh.write_text(json.dumps(record, indent=2))

    def _scratch(self, name: str) -> Path:
        """Return the folder that takes the place of a container's /tmp."""
        return self._records / f"{name}.files"

    def _log(self, name: str) -> Path:
        return self._settings.home / "logs" / f"{name}.log"

    def _cut_log(self, name: str) -> None:
        log = self._log(name)
        if log.is_file() and log.stat().st_size > _LARGEST_LOG:
            os.truncate(log, 0)

    def _python(self, bento: Path) -> Path:
        """Return the Python that has the bento's packages, installed by hash and only once for each lock file."""
        locked = requirements(bento)
        digest = hashlib.sha256(f"{sys.version_info[:2]}\n{locked}".encode()).hexdigest()[:16]
        folder = self._settings.home / "venvs" / digest
        whole, python = folder / "whole", folder / "bin" / "python"
        if whole.is_file():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        listed = folder / "requirements.txt"
        listed.write_text(locked)
        _install([sys.executable, "-m", "venv", str(folder)], bento)
        _install([str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r", str(listed)], bento)
        whole.touch()  # an environment cannot be moved, so it is made in its place and marked when it is whole
        return python

    def _forget_packages(self) -> None:
        """Remove the environments that no version uses any more; each is some 300 MB."""
        records = filter(None, map(self._read, self.names()))
        used = {Path(record["command"][0]).parent.parent for record in records}
        for folder in (self._settings.home / "venvs").glob("*"):
            if folder not in used:
                shutil.rmtree(folder, ignore_errors=True)


def _install(command: list[str], bento: Path) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL, check=False)
    except subprocess.TimeoutExpired:
        reason = f"it did not end within {_INSTALL} s"
    else:
        if done.returncode == 0:
            return
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1][:300]
    raise UserError(
        f"the packages of {bento} cannot be installed ({reason}): check that the package index answers and that the disk "
        "has 1 GB free, then run the same command again"
    )


def requirements(bento: Path) -> str:
    """Return the bento's lock file without the one line that BentoML adds to it, which has no hash.

    Raises:
        UserError: the folder is no bento.
    """
    path = bento / "env" / "python" / "requirements.txt"
    if not path.is_file():
        raise UserError(f"{bento} is no bento ({path} is missing): run make deploy again, which builds it")
    return "".join(line for line in path.read_text().splitlines(keepends=True) if not re.fullmatch(r"bentoml==\S+\n?", line))


def _bento(image: Mapping[str, Any]) -> Path:
    folder = image.get("bento")
    if not folder:
        raise UserError(
            f"there is no bento of {image['image']}, only an image: start Docker or Podman and run make deploy again"
        )
    if not Path(folder).is_dir():
        raise UserError(f"the bento {folder} is not there any more: run make deploy again, which builds it")
    return Path(folder)


def _declared(bento: Path) -> dict[str, str]:
    """Return the variables that the image would set."""
    path = bento / "bento.yaml"
    content = read_yaml(path) if path.is_file() else {}
    return {env["name"]: str(env["value"]) for env in content.get("envs", []) if env.get("value") is not None}


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"port {port} of 127.0.0.1 is taken ({error.strerror}; ss -ltnp 'sport = :{port}' shows by what): stop "
                "that, or set another DEPLOY_PORT"
            ) from None


# ---------------------------------------------------------------------------------------------------------------------
# What runs
# ---------------------------------------------------------------------------------------------------------------------


def family(mark: str) -> list[int]:
    """Return the ids of all processes that carry this mark: those whose parent was killed too."""
    return [int(pid) for pid in filter(str.isdecimal, os.listdir("/proc")) if _carries(pid, mark)]


def _is_running(record: Mapping[str, Any]) -> bool:
    return _carries(str(record["pid"]), record["mark"])


def _carries(pid: str, mark: str) -> bool:
    try:
        return f"{_MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended, or belongs to another user
        return False


def _resident(pid: int) -> int:
    """Return the bytes of memory that a process holds, without files that it only maps."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _tell(record: Mapping[str, Any]) -> None:
    """Ask it to stop: the first process tells its own; where that one is gone, each of the others is told."""
    for pid in [int(record["pid"])] if _is_running(record) else family(record["mark"]):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _end(mark: str, seconds: float) -> None:
    """Wait for so long until all that carries the mark has ended, then kill what has not."""
    until = time.monotonic() + seconds
    while (left := family(mark)) and time.monotonic() < until:
        time.sleep(0.05)
    while left:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
        left = family(mark)
