"""May INT8 be served in the place of float? Pure functions: answers and times in, numbers, a verdict and its reasons out."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from src.core import metrics, significance
from src.core.files import rounded
from src.judging.gates_params import Gates, Quantize

Verdict = Literal["pass", "fail"]
Numbers = Mapping[str, Any]


def compare(
    labels: NDArray[np.int64], plain: NDArray[np.float32], int8: NDArray[np.float32], gates: Gates, bins: int
) -> dict[str, Any]:
    """Return what INT8 costs on labelled images: accuracy with the interval of its difference, and how answers moved.

    `labels` has shape (n,), `plain` and `int8` are probabilities of shape (n, classes). A negative `difference` is a loss.
    The interval is that of `src.core.significance.paired_interval`.
    """
    predicted = [probabilities.argmax(axis=1) for probabilities in (plain, int8)]
    right = [labels == guess for guess in predicted]
    low, high = significance.paired_interval(right[1], right[0], gates.confidence, gates.resamples)
    rows = [_overall(labels, probabilities, bins) for probabilities in (plain, int8)]
    return {
        "examples": len(labels),
        "float": rows[0],
        "int8": rows[1],
        "difference": rounded(right[1].mean() - right[0].mean()),
        "low": rounded(low),
        "high": rounded(high),
        "confidence": gates.confidence,
        "log_loss_rise": rounded(rows[1]["log_loss"] - rows[0]["log_loss"]),
        "ece_rise": rounded(rows[1]["ece"] - rows[0]["ece"]),
        "changed_predictions": rounded((predicted[0] != predicted[1]).mean()),
        "largest_probability_difference": rounded(np.abs(plain - int8).max()),
    }


def _overall(labels: NDArray[np.int64], probabilities: NDArray[np.float32], bins: int) -> dict[str, float]:
    return {
        "accuracy": rounded((probabilities.argmax(axis=1) == labels).mean()),
        "log_loss": rounded(metrics.log_losses(labels, probabilities).mean()),
        "ece": rounded(metrics.calibration_error(labels, probabilities, bins)),
    }


def judge(accuracy: Numbers, speed: Sequence[Numbers], limits: Quantize, gates: Gates) -> tuple[Verdict, list[str]]:
    """Return the verdict and its reasons, each a sentence.

    INT8 passes where it is surely no worse than the margin and surely faster: the worse end of each interval decides, and
    of the ways to serve the one that gains least, because a service may take any of them.

    Args:
        accuracy: from `compare`.
        speed: from `src.judging.speed.side_by_side`, with `batch` and `threads`.
        limits: the margins.
        gates: of all models; the largest rise of the log loss is theirs.
    """
    sentences = [
        _accuracy(accuracy, limits.max_accuracy_drop),
        _log_loss(accuracy, gates.max_log_loss_rise),
        _speed(min(speed, key=lambda row: float(row["low"])), limits.min_speedup),
    ]
    wrong = [sentence for held, sentence in sentences if not held]
    return ("fail", wrong) if wrong else ("pass", [sentence for _, sentence in sentences])


def _accuracy(found: Numbers, margin: float) -> tuple[bool, str]:
    """A loss has to be surely under the margin."""
    difference, low = found["difference"], found["low"]
    told = f"accuracy {difference:+.2%} ({low:+.2%} to {found['high']:+.2%}) on {found['examples']} test images"
    if low >= -margin:
        return True, f"{told}, within quantize.max_accuracy_drop {margin:.2%}"
    if difference >= -margin:
        return False, f"{told}: too few to be sure that the loss is under quantize.max_accuracy_drop {margin:.2%}"
    return False, f"{told}: more is lost than quantize.max_accuracy_drop {margin:.2%}"


def _log_loss(found: Numbers, limit: float) -> tuple[bool, str]:
    told = f"log loss {found['log_loss_rise']:+.4f}"
    if found["log_loss_rise"] <= limit:
        return True, f"{told}, within gates.max_log_loss_rise {limit:g}"
    return False, f"{told}, over gates.max_log_loss_rise {limit:g}: its probabilities are worse"


def _speed(row: Numbers, least: float) -> tuple[bool, str]:
    """Judge by the lower end of the ratio's interval."""
    threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
    told = f"{row['ratio']:.2f} times as fast ({row['low']:.2f} to {row['high']:.2f}) at batch {row['batch']}, {threads}"
    if row["low"] >= least:
        return True, f"at least {told}, over quantize.min_speedup {least:g}"
    if row["ratio"] >= least:
        return False, f"only {told}: too uncertain to be over quantize.min_speedup {least:g}"
    return False, f"only {told}: under quantize.min_speedup {least:g}"
