"""How every command of this project starts, speaks and fails: one sentence for a user's mistake, never a traceback."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


class Stopped(BaseException):
    """SIGTERM, raised where the program is, so that `finally` clean-ups run."""


class UserError(Exception):
    """A mistake the user can mend. The text says what happened, to which file or key, and what to do next."""


def run(name: str, main: Callable[[], None]) -> None:
    """Run `main` and exit: 0 when it returns, 1 with one sentence on a user's mistake or a failing disk.

    Ctrl-C exits with 130 and SIGTERM with 143, one sentence each.
    """
    signal.signal(signal.SIGTERM, _stop)
    try:
        main()
    except KeyboardInterrupt:
        _fail(name, "interrupted; no output was changed. Run the same command again", 128 + signal.SIGINT)
    except Stopped:
        _fail(name, "stopped by SIGTERM; no output was changed. Run the same command again", 128 + signal.SIGTERM)
    except UserError as error:
        _fail(name, str(error), 1)
    except OSError as error:
        _fail(name, _explain(error), 1)


def _stop(*_: object) -> None:
    raise Stopped


def _fail(name: str, sentence: str, code: int) -> None:
    print(f"{name}: {sentence}", file=sys.stderr, flush=True)
    sys.exit(code)


def _explain(error: OSError) -> str:
    """Turn an operating-system error into what happened, to which file, and what to do next."""
    where = f" ({os.fsdecode(error.filename)})" if error.filename else ""
    advice = {
        errno.ENOSPC: "the disk is full: free some space and run again",
        errno.EDQUOT: "your disk quota is used up: free some space and run again",
        errno.EFBIG: "a file would grow past this system's limit: raise it (ulimit -f) and run again",
        errno.EROFS: "the file system is read-only: use another folder",
        errno.EACCES: "permission denied: check the owner and mode of the file",
        errno.ENOENT: "there is no such file: run the stage that makes it (`dvc repro`), or `dvc pull`",
        errno.ENOTDIR: "a file stands where a folder is needed: move it away",
        errno.EEXIST: "a file stands where a folder is needed: move it away",
        errno.EISDIR: "a folder stands where a file is needed: move it away",
        errno.ELOOP: "a symbolic link leads to itself: remove it",
        errno.EMFILE: "too many open files: raise the limit (ulimit -n) and run again",
    }
    return f"{advice.get(error.errno or 0, error.strerror or str(error))}{where}"


def cores() -> int:
    """Count the cores this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def progress(total: int, unit: str, title: str, hidden: bool = False) -> "tqdm[Any]":
    """Open a progress bar on stderr; off a terminal it speaks every ten seconds instead of ten times a second."""
    from tqdm import tqdm  # here, so that src/github runs on a Python with nothing installed

    calm = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total, unit=unit, desc=title, mininterval=calm, dynamic_ncols=True, leave=True, smoothing=0.1, disable=hidden
    )


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay rows out in columns as wide as their widest cell; numbers are the caller's to format."""
    lines = [list(map(str, header)), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in ruled)
