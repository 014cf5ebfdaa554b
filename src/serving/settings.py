"""How the service is set: the variables SERVE_*, each with a default that fits the processor share that it really has."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from src.command import cores
from src.variables import filled, number

ROOT = Path(__file__).resolve().parents[2]  # the repository, or src/ of a bento
_CGROUPS = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Settings:
    """What the variables say. The limits are those of one request."""

    model: Path  # folder with model.onnx and card.json
    workers: int  # processes
    threads: int  # requests that one process computes at once, each on one core
    concurrency: int  # requests that one process accepts at once; one more is answered with 429
    timeout: float  # seconds from a request's first byte to its answer
    max_body: int  # bytes
    max_pixels: int  # of one image, before it is decoded
    max_batch: int  # images in one request


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the variables.

    Raises:
        UserError: one of them is no number, or out of range.
    """
    given = filled(environment)
    workers = int(number(given, "SERVE_WORKERS", 1, 1, 256))
    fair = max(1, round(processors() / workers))
    return Settings(
        model=Path(given.get("SERVE_MODEL", ROOT / "out" / "model")),
        workers=workers,
        threads=int(number(given, "SERVE_THREADS", fair, 1, 1024)),
        concurrency=int(number(given, "SERVE_CONCURRENCY", 64, 1, 100_000)),
        timeout=number(given, "SERVE_TIMEOUT", 5, 0.01, 3600),
        max_body=int(number(given, "SERVE_MAX_BODY_MB", 10, 0.001, 4096) * 1e6),
        max_pixels=int(number(given, "SERVE_MAX_MEGAPIXELS", 12.5, 0.0001, 1000) * 1e6),
        max_batch=int(number(given, "SERVE_MAX_BATCH", 64, 1, 10_000)),
    )


def processors(cgroups: Path = _CGROUPS, membership: Path = _SELF) -> float:
    """Return how many processors this process may keep busy: those it may run on, or fewer where a quota says so.

    A quota (`docker run --cpus`) leaves all cores visible and throttles whoever uses them all. It stands in cpu.max of the
    control group (version 2: "quota period" in microseconds, or "max period") or in cpu.cfs_quota_us (version 1: -1 for
    none), and the tightest of all groups above binds: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
    """
    shares = [share for folder in _groups(cgroups, membership) if (share := _quota(folder)) is not None]
    return min([float(cores()), *shares])


def _groups(cgroups: Path, membership: Path) -> list[Path]:
    """Return the folders of this process's control group and of all above it; in a container only the root is visible."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    folders = [cgroups, cgroups / "cpu"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            root = cgroups if controllers == "" else cgroups / "cpu"
            inner = [part for part in path.split("/") if part not in ("", "..")]
            folders += [root.joinpath(*inner[:depth]) for depth in range(1, len(inner) + 1)]
    return folders


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
