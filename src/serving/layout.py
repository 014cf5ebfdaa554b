"""How the service spreads over the processors and the memory that it really has: by operations, never by a stopwatch.

A light network gets one process on each processor, because Python takes as long as it. A heavy one gets a single process
whose batches take all processors: that computes most images a second, a lone image soonest, and holds the weights once.
"""

import json
from pathlib import Path

from src.core.cgroups import memory_limit

_HEAVY = 150_000_000  # floating-point operations of an image: one to two milliseconds of one processor
_RATE = 75e9  # operations a second of one processor, as measured for small networks
_PER_BYTE = 40  # operations for each byte of model.onnx, for a card that tells none
_LARGEST = 64  # images of a batch: larger ones gain nothing more
_INLINE = 0.005  # seconds that requests may have to wait for a batch in the event loop
_PROCESS = 100_000_000  # bytes of memory that a process takes
_APART = 650_000_000  # bytes that stay for the first process, the one that watches, and one large image while it is decoded


def operations(folder: Path) -> int:
    """Return the floating-point operations of one image, 0 where card.json or the model cannot be read."""
    try:
        card = json.loads((folder / "card.json").read_text())
        return int(card.get("flops") or _PER_BYTE * (folder / "model.onnx").stat().st_size)
    except (OSError, ValueError, AttributeError, TypeError):  # what is wrong with it, whoever loads the model tells
        return 0


def is_heavy(folder: Path) -> bool:
    """Tell whether one image keeps a processor busy for longer than the rest of its request does."""
    return operations(folder) > _HEAVY


def batch(folder: Path, seconds: float, *, inline: bool) -> int:
    """Return how many images are one batch, which may take so many seconds, or hold up the event loop."""
    most = (min(seconds, _INLINE) if inline else seconds) * _RATE / max(1, operations(folder))
    return max(1, min(_LARGEST, int(most)))


def fits(size: int) -> bool:
    """Tell whether so many bytes more fit into the memory that the control group grants beside the service."""
    room = memory_limit()
    return room is None or size < room - _APART


def processes(share: float) -> int:
    """Return how many processes fit: one a processor, fewer where the control group grants little memory."""
    room = memory_limit()
    return max(1, min(round(share), 64, 64 if room is None else 1 + int((room - _APART) // _PROCESS)))
