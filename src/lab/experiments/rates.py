"""What the losses of a learning rate range test say, and their picture. Called by src/lab/experiments/find_lr.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from src.core import pictures

_WIDTH = 1 / 8  # of the smoothing, in decades of the rate
_FALL = 0.02  # share of the first loss that it must fall by to have fallen at all


@dataclass(frozen=True)
class Round:
    """One test: rising rates, evenly spaced in their logarithm, and the loss of a step at each; both float64 (n,)."""

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """For each round in which the loss fell: the rates at which it fell fastest, was lowest, and had lost half its gain.

    The last is missing where the test ended before.
    """

    rounds: int
    steepest: list[float]
    lowest: list[float]
    broken: list[float]

    @property
    def low(self) -> float | None:
        """Return the lower end of what is suggested, None where the loss never fell."""
        return min(self._ends) if self._ends else None

    @property
    def high(self) -> float | None:
        """Return the upper end."""
        return max(self._ends) if self._ends else None

    @property
    def _ends(self) -> list[float]:
        """Return a tenth of the rate with the lowest loss, and the rate of its steepest fall, as medians of the rounds."""
        return [float(np.median(self.lowest)) / 10, float(np.median(self.steepest))] if self.steepest else []


def smoothed(one: Round) -> NDArray[np.float64]:
    """Return the losses under a Gaussian in the logarithm of the rate.

    It looks both ways: a running mean, as fastai's, lags behind, and would show each fall at a rate that is too high.
    """
    if len(one.rates) < 2:
        return one.losses
    steps_a_decade = 1 / np.log10(one.rates[1] / one.rates[0])
    return np.asarray(gaussian_filter1d(one.losses, _WIDTH * steps_a_decade, mode="nearest"))


def answer(rounds: Sequence[Round]) -> Answer:
    """Read each round's curve."""
    found = Answer(len(rounds), [], [], [])
    for one in rounds:
        curve = smoothed(one)
        lowest = int(curve.argmin())
        fall = curve[0] - curve[lowest]
        if lowest < 2 or fall < _FALL * curve[0]:
            continue
        slopes = np.gradient(curve[: lowest + 1])  # the rates are evenly spaced in their logarithm
        found.steepest.append(float(one.rates[slopes.argmin()]))
        found.lowest.append(float(one.rates[lowest]))
        lost = np.flatnonzero(curve[lowest:] > curve[lowest] + fall / 2)
        if len(lost):
            found.broken.append(float(one.rates[lowest + lost[0]]))
    return found


def picture(path: Path, rounds: Sequence[Round], found: Answer, now: float) -> None:
    """Draw every round's losses and their smoothed curve over the rate, what is suggested, and the rate that is set."""
    made = pictures.figure(7.5, 4.2)
    axes = made.subplots()
    for one in rounds:
        axes.plot(one.rates, one.losses, color=pictures.GREY, linewidth=0.6, alpha=0.7)
    for i, one in enumerate(rounds):
        axes.plot(one.rates, smoothed(one), color=pictures.BLUE, label="" if i else "training loss, smoothed, each round")
    if found.low is not None and found.high is not None:
        label = f"suggested: {found.low:.2g} to {found.high:.2g}"
        axes.axvspan(found.low, found.high, color=pictures.ORANGE, alpha=0.25, linewidth=0, label=label)
    axes.axvline(now, color=pictures.RED, linestyle="--", label=f"params.yaml: {now:g}")
    curves = np.concatenate([smoothed(one) for one in rounds])
    top = 2 * max(one.losses[0] for one in rounds)  # what is higher is broken, and would press the rest flat
    axes.set(xscale="log", ylim=(max(0.0, curves.min() * 0.8), top), xlabel="learning rate", ylabel="training loss")
    axes.set_title("Learning rate range test")
    axes.legend(fontsize=8, loc="lower left")
    pictures.save(made, path)
