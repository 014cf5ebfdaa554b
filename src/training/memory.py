"""How much memory a run may still take: of the machine, of the control group it lives in, of the GPU.

room = memory.room(device, world)
"""

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from src.training.world import World

_CGROUPS = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self/cgroup")
_NAMES = (  # of the limits, of what is taken, and of what is taken by files and can be given up: version 2, version 1
    (("memory.max", "memory.high"), "memory.current", "inactive_file"),
    (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
)


@dataclass(frozen=True)
class Room:
    """Bytes that are free: `device` where the run computes, `host` in this machine's memory for each of its processes."""

    device: int
    host: int


def room(device: torch.device, world: World) -> Room:
    """Return what is free now. Processes that train together on one machine share what it has."""
    host = available() // world.local_size
    return Room(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host, host)


def available(cgroups: Path = _CGROUPS, membership: Path = _SELF) -> int:
    """Return the bytes that can be taken without swapping, the cache of files counted as free.

    A control group (`docker run --memory`, systemd's MemoryMax) can grant less than the machine has, and the tightest of
    all groups above binds: https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
    """
    left = [found for folder in _groups(cgroups, membership) if (found := _left(folder)) is not None]
    return max(0, min([int(psutil.virtual_memory().available), *left]))


def _groups(cgroups: Path, membership: Path) -> list[Path]:
    """Return the folders of this process's control group and of all above it; in a container only the root is visible."""
    folders = [cgroups, cgroups / "memory"]
    lines = membership.read_text().splitlines() if membership.is_file() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers == "" or "memory" in controllers.split(","):
            folder = cgroups / "memory" if controllers else cgroups
            for part in (part for part in path.split("/") if part not in ("", "..")):
                folder /= part
                folders.append(folder)
    return folders


def _left(folder: Path) -> int | None:
    """Return what one group still grants; None where nothing limits it."""
    for limits, taken, cache in _NAMES:
        granted = [limit for name in limits if (limit := _number(folder / name)) is not None and limit < 2**60]
        used = _number(folder / taken)
        if granted and used is not None:
            return min(granted) - used + _entry(folder / "memory.stat", cache)
    return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _entry(path: Path, name: str) -> int:
    try:
        return int(dict(line.split(maxsplit=1) for line in path.read_text().splitlines())[name])
    except (OSError, ValueError, KeyError):
        return 0
