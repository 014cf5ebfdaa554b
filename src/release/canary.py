"""Is the new version worse than the live one on the traffic that both got? Pure functions over the proxy's log.

Failed answers, refused answers, latency and the mix of predicted classes are compared. A difference counts only where it is
both large enough to matter and too large for chance. All four tests together raise a false alarm in fewer than one of a
hundred canaries of two equal versions (at most 24 of 4000 in simulations); with 200 requests five points more errors, twice
the latency or another mix of classes are seen.

Sources. Counts: Fisher's exact test (R. A. Fisher, The Design of Experiments, 1935), one-sided. Latency: the quantile test,
which is Fisher's test of how many of each side lie over a quantile of both together (A. M. Mood, Introduction to the Theory
of Statistics, 1950, chapter 16, with the 95 % quantile in place of the median). Classes: Pearson's chi-square test of
homogeneity, classes expected fewer than five times put together (W. G. Cochran, "Some methods for strengthening the common
chi-square tests", 1954), and the population stability index of `src.core.statistics`.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from src.core.statistics import stability_index
from src.release.settings import Settings

# chances of a false alarm; together under 1 %
_ERRORS = 0.005
_OTHERS = 0.0015
_EARLY = 0.0001  # of a judgement that comes early, and so is asked for again and again

_POINT = 0.01  # more failed or refused answers than this matter
_SLOWER = 1.5  # times the p95 of the live version
_FELT_MS = 10.0
_SHIFT = 0.25  # stability index of a major shift
_PATHS = ("/predict", "/predict_batch", "/.copy")  # the last is what the proxy calls a mirrored prediction
_FEW = 20  # answers of the live version, to compare with


class Sample(NamedTuple):
    """One request as the version that it was meant for answered it, whatever another one then made good."""

    failed: bool  # 5xx, or no answer
    refused: bool  # 4xx
    milliseconds: float | None
    prediction: str | None


@dataclass(frozen=True)
class CanaryVerdict:
    """`ok` is None while there are too few requests; then the reason is what to do if no more come."""

    ok: bool | None
    reasons: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------------------------
# The proxy's log
# ---------------------------------------------------------------------------------------------------------------------


def read(path: Path, offset: int = 0) -> dict[str, list[Sample]]:
    """Return the predictions in the JSON lines after `offset` bytes, by target: live and candidate.

    A half-written last line is left out, and so is what a client gave up before a version had answered.
    """
    samples: dict[str, list[Sample]] = {"live": [], "candidate": []}
    if not path.is_file():
        return samples
    with path.open("rb") as file:
        file.seek(offset)
        lines = file.read().split(b"\n")[:-1]
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict):
            continue
        sample = _sample(entry) if entry.get("path") in _PATHS and entry.get("method", "POST") == "POST" else None
        if sample and entry.get("target") in samples:
            samples[entry["target"]].append(sample)
    return samples


def _sample(entry: dict[str, Any]) -> Sample | None:
    """Read nginx's account of all versions that it asked, `502, 200` and `0.004, 0.020`; the first is the one meant."""
    asked = _parts(entry.get("upstream_status"))
    status = _number(asked[0]) if asked else None
    if status is None:
        if entry.get("status") == 499:  # the client went away first
            return None
        status = 502
    took = _parts(entry.get("upstream_time"))
    seconds = _number(took[0]) if took else None
    failed = status >= 500
    return Sample(
        failed=failed,
        refused=400 <= status < 500,
        milliseconds=seconds * 1000 if seconds is not None and not failed else None,
        prediction=(entry.get("prediction") or None) if status == 200 and len(asked) == 1 else None,
    )


def _parts(value: Any) -> list[str]:
    return [part for part in str(value or "").replace(":", ",").replace(" ", "").split(",") if part]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # nginx writes - where there is none
        return None


# ---------------------------------------------------------------------------------------------------------------------
# The judgement
# ---------------------------------------------------------------------------------------------------------------------


def judge(old: Sequence[Sample], new: Sequence[Sample], settings: Settings) -> CanaryVerdict:
    """Compare the new version's samples with the live one's.

    Before there are enough of them the verdict is None, unless the new version fails so often that more would be cruel.
    """
    numbers = {"requests": float(len(new)), "live_requests": float(len(old))}
    wanted = settings.canary_requests
    if len(new) < wanted or len(old) < min(wanted, _FEW):
        told, _ = _compare_share("failed", old, new, lambda sample: sample.failed, _EARLY)
        if told:
            return CanaryVerdict(False, [told], numbers)
        return CanaryVerdict(None, [_too_few(len(old), len(new), settings)], numbers)
    reasons = []
    for told, found in (
        _compare_share("failed", old, new, lambda sample: sample.failed, _ERRORS),
        _compare_share("were refused", old, new, lambda sample: sample.refused, _OTHERS),
        _compare_latency(old, new),
        _compare_classes(old, new),
    ):
        reasons += [told] if told else []
        numbers |= found
    return CanaryVerdict(not reasons, reasons, {name: round(value, 6) for name, value in numbers.items()})


