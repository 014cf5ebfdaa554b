"""How far a batch run is: a bar on a terminal, else a plain line now and then."""

import sys
import time
from typing import Any

from src.core.command import progress

_EVERY = 10.0  # seconds


class Progress:
    """Tells of images on stderr, their rate and the time left."""

    def __init__(self, total: int, done: int, *, quiet: bool) -> None:
        """Begin at `done` images of `total`, which an earlier run has scored."""
        self._total, self._done, self._first, self._quiet = total, done, done, quiet
        self._began = self._told = time.monotonic()
        self._bar = None if quiet or not sys.stderr.isatty() else _bar(total)
        if self._bar is not None:
            self._bar.initial = self._bar.n = done
            self._bar.refresh()

    @property
    def rate(self) -> float:
        """Images a second since this run began."""
        return (self._done - self._first) / max(time.monotonic() - self._began, 1e-9)

    def add(self, images: int) -> None:
        """Count images."""
        self._done += images
        if self._bar is not None:
            self._bar.update(images)
        elif not self._quiet and time.monotonic() - self._told >= _EVERY:
            self._told = time.monotonic()
            left = (self._total - self._done) / max(self.rate, 1e-9)
            told = f"batch: {self._done:,} of {self._total:,} images, {self.rate:,.0f} images/s, {_clock(left)} left"
            print(told, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()


def _bar(total: int) -> Any:
    try:
        return progress(total, "image", "batch")
    except ImportError:  # tqdm is not in the image of the service
        return None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
