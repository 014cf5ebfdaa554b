"""How the service spreads over the processors and the memory that it really has.

A light network gets one process on each processor, because Python takes as long as it. A heavy one gets a single process
whose batches take all processors: that computes most images a second, a lone image soonest, and holds the weights once.
"""

import json
import math
from pathlib import Path

from src.core.command import cores

_CGROUPS = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self/cgroup")
_HEAVY = 150_000_000  # floating-point operations of an image: one to two milliseconds of one processor
_BYTES_HEAVY = 4_000_000  # of model.onnx, for a card that tells no operations
_PROCESS = 100_000_000  # bytes of memory that a process takes
_APART = 650_000_000  # bytes that stay for the first process, the one that watches, and one large image while it is decoded


def is_heavy(folder: Path) -> bool:
    """Tell whether one image keeps a processor busy for longer than the rest of its request does."""
    try:
        card = json.loads((folder / "card.json").read_text())
        return bool(card.get("flops", 0) > _HEAVY or ("flops" not in card and _size(folder) > _BYTES_HEAVY))
    except (OSError, ValueError, AttributeError, TypeError):  # what is wrong with it, whoever loads the model tells
        return False


def fits(size: int) -> bool:
    """Tell whether so many bytes more fit into the memory that the control group grants beside the service."""
    room = memory()
    return room is None or size < room - _APART


def _size(folder: Path) -> int:
    return (folder / "model.onnx").stat().st_size


def processes(share: float) -> int:
    """Return how many processes fit: one a processor, fewer where the control group grants little memory."""
    room = memory()
    return max(1, min(round(share), 64, 64 if room is None else 1 + int((room - _APART) // _PROCESS)))


def processors(cgroups: Path = _CGROUPS, membership: Path = _SELF) -> float:
    """Return how many processors this process may keep busy: those it may run on, or fewer where a quota says so.

    A quota (`docker run --cpus`) leaves all cores visible and throttles whoever uses them all. It stands in cpu.max of the
    control group (version 2: "quota period" in microseconds, or "max period") or in cpu.cfs_quota_us (version 1: -1 for
    none), and the tightest of all groups above binds: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
    """
    shares = [share for folder in _groups("cpu", cgroups, membership) if (share := _quota(folder)) is not None]
    return min([float(cores()), *shares])


def _groups(controller: str, cgroups: Path, membership: Path) -> list[Path]:
    """Return the folders of this process's control group and of all above it; in a container only the root is visible."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    folders = [cgroups, cgroups / controller]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            root = cgroups if controllers == "" else cgroups / controller
            inner = [part for part in path.split("/") if part not in ("", "..")]
            folders += [root.joinpath(*inner[:depth]) for depth in range(1, len(inner) + 1)]
    return folders


def memory(cgroups: Path = _CGROUPS, membership: Path = _SELF) -> int | None:
    """Return the bytes that the control group grants (`docker run --memory`); None where nothing limits them."""
    names = ("memory.max", "memory.limit_in_bytes")
    found = [_number(folder / name) for folder in _groups("memory", cgroups, membership) for name in names]
    return min((limit for limit in found if limit is not None and limit < 2**60), default=None)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _quota(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{word}_us").read_text().strip() for word in ("quota", "period"))
        share = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return None
    return share if share > 0 and math.isfinite(share) else None
