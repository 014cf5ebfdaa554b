"""From rounds of measurements to numbers: medians over the rounds with their spread, ratios of the same round, verdicts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from src.core.files import rounded
from src.lab.benchmarks.rounds import CONCURRENCIES, Measured, Round

Json = dict[str, Any]

OURS, MAIN, TEXTBOOK, BENTOML = "service", "main", "textbook", "bentoml"
_HEAVY = 2.0  # ms of one image alone: more than a request takes besides


class Goal(NamedTuple):
    """What is promised of a light and of a heavy network; measured facts, never an exit status."""

    what: str
    value: float | None
    limit: float
    at_least: bool

    def to_dict(self) -> Json:
        """Return it as JSON holds it."""
        holds = None if self.value is None else self.value >= self.limit if self.at_least else self.value <= self.limit
        return {"what": self.what, "value": self.value, "limit": self.limit, "at_least": self.at_least, "holds": holds}


def summarize(rounds: Sequence[Round]) -> Json:
    """Return what `serve.json` says of the rounds, of which there is at least one.

    Latencies are medians over the rounds of each round's percentile; a ratio is one of throughputs of the same round.
    """
    names = list(rounds[0].servers)
    made: Json = {
        "raw": _raw(rounds),
        "servers": {name: _server(rounds, name) for name in names},
        "ratios": {one: {other: _ratios(rounds, one, other) for other in names if other != one} for one in names},
    }
    return {**made, "must_hold": [goal.to_dict() for goal in _goals(made)]}


def faults(summary: Json, name: str = OURS) -> tuple[int, int]:
    """Return how many requests to a server went wrong, and how many were sent."""
    entries = summary["servers"][name]["at"].values()
    wrong = sum(entry["failed"] + entry["wrong"] for entry in entries)
    return wrong, sum(entry["requests"] + entry["checked"] for entry in entries)


def _raw(rounds: Sequence[Round]) -> Json:
    rates = {layout: _median(one.limit.rates[layout] for one in rounds) for layout in rounds[0].limit.rates}
    best = max(rates, key=lambda layout: rates[layout] or 0)
    alone = _spread([one.limit.p50_ms for one in rounds])
    return {
        "layouts": rates,
        "best": best,
        "images_per_second": _spread([one.limit.best for one in rounds]),
        "p50_ms": alone,
    }


def _server(rounds: Sequence[Round], name: str) -> Json:
    peak = max(measured.memory for one in rounds for measured in one.servers[name].values())
    return {
        "added_ms": _spread(_added(rounds, name)),
        "memory_mib": rounded(peak / 2**20, 1),
        "at": {str(connections): _at(rounds, name, connections) for connections in CONCURRENCIES},
    }


def _at(rounds: Sequence[Round], name: str, connections: int) -> Json:
    found = [one.servers[name][connections] for one in rounds]
    shares = [_rate(measured) / one.limit.best for measured, one in zip(found, rounds, strict=True)]
    kinds = {kind for measured in found for kind in measured.load.failures}
    return {
        "per_second": _spread([_rate(measured) for measured in found]),
        **{key: _median(getattr(measured.load, key) for measured in found) for key in ("p50_ms", "p95_ms", "p99_ms")},
        "share_of_raw": _spread(shares),
        "requests": sum(measured.load.requests for measured in found),
        "failed": sum(sum(measured.load.failures.values()) for measured in found),
        "failures": {kind: sum(measured.load.failures.get(kind, 0) for measured in found) for kind in sorted(kinds)},
        "checked": sum(measured.checked.answers for measured in found),
        "wrong": sum(measured.checked.wrong for measured in found),
    }


def _rate(measured: Measured) -> float:
    return measured.load.requests / measured.load.seconds


def _ratios(rounds: Sequence[Round], name: str, other: str) -> Json:
    """Return for each concurrency how many times the requests of another server one answers."""
    pairs = {c: [(_rate(one.servers[name][c]), _rate(one.servers[other][c])) for one in rounds] for c in CONCURRENCIES}
    return {str(c): _spread([mine / theirs for mine, theirs in of if theirs]) for c, of in pairs.items()}


def _added(rounds: Sequence[Round], name: str) -> list[float]:
    """Return what a server adds to decode and inference of one image, at the median, in ms."""
    taken = [(one.servers[name][1].load.p50_ms, one.limit.p50_ms) for one in rounds]
    return [mine - alone for mine, alone in taken if mine is not None]


def _goals(made: Json) -> Iterator[Goal]:
    """Yield what is promised: of a heavy network its share of the raw limit, of a light one how many times the others."""
    is_heavy = made["raw"]["p50_ms"]["median"] >= _HEAVY
    for connections in ("8", "64"):
        if is_heavy:
            share = made["servers"][OURS]["at"][connections]["share_of_raw"]["median"]
            yield Goal(f"share of what decode and session.run reach alone, at {connections}", share, 0.9, at_least=True)
        else:
            yield from _times(made["ratios"][OURS], connections)
    yield from _tails(made["servers"])
    added = _middle(made["servers"][OURS]["added_ms"])
    yield Goal("ms that it adds to decode and inference, p50 at 1", added, 1, at_least=False)


def _times(ratios: Json, connections: str) -> Iterator[Goal]:
    for name, what, limit in ((TEXTBOOK, "the textbook's", 4), (BENTOML, "BentoML's default", 6)):
        if name in ratios:
            value = _middle(ratios[name][connections])
            yield Goal(f"times {what} throughput, at {connections}", value, limit, at_least=True)


def _tails(servers: Json) -> Iterator[Goal]:
    for connections, entry in servers.get(TEXTBOOK, {"at": {}})["at"].items():
        mine, theirs = servers[OURS]["at"][connections]["p99_ms"], entry["p99_ms"]
        share = rounded(mine / theirs, 3) if mine and theirs else None
        yield Goal(f"p99 as a share of the textbook's, at {connections}", share, 1, at_least=False)


def _middle(spread: Json | None) -> float | None:
    return spread["median"] if spread else None


def _spread(values: Sequence[float]) -> Json | None:
    """Return median, lowest and highest; None of nothing."""
    if not values:
        return None
    named: dict[str, Callable[[Sequence[float]], float]] = {"median": np.median, "low": min, "high": max}
    return {name: rounded(of(values), 4) for name, of in named.items()}


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return rounded(float(np.median(known)), 3) if known else None
