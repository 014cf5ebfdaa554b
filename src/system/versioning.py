"""DVC, run from this environment."""

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from src.core.command import UserError

_PATIENCE = 20.0  # seconds a stage may take to end by itself


def dvc(*arguments: str, capture: bool = False, folder: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run DVC; the commands of its stages then find this environment's Python as `python`.

    It gets no answer to a question, as where a store has lost a model: on a terminal it would wait for one.
    """
    command = [sys.executable, "-P", "-m", "dvc", *arguments]
    return subprocess.run(
        command, cwd=folder, env=_environment(), stdin=subprocess.DEVNULL, capture_output=capture, text=True, check=False
    )


def watch_dvc(*arguments: str, heard: Callable[[str], None], seconds: float | None = None) -> int | None:
    """Run DVC, show what it says and hand every line to `heard`; return its exit status, or None after so many seconds.

    On a terminal DVC sees one too, so that progress bars stay. When the time is up, DVC and its stage are asked to stop
    (training keeps its checkpoint), then ended.
    """
    if sys.stdout.isatty():
        ours, theirs = pty.openpty()
        size = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    else:
        ours, theirs = os.pipe()
    command = [sys.executable, "-P", "-m", "dvc", *arguments]
    process = subprocess.Popen(
        command, env=_environment(), stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    listener = threading.Thread(target=_listen, args=(ours, heard), daemon=True)
    listener.start()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)
        listener.join(10)


def _listen(source: int, heard: Callable[[str], None]) -> None:
    rest = b""
    with suppress(OSError):  # how a terminal says that the other side has ended
        while piece := os.read(source, 65536):
            sys.stdout.buffer.write(piece)
            sys.stdout.flush()
            *whole, rest = re.split(rb"[\r\n]+", rest + piece)
            for line in whole:
                heard(line.decode(errors="replace"))
    if rest:
        heard(rest.decode(errors="replace"))
    os.close(source)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ask DVC and its stage to stop; end whatever of the two is still there after its time for a checkpoint."""
    if process.poll() is not None:
        return
    stages = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGTERM)
    psutil.wait_procs(stages, timeout=_PATIENCE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1"}


def has_unrecorded_changes(folder: Path) -> bool:
    """True when the folder exists and its content is not what its .dvc file records: DVC has no copy of it.

    Raises:
        UserError: DVC cannot tell.
    """
    record = f"{folder}.dvc"
    if not folder.exists():
        return False
    if not Path(record).exists():
        return any(folder.iterdir())
    status = dvc("status", record, "--json", capture=True)
    if status.returncode:
        lines = status.stderr.strip().splitlines() or ["no reason given"]
        raise UserError(
            f"dvc status {record} failed ({lines[-1]}): restore {record} with git checkout, or run dvc add {folder}"
        )
    changes = [
        entry for entries in json.loads(status.stdout or "{}").values() for entry in entries if isinstance(entry, dict)
    ]
    return "modified" in {state for entry in changes for outs in entry.values() for state in outs.values()}
