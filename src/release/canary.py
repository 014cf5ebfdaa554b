"""Is the new version worse than the live one on the traffic that both got? Pure functions over the proxy's log.

Failed answers, refused answers, slow answers and predicted classes are counted and compared by Fisher's exact test (R. A.
Fisher, The Design of Experiments, 1935). A difference counts only where it is both large enough to matter and too large for
chance. All tests together raise a false alarm in fewer than one of a hundred canaries of two equal versions; with 200
requests five points more errors, twice the latency or another mix of classes are seen.

Slow is what lies over the 95 % quantile of both together (A. M. Mood, Introduction to the Theory of Statistics, 1950,
chapter 16). Of the classes each is tested, at its share of the chance (Bonferroni), where the population stability index
of `src.core.statistics` says that the mix has moved.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

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
_FEW = 20  # answers of the live version, to compare with


class Sample(NamedTuple):
    """One prediction as the version that it was meant for answered it, whatever another one then made good."""

    status: int  # 502 where no answer came
    milliseconds: float
    prediction: str  # empty where it was none

    @property
    def failed(self) -> bool:
        """True for an error of the version."""
        return self.status >= 500

    @property
    def refused(self) -> bool:
        """True for an error of the request, as the version says."""
        return 400 <= self.status < 500


@dataclass(frozen=True)
class CanaryVerdict:
    """`ok` is None while there are too few requests; then the reason is what to do if no more come."""

    ok: bool | None
    reasons: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)


def read(path: Path, offset: int = 0) -> tuple[list[Sample], list[Sample]]:
    """Return the live version's and the candidate's predictions in the log's JSON lines after `offset` bytes.

    The proxy's nginx.conf chooses what is logged; a half-written last line is left out.
    """
    samples: dict[str, list[Sample]] = {"live": [], "candidate": []}
    if path.is_file():
        with path.open("rb") as file:
            file.seek(offset)
            lines = file.read().split(b"\n")[:-1]
        for line in lines:
            with suppress(ValueError):
                entry = json.loads(line)
                samples[entry["target"]].append(Sample(entry["status"], entry["seconds"] * 1000, entry["prediction"]))
    return samples["live"], samples["candidate"]


def judge(old: Sequence[Sample], new: Sequence[Sample], settings: Settings) -> CanaryVerdict:
    """Compare the new version's samples with the live one's.

    Before there are enough of them the verdict is None, unless the new version fails so often that more would be cruel.
    """
    numbers = {"requests": float(len(new)), "live_requests": float(len(old))}
    wanted = settings.canary_requests
    if len(new) < wanted or len(old) < min(wanted, _FEW):
        told, _ = _compare_share("failed", old, new, lambda sample: sample.failed, _EARLY)
        return CanaryVerdict(False if told else None, [told or _too_few(len(old), len(new), settings)], numbers)
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


def more_by_chance(mine: int, n: int, theirs: int, m: int) -> float:
    """Return the chance of `mine` or more of `n`, if all that are of `n` and `m` were dealt at random: Fisher, one-sided."""
    from scipy.stats import hypergeom  # takes a second to load, and only a canary needs it

    return float(hypergeom.sf(mine - 1, n + m, mine + theirs, n))


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


def _compare_latency(old: Sequence[Sample], new: Sequence[Sample]) -> tuple[str, dict[str, float]]:
    mine, theirs = (np.array([one.milliseconds for one in samples if not one.failed]) for samples in (new, old))
    if not len(mine) or not len(theirs):
        return "", {}
    p95, live_p95 = (float(np.quantile(values, 0.95)) for values in (mine, theirs))
    numbers = {"latency_p95_ms": p95, "live_latency_p95_ms": live_p95}
    bar = np.quantile(np.concatenate([mine, theirs]), 0.95)
    chance = more_by_chance(int((mine > bar).sum()), len(mine), int((theirs > bar).sum()), len(theirs))
    if p95 <= _SLOWER * live_p95 or p95 - live_p95 <= _FELT_MS or chance > _OTHERS:
        return "", numbers
    return f"p95 of its latency is {p95:.0f} ms, of the live version {live_p95:.0f} ms", numbers


def _compare_classes(old: Sequence[Sample], new: Sequence[Sample]) -> tuple[str, dict[str, float]]:
    """Compare the mix of predicted classes."""
    mine, theirs = (Counter(sample.prediction for sample in samples if sample.prediction) for samples in (new, old))
    n, m = mine.total(), theirs.total()
    if not n or not m:
        return "", {}
    names = sorted(mine.keys() | theirs.keys())
    live_mix, mix = (np.array([side[name] for name in names]) / side.total() for side in (theirs, mine))
    index = stability_index(live_mix, mix, (m, n))
    chances = [more_by_chance(mine[name], n, theirs[name], m) for name in names]  # some class must have won what others lost
    if index <= _SHIFT or min(chances) > _OTHERS / len(names):
        return "", {"class_shift": index}
    name = max(names, key=lambda name: abs(mine[name] / n - theirs[name] / m))
    told = f"{name} is {mine[name] / n:.0%} of its predictions, {theirs[name] / m:.0%} of the live version's"
    return f"it predicts another mix of classes: {told} (stability index {index:.2f})", {"class_shift": index}
