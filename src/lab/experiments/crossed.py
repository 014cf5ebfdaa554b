"""What the mean of several seeds on the same images is worth: seeds and images are both chance, and both are counted."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from src.core.files import rounded


@dataclass(frozen=True)
class Effect:
    """A mean with its interval, and the two-sided p value of its being zero."""

    mean: float
    low: float
    high: float
    p: float


def effect(values: NDArray[np.float64], confidence: float) -> Effect:
    """Return the mean of `values`, float64 of shape (seeds, images), as an estimate over all seeds and all images.

    A model of random effects: seeds and images cross, so the variance of the mean is (MS seeds + MS images - MS rest) /
    (seeds x images), never less than either of the first two alone, with Satterthwaite's degrees of freedom. With one seed
    only the images are counted. An approximation where only a handful of values differ from zero.
    Source: Searle, Casella and McCulloch, "Variance Components" (1992), chapter 4; Satterthwaite (1946).
    """
    seeds, images = values.shape
    mean = float(values.mean())
    by_image = _mean_square(values.mean(axis=0), seeds)
    if seeds == 1:
        return _interval(mean, by_image / images, images - 1, confidence)
    by_seed = _mean_square(values.mean(axis=1), images)
    rest = _rest(values)
    square = max(by_seed + by_image - rest, by_seed, by_image)
    spread = by_seed**2 / (seeds - 1) + by_image**2 / max(1, images - 1) + rest**2 / max(1, (seeds - 1) * (images - 1))
    freedom = square**2 / spread if spread > 0 else 1.0
    return _interval(mean, square / (seeds * images), max(1.0, freedom), confidence)


def _mean_square(means: NDArray[np.float64], each: int) -> float:
    return float(each * means.var(ddof=1)) if len(means) > 1 else 0.0


def _rest(values: NDArray[np.float64]) -> float:
    """Return the mean square of what neither seed nor image explains."""
    seeds, images = values.shape
    residual = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    return float((residual**2).sum() / max(1, (seeds - 1) * (images - 1)))


def _interval(mean: float, variance: float, freedom: float, confidence: float) -> Effect:
    if variance <= 0:
        return Effect(rounded(mean), rounded(mean), rounded(mean), float(mean == 0))
    deviation = variance**0.5
    reach = deviation * float(student.ppf((1 + confidence) / 2, freedom))
    p = float(2 * student.sf(abs(mean) / deviation, freedom))
    return Effect(rounded(mean), rounded(mean - reach), rounded(mean + reach), p)
