"""How the service spreads over the processors and the memory that it really has.

A light network gets one process on each processor, because Python takes as long as it. A heavy one gets a single process
whose batches take all processors: that computes most images a second, a lone image soonest, and holds the weights once.
"""

import json
from pathlib import Path

from src.core.cgroups import memory_limit

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
    room = memory_limit()
    return room is None or size < room - _APART


def _size(folder: Path) -> int:
    return (folder / "model.onnx").stat().st_size


def processes(share: float) -> int:
    """Return how many processes fit: one a processor, fewer where the control group grants little memory."""
    room = memory_limit()
    return max(1, min(round(share), 64, 64 if room is None else 1 + int((room - _APART) // _PROCESS)))
