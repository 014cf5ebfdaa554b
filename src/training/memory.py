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

    A control group of version 2 (`docker run --memory`, systemd's MemoryMax) can grant less than the machine has, and the
    tightest of all groups above binds: https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
    """
    left = [found for folder in _groups(cgroups, membership) if (found := _left(folder)) is not None]
    return max(0, min([int(psutil.virtual_memory().available), *left]))


def _groups(cgroups: Path, membership: Path) -> list[Path]:
    """Return the folders of this process's control group and of all above it; in a container only the root is visible."""
    lines = membership.read_text().splitlines() if membership.is_file() else []
    folder = cgroups / next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), "")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(cgroups))]


def _left(folder: Path) -> int | None:
    """Return what one group still grants, the cache of files counted as free; None where nothing limits it."""
    granted = [limit for name in ("memory.max", "memory.high") if (limit := _number(folder / name)) is not None]
    used = _number(folder / "memory.current")
    if not granted or used is None:
        return None
    stat = (folder / "memory.stat").read_text().split() if (folder / "memory.stat").is_file() else []
    return min(granted) - used + int(dict(zip(stat[::2], stat[1::2], strict=True)).get("inactive_file", 0))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None
