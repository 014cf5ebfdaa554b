"""What a difference is worth: on the same test images, and over several trainings of one recipe. Pure functions.

`mine` and `theirs` are masks of right answers, bool of shape (n,), row by row the same images; of several trainings, one
number of each: float64 of shape (runs,).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest, norm, t

from src.core.files import rounded

_SEED = 0  # equal results give an equal interval
_CHUNK = 20_000_000  # numbers drawn at once

Mask = NDArray[np.bool_]
Runs = NDArray[np.float64]


class Pairs(NamedTuple):
    """Two models' right answers on the same examples: how many of `n` the first alone has right, and the second alone.

    Over several trainings an example counts by the shares of them that have it right: `unit` is the weight of one difference
    (1 where there is one training each), `between` the variance between trainings that no example explains.
    """

    n: int
    won: float
    lost: float
    unit: float = 1.0
    between: float = 0.0

    @property
    def difference(self) -> float:
        """Accuracy of the first minus that of the second."""
        return float((self.won - self.lost) / self.n)


def pairs(mine: Mask, theirs: Mask) -> Pairs:
    """Count the examples that one of two models alone has right."""
    lost, won = _discordant(mine, theirs)
    return Pairs(len(mine), won, lost)


def pooled(mine: Mask, theirs: Mask) -> Pairs:
    """Compare two recipes over several trainings each: bool of shape (trainings, n), column by column the same examples.

    An example's difference is that of the two shares of trainings that have it right. One whole example more is counted
    into `unit`: without it a few small differences would promise that no example is lost for good.
    """
    steps = mine.mean(axis=0) - theirs.mean(axis=0)
    unit = (1 + float((steps**2).sum())) / (1 + float(np.abs(steps).sum()))
    won, lost = float(steps[steps > 0].sum()), float(-steps[steps < 0].sum())
    return Pairs(len(steps), won, lost, unit, _between(mine) + _between(theirs))


def _between(right: Mask) -> float:
    """Return the variance of the mean accuracy that is due to trainings better or worse as a whole."""
    trainings, n = right.shape
    if trainings < 2:
        return 0.0
    of_examples = float(right.var(axis=0, ddof=1).mean()) / n
    of_trainings = float(right.mean(axis=1).var(ddof=1))
    return float(max(0.0, of_trainings - of_examples) / trainings)


def quantile(confidence: float) -> float:
    """Return the z that a one-sided test at `confidence` needs: 1.645 at 0.95."""
    return float(norm.ppf(confidence))


def score(found: Pairs, margin: float) -> float:
    """Return Tango's z for "the first is worse by `margin`": high where it is less so, low where it is more so."""
    unit = found.unit
    won, lost = np.array(found.won / unit), np.array(found.lost / unit)
    return float(tango(won, lost, found.n, margin / unit, found.between / unit**2))


def chance_below(found: Pairs, margin: float) -> float:
    """Return the one-sided p value of "the first is worse by no more than `margin`"."""
    return float(norm.cdf(score(found, margin)))


def tango(won: Runs, lost: Runs, n: int, margin: float, between: float = 0.0) -> Runs:
    """Return the score z of many paired outcomes at once; arrays of one shape.

    The variance is that of the most likely pair of shares whose difference is minus the margin, so that it is not zero where
    no example tells the models apart. Source: T. Tango, "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design" (1998).
    """
    b = -won - lost - (2 * n - won + lost) * margin
    c = lost * margin * (1 + margin)
    share = (np.sqrt(np.maximum(b**2 - 8 * n * c, 0)) - b) / (4 * n)
    variance = np.maximum((2 * share - margin * (1 + margin)) / n, 0) + between
    step = (won - lost) / n + margin
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(step) < 1e-12, 0.0, step / np.sqrt(variance))


def score_interval(found: Pairs, confidence: float) -> tuple[float, float]:
    """Return the two-sided interval of the difference that agrees with `score`: its ends are where z is the quantile."""
    z, end = quantile((1 + confidence) / 2), found.unit * (1 - 1e-9)

    def bound(sign: int) -> float:
        def over(difference: float) -> float:
            return float(np.clip(score(found, -difference), -1e6, 1e6)) - sign * z

        outer = -sign * end
        return outer if over(outer) * sign <= 0 else float(brentq(over, outer, found.difference, xtol=1e-9))

    return bound(1), bound(-1)


