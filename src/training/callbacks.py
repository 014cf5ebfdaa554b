"""What training asks of the world outside of its stage: a tracker, the champion's weights, facts of the hardware."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class TrackedRun(Protocol):
    """One run of an experiment tracker."""

    id: str

    def log(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log one epoch's metrics."""

    def finish(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""


@dataclass(frozen=True)
class Callbacks:
    """Functions that `python -m src train` hands in; by default nothing is tracked, and there is no champion.

    `track` takes params, tags and the id of the run to go on with, and returns None where it tracks nothing.
    `champion` takes a folder, fetches weights and card into it, and returns both files and words that name the model.
    """

    track: Callable[[Mapping[str, Any], Mapping[str, str], str | None], TrackedRun | None] | None = None
    champion: Callable[[str], tuple[Path, Path, str]] | None = None
    hardware: Callable[[], dict[str, Any]] = dict


NO_CALLBACKS = Callbacks()
