"""What data bought, from the answers of the models that a staleness study trained: steps of time, and the learning curve."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from src.lab.experiments.arrivals import Arrivals, Period, monthly
from src.lab.experiments.crossed import Effect, effect
from src.lab.experiments.learning_curve import Gain, Law, Values, gains
from src.lab.experiments.parts import SHARE, SINCE, UNTIL, Outcome, of_kind
from src.system.params import Params


@dataclass(frozen=True)
class Step:
    """One part of the history, held against another: the data before for `until`, all data for `after`."""

    outcome: Outcome
    images: int  # more than the other part, or fewer
    accuracy: Effect
    loss: Effect


@dataclass(frozen=True)
class Curve:
    """The learning curve of one measure: its law, and what more images would take from it.

    `fits` says whether the law meets what all the data come to; where not, it promises nothing beyond them.
    """

    law: Law
    gains: list[Gain]
    fits: bool


@dataclass(frozen=True)
class Bought:
    """All a staleness study found. `rate` is images a month, None where the history is too short to tell one.

    `newest` are the rows of the test images of the last period, none where they are too few to judge by.
    """

    until: list[Outcome]
    added: list[Step]
    after: list[Step]
    shares: list[Outcome]
    error: Curve
    loss: Curve
    rate: float | None
    newest: np.ndarray[tuple[int], np.dtype[np.int64]]
    last: str


def bought(outcomes: Sequence[Outcome], came: Arrivals, found: Sequence[Period], params: Params) -> Bought:
    """Compare the parts, and fit the learning curve.

    Args:
        outcomes: of every part.
        came: when each image came.
        found: the periods.
        params: the confidence of intervals, and the fewest images to judge by.
    """
    confidence = params.evaluate.confidence
    until, shares = of_kind(outcomes, UNTIL), of_kind(outcomes, SHARE)
    added = [_step(later, earlier, confidence) for earlier, later in pairwise(until)]
    after = [_step(outcome, until[-1], confidence) for outcome in of_kind(outcomes, SINCE)]
    newest = np.flatnonzero(came.test > found[-2].last) if until else np.empty(0, np.int64)
    newest = newest if len(newest) >= params.gates.min_slice_images else newest[:0]
    rate = monthly(came.training)
    sizes = [outcome.part.images for outcome in shares]
    more = _questions(max(sizes), rate)
    error = _curve(sizes, [(~outcome.right).astype(np.float64) for outcome in shares], more, confidence)
    loss = _curve(sizes, [outcome.losses for outcome in shares], more, confidence)
    return Bought(until, added, after, shares, error, loss, rate, newest, found[-1].name)


def _curve(sizes: list[int], values: list[Values], more: list[int], confidence: float) -> Curve:
    law, found = gains(sizes, values, more, confidence)
    last = effect(values[-1], confidence)
    return Curve(law, found, last.low <= law.error(sizes[-1]) <= last.high or last.low == last.high)


def _step(this: Outcome, other: Outcome, confidence: float) -> Step:
    accuracy = effect(this.right.astype(float) - other.right, confidence)
    images = this.part.images - other.part.images
    return Step(this, images, accuracy, effect(this.losses - other.losses, confidence))


def _questions(images: int, rate: float | None) -> list[int]:
    """Return the numbers of further images to ask about: months where a rate is known, else shares of what there is."""
    if rate is None:
        return [max(1, round(images * share)) for share in (0.1, 0.5, 1.0)]
    return [max(1, round(rate * months)) for months in (1, 3, 12)]
