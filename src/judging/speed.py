"""How fast a model answers on this machine, and how much faster than another one: both in turns, to meet the same load."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.core.files import rounded
from src.core.inference import Model
from src.core.significance import interval

_BLOCK = 0.03  # seconds of calls that count as one measurement
_LEAST, _MOST = 9, 40  # rounds
_BUDGET = 6.0  # seconds of one comparison, once the least rounds are done
_WARM_UP = 2  # batches
_WARM_UP_REQUESTS = 20


def side_by_side(slow: Model, fast: Model, images: NDArray[Any], confidence: float, resamples: int) -> dict[str, float]:
    """Time one batch on both models, in rounds.

    Args:
        slow: the one that is to be replaced.
        fast: the other one.
        images: one batch, of the models' size.
        confidence: of the interval.
        resamples: of the bootstrap.

    Returns:
        `slow` and `fast` in images a second, `ratio` (median over the rounds; above 1 means that `fast` is faster) with its
        interval `low` to `high`, and `rounds`.
    """
    calls = [_calls(model, images) for model in (slow, fast)]
    times: list[list[float]] = []
    started = time.perf_counter()
    while len(times) < _LEAST or (len(times) < _MOST and time.perf_counter() - started < _BUDGET):
        order = (0, 1) if len(times) % 2 == 0 else (1, 0)
        taken = {which: calls[which]() for which in order}
        times.append([taken[0], taken[1]])
    return _numbers(np.array(times), len(images), confidence, resamples)


def latencies(model: Model, images: NDArray[Any], requests: int) -> NDArray[np.float64]:
    """Return how long each of so many single-image requests took, in milliseconds, after a warm-up."""
    for _ in range(_WARM_UP_REQUESTS):
        model.probabilities(images[:1])
    taken = np.empty(requests)
    for i in range(requests):
        started = time.perf_counter()
        model.probabilities(images[i % len(images)][None])
        taken[i] = (time.perf_counter() - started) * 1000
    return taken


def percentiles(milliseconds: NDArray[np.float64]) -> dict[str, float]:
    """Return p50, p95 and p99."""
    values = np.percentile(milliseconds, [50, 95, 99])
    return {name: rounded(value, 4) for name, value in zip(("p50", "p95", "p99"), values, strict=True)}


def _calls(model: Model, images: NDArray[Any]) -> Callable[[], float]:
    """Return a function that measures the seconds of one call, as the mean of a block."""
    for _ in range(_WARM_UP):
        model.probabilities(images)
    started = time.perf_counter()
    model.probabilities(images)
    count = max(1, int(_BLOCK / (time.perf_counter() - started)))

    def measure() -> float:
        begun = time.perf_counter()
        for _ in range(count):
            model.probabilities(images)
        return (time.perf_counter() - begun) / count

    return measure


def _numbers(times: NDArray[np.float64], batch: int, confidence: float, resamples: int) -> dict[str, Any]:
    ratios = times[:, 0] / times[:, 1]
    low, high = interval(lambda rows: float(np.median(ratios[rows])), len(ratios), confidence, resamples)
    slow, fast = batch / np.median(times, axis=0)
    return {
        "slow": rounded(slow, 1),
        "fast": rounded(fast, 1),
        "ratio": rounded(float(np.median(ratios)), 3),
        "low": rounded(low, 3),
        "high": rounded(high, 3),
        "rounds": len(ratios),
    }
