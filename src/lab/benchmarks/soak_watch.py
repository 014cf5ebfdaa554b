"""Watch the processes of a service: memory and descriptors over time, and whether they stay as they were."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import psutil
from scipy import stats

from src.core import pictures

_BLOCKS = 20  # neighbouring samples are alike; the means of so many stretches are nearly independent
_MATERIAL = 0.05  # of the memory, over the whole run
_WARM = 0.25  # of the run; allocators and caches fill up first
_SPARE = 8  # descriptors that may come and go


class Sample(NamedTuple):
    """One look at all processes of a service."""

    requests: int  # answered so far
    memory: int  # bytes, resident, of all processes together
    descriptors: int  # open ones, of all processes together


class Slope(NamedTuple):
    """How memory grows over a run, as a share of its mean, with the 95 % interval."""

    growth: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Say `flat`, `rising`, or `undecided` where the run was too short to tell."""
        if self.low > _MATERIAL:
            return "rising"
        return "flat" if self.high <= _MATERIAL else "undecided"


def processes(port: int) -> list[psutil.Process]:
    """Return the processes of this machine that listen on a port: a server and its workers, which share it."""
    found = []
    for process in psutil.process_iter():
        try:
            listening = process.net_connections("tcp")
        except psutil.Error:
            continue
        if any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in listening):
            found.append(process)
    return sorted(found, key=lambda process: process.pid)


def look(watched: Sequence[psutil.Process], requests: int = 0) -> Sample:
    """Look at processes once; one that has ended counts as nothing."""
    memory, descriptors = 0, 0
    for process in watched:
        try:
            memory, descriptors = memory + process.memory_info().rss, descriptors + process.num_fds()
        except psutil.Error:
            continue
    return Sample(requests, memory, descriptors)


class Watch:
    """Looks at processes every so many seconds, in a thread, from `with` to its end."""

    def __init__(self, watched: Sequence[psutil.Process], answered: Callable[[], int], seconds: float) -> None:
        self.samples: list[Sample] = []
        self._watched, self._answered, self._seconds = watched, answered, seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._seconds):
            self.samples.append(look(self._watched, self._answered()))


def slope(samples: Sequence[Sample]) -> Slope | None:
    """Fit a line to the memory of a run without its first quarter; None if there are too few samples.

    Ordinary least squares over the means of 20 stretches; Student's interval. Source: Draper and Smith, Applied Regression
    Analysis (1998), chapter 1.
    """
    kept = np.array(samples, dtype=np.float64)[int(len(samples) * _WARM) :]
    if len(kept) < 2 * _BLOCKS:
        return None
    means = np.array([block.mean(axis=0) for block in np.array_split(kept, _BLOCKS)])
    fit = stats.linregress(means[:, 0], means[:, 1])
    whole = samples[-1].requests / means[:, 1].mean()
    spread = float(stats.t.ppf(0.975, _BLOCKS - 2)) * fit.stderr
    return Slope(*(float(value * whole) for value in (fit.slope, fit.slope - spread, fit.slope + spread)))


def leaks(before: Sample, after: Sample) -> bool:
    """Say whether descriptors stayed open that were not open before; both samples are of a service that nobody asks."""
    return after.descriptors > before.descriptors + _SPARE


def settled(watched: Sequence[psutil.Process], seconds: float = 20.0) -> Sample:
    """Wait until descriptors go back no further, for connections that are closed late; return the last look."""
    until, best = time.monotonic() + seconds, look(watched)
    quiet = time.monotonic()
    while time.monotonic() < until and time.monotonic() - quiet < 3:
        time.sleep(0.25)
        now = look(watched)
        if now.descriptors < best.descriptors:
            quiet = time.monotonic()
        best = now
    return best


def draw(path: Path, samples: Sequence[Sample]) -> None:
    """Draw memory and descriptors over the requests."""
    requests = [sample.requests / 1000 for sample in samples]
    made = pictures.figure(9, 3.4)
    memory, descriptors = made.subplots(1, 2)
    memory.plot(requests, [sample.memory / 1e6 for sample in samples], color=pictures.BLUE)
    memory.set(title="Memory of all processes", xlabel="thousand requests", ylabel="MB", ylim=(0, None))
    descriptors.plot(requests, [sample.descriptors for sample in samples], color=pictures.ORANGE)
    descriptors.set(title="Descriptors of all processes", xlabel="thousand requests", ylim=(0, None))
    pictures.save(made, path)