def _too_few(old: int, new: int, settings: Settings) -> str:
    seconds = f"{settings.canary_seconds:g} s"
    if new < settings.canary_requests:
        share = "" if settings.strategy == "shadow" else ", or raise CANARY_SHARE"
        return (
            f"only {new} of {settings.canary_requests} requests came in {seconds}: lower CANARY_REQUESTS, "
            f"raise CANARY_SECONDS{share}; the old version stays"
        )
    return (
        f"only {old} requests of the live version came in {seconds}, too few to compare with: lower CANARY_SHARE, "
        "or raise CANARY_SECONDS; the old version stays"
    )


def _compare_share(
    what: str, old: Sequence[Sample], new: Sequence[Sample], is_one: Callable[[Sample], bool], alpha: float
) -> tuple[str, dict[str, float]]:
    """Compare how many samples are one of a kind: more by over a point, and by more than chance."""
    mine, theirs = sum(map(is_one, new)), sum(map(is_one, old))
    share, live_share = mine / max(1, len(new)), theirs / max(1, len(old))
    name = what.rsplit(maxsplit=1)[-1]
    numbers = {f"{name}_share": share, f"live_{name}_share": live_share}
    if share - live_share <= _POINT or more_by_chance(mine, len(new), theirs, len(old)) > alpha:
        return "", numbers
    return f"{mine} of {len(new)} requests {what} ({share:.1%}), of the live version {theirs} of {len(old)}", numbers


def more_by_chance(mine: int, n: int, theirs: int, m: int) -> float:
    """Return the chance of `mine` or more of `n`, if all that are of `n` and `m` were dealt at random: Fisher, one-sided."""
    from scipy.stats import hypergeom  # takes a second to load, and only a canary needs it

    return float(hypergeom.sf(mine - 1, n + m, mine + theirs, n))


def _compare_latency(old: Sequence[Sample], new: Sequence[Sample]) -> tuple[str, dict[str, float]]:
    mine, theirs = _milliseconds(new), _milliseconds(old)
    if not len(mine) or not len(theirs):
        return "", {}
    p95, live_p95 = (float(np.quantile(values, 0.95)) for values in (mine, theirs))
    numbers = {"latency_p95_ms": p95, "live_latency_p95_ms": live_p95}
    bar = np.quantile(np.concatenate([mine, theirs]), 0.95)
    chance = more_by_chance(int((mine > bar).sum()), len(mine), int((theirs > bar).sum()), len(theirs))
    if p95 <= _SLOWER * live_p95 or p95 - live_p95 <= _FELT_MS or chance > _OTHERS:
        return "", numbers
    return f"p95 of its latency is {p95:.0f} ms, of the live version {live_p95:.0f} ms", numbers


def _milliseconds(samples: Sequence[Sample]) -> NDArray[np.float64]:
    return np.array([sample.milliseconds for sample in samples if sample.milliseconds is not None], dtype=np.float64)


def _compare_classes(old: Sequence[Sample], new: Sequence[Sample]) -> tuple[str, dict[str, float]]:
    """Compare the mix of predicted classes."""
    mine, theirs = (Counter(sample.prediction for sample in samples if sample.prediction) for samples in (new, old))
    if not mine or not theirs:
        return "", {}
    names = sorted(mine.keys() | theirs.keys())
    counts = _put_rare_together(np.array([[side[name] for name in names] for side in (theirs, mine)]))
    live_mix, mix = counts / counts.sum(axis=1, keepdims=True)
    index = stability_index(live_mix, mix, (theirs.total(), mine.total()))
    numbers = {"class_shift": index}
    if index <= _SHIFT or _same_mix(counts) > _OTHERS:
        return "", numbers
    moved = {name: (mine[name] / mine.total(), theirs[name] / theirs.total()) for name in names}
    name, (share, live_share) = max(moved.items(), key=lambda item: abs(item[1][0] - item[1][1]))
    told = f"{name} is {share:.0%} of its predictions, {live_share:.0%} of the live version's"
    return f"it predicts another mix of classes: {told} (stability index {index:.2f})", numbers


def _put_rare_together(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join columns until each is expected at least five times in either row; `counts` has shape (2, classes)."""
    expected = counts.sum(axis=1).min() * counts.sum(axis=0) / counts.sum()
    rare = expected < 5
    if not rare.any():
        return counts
    kept, joined = counts[:, ~rare], counts[:, rare].sum(axis=1, keepdims=True)
    if expected[rare].sum() >= 5 or not kept.shape[1]:
        return np.hstack([kept, joined])
    smallest = int(expected[~rare].argmin())
    kept[:, smallest] += joined[:, 0]
    return kept


def _same_mix(counts: NDArray[np.int64]) -> float:
    """Return the chance of mixes as different as these, or more, if the classes did not depend on the version."""
    from scipy.stats import chi2_contingency

    return float(chi2_contingency(counts, correction=False).pvalue) if counts.shape[1] > 1 else 1.0
