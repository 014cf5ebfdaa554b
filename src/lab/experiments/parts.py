"""The parts of the training data that a staleness study trains on, and what came of each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.core.command import UserError
from src.lab.experiments.arrivals import Period, Seconds
from src.lab.experiments.learning_curve import subset

UNTIL, SINCE, SHARE = "until", "after", "share"
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """Rows of the training split: those that came `until` a period's end, those `after` it, or a random `share`.

    `rows` has one entry a seed, since each seed draws its own share.
    """

    kind: str
    name: str
    rows: list[Rows]

    @property
    def images(self) -> int:
        """How many images it has."""
        return len(self.rows[0])


@dataclass(frozen=True)
class Outcome:
    """How the models of a part answered the test images: `right` bool, `losses` float64, both (seeds, test images)."""

    part: Part
    right: NDArray[np.bool_]
    losses: NDArray[np.float64]


def parts(
    labels: NDArray[np.int64], came: Seconds, found: Sequence[Period], seeds: Sequence[int]
) -> tuple[list[Part], list[str]]:
    """Return the parts to train on, and sentences on those that are too small for it.

    Args:
        labels: of the training images.
        came: when each came.
        found: the periods; with one alone there is no history, only shares.
        seeds: one training each; a share is drawn anew for each.

    Raises:
        UserError: there are fewer images than two of each class.
    """
    made = [Part(SHARE, f"{share:g}", [subset(labels, share, seed) for seed in seeds]) for share in SHARES]
    if len(found) > 1:
        made += [_part(UNTIL, period, came <= period.last, len(seeds)) for period in found]
        made += [_part(SINCE, period, came > period.last, len(seeds)) for period in found[:-1]]
    fewest = 2 * len(np.unique(labels))
    if len(labels) < fewest:
        raise UserError(f"there are {len(labels)} training images, too few for a study: it takes at least {fewest}")
    kept = [part for part in made if part.images >= fewest]
    small = [
        f"{part.kind} {part.name} has {part.images} training images, too few to train on"
        for part in made
        if part not in kept
    ]
    return kept, small


def _part(kind: str, period: Period, chosen: NDArray[np.bool_], seeds: int) -> Part:
    return Part(kind, period.name, [np.flatnonzero(chosen)] * seeds)


def of_kind(outcomes: Sequence[Outcome], kind: str) -> list[Outcome]:
    """Return the outcomes of one kind of part, in their order."""
    return [outcome for outcome in outcomes if outcome.part.kind == kind]
