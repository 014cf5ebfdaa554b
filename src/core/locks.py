"""A lock between processes: a file that one of them holds, and that the system lets go when it ends, however it ends."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from src.core.command import UserError


@contextmanager
def locked(path: Path, holder: str, waiting: Callable[[str], str], longest: float = 3600.0) -> Iterator[None]:
    """Hold a lock file; while another process has it, print once what `waiting` says of that one.

    On a shared file system the lock holds between machines as far as that file system's does.

    Args:
        path: of the lock file; its folder is made.
        holder: who holds it, written into the file for others to read.
        waiting: given what the file says of its holder, "" where it says nothing yet.
        longest: wait, in seconds; -1 is forever.

    Raises:
        UserError: the other process did not let go within the longest wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        sentence = waiting(path.read_text().strip())
        print(sentence, flush=True)
        try:
            lock.acquire(timeout=longest)
        except Timeout:
            raise UserError(f"{sentence}; {path} is still held: look at that process, end it, run again") from None
    try:
        path.write_text(f"{holder}\n")
        yield
    finally:
        lock.release()
