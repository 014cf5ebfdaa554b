"""How the service spreads over the processors and the memory that it really has.

A light network gets one process on each processor, because Python takes as long as it. A heavy one gets a single process
whose batches take all processors: that computes most images a second, a lone image soonest, and holds the weights once.
"""

import json
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
        size = (folder / "model.onnx").stat().st_size
        return bool(card.get("flops", 0) > _HEAVY or ("flops" not in card and size > _BYTES_HEAVY))
    except (OSError, ValueError, AttributeError, TypeError):  # what is wrong with it, whoever loads the model tells
        return False


def fits(size: int) -> bool:
    """Tell whether so many bytes more fit into the memory that the control group grants beside the service."""
    room = memory()
    return room is None or size < room - _APART


def processes(share: float) -> int:
    """Return how many processes fit: one a processor, fewer where the control group grants little memory."""
    room = memory()
    return max(1, min(round(share), 64, 64 if room is None else 1 + int((room - _APART) // _PROCESS)))


def processors(cgroups: Path = _CGROUPS, membership: Path = _SELF) -> float:
    """Return how many processors this process may keep busy: those it may run on, or fewer where a quota says so.

    A quota (`docker run --cpus`) leaves all cores visible and throttles whoever uses them all. It stands in cpu.max of the
    control group ("quota period" in microseconds, or "max period"), and the tightest of all groups above binds:
    https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
    """
    limits = [text.split() for text in _limits("cpu.max", cgroups, membership)]
    shares = [int(quota) / int(period) for quota, period in limits if quota.isdecimal() and int(period)]
    return min([float(cores()), *(share for share in shares if share > 0)])


def memory(cgroups: Path = _CGROUPS, membership: Path = _SELF) -> int | None:
    """Return the bytes that the control group grants (`docker run --memory`); None where nothing limits them."""
    limits = _limits("memory.max", cgroups, membership)
    return min((int(text) for text in limits if text.strip().isdecimal()), default=None)


def _limits(name: str, cgroups: Path, membership: Path) -> list[str]:
    """Return a file of this process's control group (version 2) and of all above it; a container sees only the root."""
    try:
        path = next((line[3:] for line in membership.read_text().splitlines() if line.startswith("0::")), "")
    except OSError:
        path = ""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    files = [cgroups.joinpath(*parts[:depth], name) for depth in range(len(parts) + 1)]
    return [file.read_text() for file in files if file.is_file()]
