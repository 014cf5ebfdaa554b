"""The learning curve: how the error falls with the number of training images, as a power law, and what more would buy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.model_selection import train_test_split

from src.core.files import rounded

_EXPONENTS = np.geomspace(0.02, 2.0, 80)
_RESAMPLES = 300
_SMALLEST = 0.02  # of the largest error: one of zero must not outweigh all others
_SEED = 0
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Law:
    """error(n) = scale * n**-exponent + floor, for n training images."""

    scale: float
    exponent: float
    floor: float

    def error(self, images: float) -> float:
        """Return the expected error with so many training images."""
        return float(self.scale * images**-self.exponent + self.floor)


def subset(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Return sorted rows of a random share of the training images, each class in proportion.

    A class of one image, which cannot be cut in proportion, makes the draw plain.
    """
    rows = np.arange(len(labels))
    if share >= 1:
        return rows
    size = max(2, round(share * len(labels)))
    counts = np.bincount(labels)
    fits = counts[counts > 0].min() >= 2 and min(size, len(labels) - size) >= (counts > 0).sum()
    chosen, _ = train_test_split(rows, train_size=size, random_state=seed, stratify=labels if fits else None)
    return np.sort(chosen)


def fitted(images: Sequence[int], errors: Sequence[float]) -> Law:
    """Fit the law by least squares of relative errors over a grid of exponents; scale and floor are never negative.

    Relative, so that the many images of the last points, whose error is small, count as much as the few of the first.

    Source: Hestness et al., "Deep Learning Scaling is Predictable, Empirically" (2017), with the floor of section 5.

    Args:
        images: numbers of training images, at least two different ones.
        errors: the mean error with each.
    """
    sizes, targets = np.array(images, dtype=float), np.array(errors, dtype=float)
    start = sizes.min()  # sizes as multiples of the smallest, or small exponents and large ones are of unlike scale
    weights = 1 / np.maximum(targets, _SMALLEST * max(float(targets.max()), 1e-9))
    best, law = np.inf, Law(0.0, 1.0, float(targets.mean()))
    for exponent in _EXPONENTS:
        columns = np.stack([(sizes / start) ** -exponent, np.ones_like(sizes)], axis=1)
        (scale, floor), residual = nnls(columns * weights[:, None], targets * weights)
        if residual < best - 1e-12:
            best, law = residual, Law(float(scale * start**exponent), float(exponent), float(floor))
    return law


@dataclass(frozen=True)
class Gain:
    """By how much the error is expected to fall with `more` further images, with the interval of the bootstrap."""

    more: int
    fall: float
    low: float
    high: float


def gains(images: Sequence[int], values: Sequence[Values], more: Sequence[int], confidence: float) -> tuple[Law, list[Gain]]:
    """Fit the law, and say what more images would buy.

    Both seeds and test images are drawn again for the interval, 300 times. It does not know whether the law still holds
    beyond the data: read what lies far outside as a guess.

    Args:
        images: numbers of training images.
        values: for each, the error of every seed on every test image, float64 (seeds, test images).
        more: further images to ask about.
        confidence: of the intervals.
    """
    law = fitted(images, [float(value.mean()) for value in values])
    random = np.random.default_rng(_SEED)
    laws = [fitted(images, _drawn(values, random)) for _ in range(_RESAMPLES)]
    return law, [_gain(max(images), count, law, laws, confidence) for count in more]


def _drawn(values: Sequence[Values], random: np.random.Generator) -> list[float]:
    """Return the mean errors of a bootstrap sample: the same test images for every size, seeds for each size alone."""
    test = random.integers(0, values[0].shape[1], values[0].shape[1])
    return [float(value[random.integers(0, len(value), len(value))][:, test].mean()) for value in values]


def _gain(now: int, more: int, law: Law, laws: Sequence[Law], confidence: float) -> Gain:
    falls = [other.error(now) - other.error(now + more) for other in laws]
    low, high = np.quantile(falls, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Gain(more, *(rounded(float(fall)) for fall in (law.error(now) - law.error(now + more), low, high)))