def margin_of_equals(found: Pairs, confidence: float, share: float = 0.8) -> float:
    """Return the margin that this share of equally good models, as discordant as these, would be shown to keep.

    At least half an example is taken to differ each way. By 2,000 draws with a fixed seed.
    """
    differ = max((found.won + found.lost) / found.unit, 1) / found.n / 2
    drawn = np.random.default_rng(_SEED).multinomial(found.n, [differ, differ, max(0.0, 1 - 2 * differ)], size=2000)
    won, lost = drawn[:, 0].astype(float), drawn[:, 1].astype(float)
    low, high, z = 0.0, 1.0, quantile(confidence)
    for _ in range(20):
        margin = (low + high) / 2
        kept = float((tango(won, lost, found.n, margin, found.between / found.unit**2) >= z).mean())
        low, high = (low, margin) if kept >= share else (margin, high)
    return high * found.unit


def paired_interval(mine: Mask, theirs: Mask, confidence: float, resamples: int) -> tuple[float, float]:
    """Return the percentile interval of the paired bootstrap for the difference of accuracy, mine minus theirs.

    Each image adds -1, 0 or +1, so that resampling images is drawing three counts: exact, and fast for any number of images.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    n = len(mine)
    lost, won = _discordant(mine, theirs)
    drawn = np.random.default_rng(_SEED).multinomial(n, [won / n, lost / n, (n - won - lost) / n], size=resamples)
    return quantiles((drawn[:, 0] - drawn[:, 1]) / n, confidence)


def mean_interval(values: NDArray[np.float64], confidence: float, resamples: int) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of `values`, shape (n,)."""
    random, n = np.random.default_rng(_SEED), len(values)
    step = max(1, _CHUNK // n)
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    means = [values[random.integers(0, n, (size, n))].mean(axis=1) for size in sizes]
    return quantiles(np.concatenate(means), confidence)


def interval(
    statistic: Callable[[NDArray[np.int64]], float], n: int, confidence: float, resamples: int
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a statistic of chosen rows out of `n`."""
    return quantiles(resampled(statistic, n, resamples), confidence)


def resampled(statistic: Callable[[NDArray[np.int64]], float], n: int, resamples: int) -> NDArray[np.float64]:
    """Return a statistic of so many bootstrap samples of `n` rows, shape (resamples,)."""
    random = np.random.default_rng(_SEED)
    return np.array([statistic(random.integers(0, n, n)) for _ in range(resamples)])


def mcnemar(mine: Mask, theirs: Mask) -> dict[str, float]:
    """Return the counts of images that only one model has right, and the exact two-sided p value of McNemar's test.

    Source: Q. McNemar, "Note on the sampling error of the difference between correlated proportions" (1947).
    """
    lost, won = _discordant(mine, theirs)
    p = float(binomtest(lost, lost + won, 0.5).pvalue) if lost + won else 1.0
    return {"only_main_right": lost, "only_candidate_right": won, "p": rounded(p)}


def one_sided(mine: Mask, theirs: Mask) -> float:
    """Return the exact chance of losing as many images as were lost, or more, where both models are equally good."""
    lost, won = _discordant(mine, theirs)
    return float(binomtest(lost, lost + won, 0.5, alternative="greater").pvalue) if lost + won else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for having looked so many times, in the given order.

    Source: S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (1979).
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.array(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return [float(p) for p in adjusted]


class Spread(NamedTuple):
    """The mean of several trainings, their standard deviation (n - 1), and the interval of the mean."""

    mean: float
    deviation: float
    low: float
    high: float


def spread(values: Runs, overlap: float, confidence: float) -> Spread:
    """Return the mean of two or more trainings with its t interval.

    Args:
        values: one number of each training; for a paired comparison the differences, fold by fold.
        overlap: 0 for trainings that have nothing but the data in common. For folds, held-out images over training images:
            the training sets of two folds share most of their images, so that the plain interval is far too narrow, and
            the variance of the mean is taken as (1 / n + overlap) of the variance between folds.
        confidence: of the interval.

    Source: C. Nadeau and Y. Bengio, "Inference for the Generalization Error" (2003), the corrected resampled t-test; for
    folds: R. Bouckaert and E. Frank, "Evaluating the Replicability of Significance Tests" (2004).
    """
    n, mean, deviation = len(values), float(values.mean()), float(values.std(ddof=1))
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * deviation * math.sqrt(1 / n + overlap)
    return Spread(mean, deviation, mean - half, mean + half)


def _discordant(mine: Mask, theirs: Mask) -> tuple[int, int]:
    """Count the images that only `theirs` has right, and those that only `mine` has."""
    return int((theirs & ~mine).sum()), int((mine & ~theirs).sum())


def quantiles(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Return the two ends between which the middle share of the values lies."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
