"""What every command speaks with: errors of one sentence, tables, progress; and the cores it may use."""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


class Stopped(BaseException):
    """SIGTERM, raised where the program is, so that `finally` clean-ups run."""


class UserError(Exception):
    """A mistake the user can mend. The text says what happened, to which file or key, and what to do next."""


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
