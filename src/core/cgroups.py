"""What control groups grant and use, of version 1 and 2: docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/.

`docker run --memory --cpus` and systemd's MemoryMax grant less than the machine has. The tightest of a process's group and
of all groups above it binds; in a container only the root of them is visible. `kernel` is where /proc and /sys lie.
"""

import math
from pathlib import Path

from src.core.command import cores

_KERNEL = Path("/")
_UNLIMITED = 2**60  # bytes; version 1 writes a number near 2**63 where nothing limits


def processors(kernel: Path = _KERNEL) -> float:
    """Return how many processors this process may keep busy: those it may run on, or fewer where a quota says so."""
    shares = [share for folder in _folders("cpu", kernel) if (share := _quota(folder)) is not None]
    return min([float(cores()), *shares])


def memory_limit(kernel: Path = _KERNEL) -> int | None:
    """Return the bytes that the groups grant in all; None where nothing limits them."""
    limits = [_limit(folder, ("memory.max", "memory.limit_in_bytes")) for folder in _folders("memory", kernel)]
    return min((limit for limit in limits if limit is not None), default=None)


def memory_left(kernel: Path = _KERNEL) -> int | None:
    """Return the bytes that the groups still grant, the cache of files counted as free; None where nothing limits them."""
    left = []
    for folder in _folders("memory", kernel):
        granted, used = _limit(folder, ("memory.max", "memory.high", "memory.limit_in_bytes")), _used(folder)
        if granted is not None and used is not None:
            left.append(granted - used)
    return min(left, default=None)


def memory_of(pid: int, name: str, kernel: Path = _KERNEL) -> int | None:
    """Return the bytes that the group of a process uses, without the cache of files, as `docker stats` counts.

    None where the group is not called `name`, so that the process is one of another machine, or cannot be read.
    """
    folders = [folder for folder in _folders("memory", kernel, str(pid)) if name in str(folder)]
    return next((used for folder in reversed(folders) if (used := _used(folder)) is not None), None)


def _folders(controller: str, kernel: Path, process: str = "self") -> list[Path]:
    """Return the folders of a process's groups and of all above them, the root first, that may hold a controller's files."""
    root = kernel / "sys/fs/cgroup"
    folders = [root, root / controller]
    try:
        lines = (kernel / "proc" / process / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            base = root / controller if controllers else root
            inner = [part for part in path.split("/") if part not in ("", "..")]
            folders += [base.joinpath(*inner[:depth]) for depth in range(1, len(inner) + 1)]
    return folders


def _limit(folder: Path, names: tuple[str, ...]) -> int | None:
    limits = [limit for name in names if (limit := _number(folder / name)) is not None and limit < _UNLIMITED]
    return min(limits, default=None)


def _used(folder: Path) -> int | None:
    """Return the bytes that one group uses, without those of the cache of files that can be taken back."""
    for usage, cache in (("memory.current", "inactive_file"), ("memory.usage_in_bytes", "total_inactive_file")):
        if (used := _number(folder / usage)) is not None:
            try:
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # none, or the group has ended meanwhile
                stat = {}
            return max(0, used - int(stat.get(cache, 0)))
    return None


def _quota(folder: Path) -> float | None:
    """Return the processors that one group grants: "quota period" in microseconds, "max" or -1 for no quota."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{word}_us").read_text().strip() for word in ("quota", "period"))
        share = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return None
    return share if share > 0 and math.isfinite(share) else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None
