"""What attackers send: many kinds of requests, endlessly varied, each with what may rightly come back.

`KINDS` names them. `attack` sends one; tests/test_hostile.py and `make soak` send thousands.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import numpy as np

from src.lab.benchmarks import (  # noqa: F401 - each puts its kinds on the lists
    hostile_clients,
    hostile_forms,
    hostile_http,
    hostile_jpeg,
    hostile_png,
    hostile_tiff,
)
from src.lab.benchmarks.exchange import Sent, answers, exchange, fault
from src.lab.benchmarks.hostile_kinds import FILES, REQUESTS, File, Random, send_file

_ANY = frozenset({408, 429})  # may answer whatever a busy service is asked
_SELDOM = 8  # of so many rounds, those that hold a connection for long take part in one


class Kind(NamedTuple):
    """How to make a request of a kind, and what may rightly come back; see `Request`."""

    make: Callable[[Random], Sent]
    may: frozenset[int]
    silent: bool = False
    slow: bool = False


def _of_file(file: File) -> Kind:
    # in a form beside others a picture that is too large makes the form a bad one
    may = file.may | ({400} if 413 in file.may else set()) | _ANY
    return Kind(lambda random: send_file(file.make(random), random), frozenset(may))


KINDS: dict[str, Kind] = {name: _of_file(file) for name, file in FILES.items()}
KINDS |= {name: Kind(made.make, made.may | _ANY, made.silent, made.slow) for name, made in REQUESTS.items()}


@dataclass
class Tally:
    """What came of all requests: statuses and closed connections by kind, and what was wrong."""

    answered: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    longest: dict[str, float] = field(default_factory=dict)  # seconds

    @property
    def requests(self) -> int:
        """How many were sent."""
        return sum(sum(kind.values()) for kind in self.answered.values())


def order(random: Random, names: Sequence[str] = tuple(KINDS)) -> Iterator[str]:
    """Yield kinds for ever, all equally often but for those that take long."""
    for turn in count():
        chosen = [name for place, name in enumerate(names) if not KINDS[name].slow or (turn + place) % _SELDOM == 0]
        random.shuffle(chosen)
        yield from chosen


def attack(place: tuple[str, int], name: str, seed: int, seconds: float, tally: Tally) -> None:
    """Send one request of a kind and write down what came of it.

    Args:
        place: host and port.
        name: of the kind.
        seed: with it the same request can be made again.
        seconds: to wait at most.
        tally: to write into.
    """
    kind = KINDS[name]
    sent = kind.make(np.random.default_rng(seed))
    began = time.monotonic()
    outcome = exchange(place, sent, seconds)
    wrong = fault(outcome, sent, kind.may, kind.silent or sent.end == "reset")
    if wrong:
        tally.faults.append(f"{name} (seed {seed}): {wrong}")
        told = ["wrong"]
    else:
        told = [str(answer.status) for answer in answers(outcome.received, sent.bodyless)] or ["closed"]
    tally.answered.setdefault(name, Counter())[told[0]] += 1
    tally.longest[name] = max(tally.longest.get(name, 0.0), time.monotonic() - began)


def siege(place: tuple[str, int], requests: int, seed: int, clients: int = 8, seconds: float = 30.0) -> Tally:
    """Send many requests of all kinds, from several connections at once.

    Args:
        place: host and port.
        requests: how many.
        seed: of all of them.
        clients: at once.
        seconds: for each at most.
    """
    tally, lock = Tally(), threading.Lock()
    names = order(np.random.default_rng(seed))
    numbers = iter(range(requests))

    def client() -> None:
        while True:
            with lock:
                number = next(numbers, None)
                name = next(names)
            if number is None:
                return
            try:
                attack(place, name, seed * 1_000_000 + number, seconds, tally)
            except OSError as error:
                tally.faults.append(f"{name}: no connection ({error})")

    threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally
