"""Ports that stay free until a test needs them, however much else this machine does in the meantime.

A port that the system gives (bind to 0) lies among those that it also gives to outgoing connections and to every other test:
ten minutes later somebody has it. These lie below all of them, and each belongs to one process of the tests until that ends.
"""

import fcntl
import random
import socket
import tempfile
from pathlib import Path
from typing import IO

BLOCK = 40  # a deployment's: the proxy and its versions, those of staging after them
FIRST = range(10000, 32000, BLOCK)  # Linux gives 32768 and more to outgoing connections, other systems 49152 and more

_locks: list[IO[str]] = []  # held, therefore open, until this process ends
_singles: list[int] = []


def free_port() -> int:
    """Return a port that nobody listens on, and that no other test is given."""
    while True:
        if not _singles:
            first = free_ports()
            _singles.extend(range(first, first + BLOCK))
        port = _singles.pop()
        if _is_free(port):
            return port


def free_ports() -> int:
    """Return the first of `BLOCK` ports in a row that nobody listens on, and that no other test is given."""
    for first in random.SystemRandom().sample(FIRST, len(FIRST)):
        if _lock(first) and all(map(_is_free, range(first, first + BLOCK))):
            return first
    raise RuntimeError(f"no {BLOCK} ports in a row are free from {FIRST[0]} to {FIRST[-1]}: ss -ltnp shows who listens")


def _lock(first: int) -> bool:
    """Take the lock of a block, which the system releases when this process ends, also when it is killed."""
    try:
        file = (Path(tempfile.gettempdir()) / f"ml-template-test-ports-{first}.lock").open("a")
    except PermissionError:  # another account's
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    _locks.append(file)
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
