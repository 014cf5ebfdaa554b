"""How much memory a run may still take: of the machine, of the control group it lives in, of the GPU.

room = memory.room(device, world)
"""

from dataclasses import dataclass

import psutil
import torch

from src.core import cgroups
from src.training.world import World


@dataclass(frozen=True)
class Room:
    """Bytes that are free: `device` where the run computes, `host` in this machine's memory for each of its processes."""

    device: int
    host: int


def room(device: torch.device, world: World) -> Room:
    """Return what is free now. Processes that train together on one machine share what it has."""
    host = available() // world.local_size
    return Room(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host, host)


def available() -> int:
    """Return the bytes that can be taken without swapping, of the machine and of this process's control group."""
    machine, left = int(psutil.virtual_memory().available), cgroups.memory_left()
    return max(0, machine if left is None else min(machine, left))
