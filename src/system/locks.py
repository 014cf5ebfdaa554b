"""A lock between processes: a file that one of them holds, and that the system lets go when it ends, however it ends."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from src.core.command import UserError

_LONGEST_WAIT = 3600.0  # seconds


@contextmanager
def locked(path: Path, waiting: Callable[[], str], longest: float = _LONGEST_WAIT) -> Iterator[int]:
    """Hold the lock and yield its descriptor; while another process has it, say once what `waiting` returns.

    Raises:
        UserError: the other process did not let go within the `longest` wait, in seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _wait(descriptor, path, waiting, longest)
        yield descriptor
    finally:
        os.close(descriptor)


def _wait(descriptor: int, path: Path, waiting: Callable[[], str], longest: float) -> None:
    until, told = time.monotonic() + longest, False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise UserError(f"{waiting()}; {path} is still held: look at that process, end it, run again") from None
            if not told:
                print(waiting(), flush=True)
                told = True
            time.sleep(0.1)
        else:
            return
