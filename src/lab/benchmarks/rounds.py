"""Measure servers side by side: in rounds, each in another order, so that a busy moment of the machine meets them all."""

import http.client
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from src.core.command import UserError
from src.lab.benchmarks import load
from src.lab.benchmarks.limit import Limit, Loops
from src.lab.benchmarks.load import Load
from src.lab.benchmarks.questions import Questions
from src.lab.benchmarks.servers import Server

CONCURRENCIES = (1, 8, 64)
_PAUSE = 0.1  # seconds between two answers that are looked at while there is load
_LONGER = 8  # times the asked seconds, for a server that answers few requests in them


class Case(NamedTuple):
    """A server with what it is asked."""

    server: Server
    questions: Questions


class Checked(NamedTuple):
    """Answers that were read, and how many of them were wrong or failed."""

    answers: int
    wrong: int


class Measured(NamedTuple):
    """One server under load from some connections."""

    load: Load
    checked: Checked
    memory: int  # bytes, just afterwards


class Round(NamedTuple):
    """Every server at every concurrency, and what the cores reach without one."""

    limit: Limit
    servers: dict[str, dict[int, Measured]]


def measure(
    cases: Mapping[str, Case], loops: Loops, seconds: int, rounds: int, done: Callable[[], object]
) -> Iterator[Round]:
    """Yield one round after the other.

    Args:
        cases: the servers by name.
        loops: compute without a server.
        seconds: of load on one server from so many connections.
        rounds: how many.
        done: called after each measurement.

    Raises:
        UserError: a server answers nothing any more.
    """
    names = list(cases)
    for case in cases.values():
        _check(case, len(case.questions.files))
    for number in range(rounds):
        found: dict[str, dict[int, Measured]] = {name: {} for name in names}
        limits: list[Limit] = []
        turned = names[-number % len(names) :] + names[: -number % len(names)]
        for connections in CONCURRENCIES:
            for name in turned:
                quick = found[name][1].load.p50_ms if connections > 1 else None
                found[name][connections] = _one(cases[name], connections, _seconds(seconds, connections, quick))
                done()
            if not limits:  # after the first concurrency, so that it is near to all of them
                limits.append(loops.measure(seconds / 2))
                done()
        yield Round(limits[0], found)


def _seconds(asked: int, connections: int, alone_ms: float | None) -> int:
    """Return for how long to ask: long enough for some answers on every connection, where a lone one takes so long."""
    needed = math.ceil(3 * connections * (alone_ms or 0) / 1000)
    return max(asked, min(needed, _LONGER * asked))


def _one(case: Case, connections: int, seconds: int) -> Measured:
    case.server.settle()
    address = case.server.url + case.questions.path
    if connections == 1:
        asked = load.put(address, case.questions.media, case.questions.files, 1, seconds)
        checked = _check(case, len(case.questions.files))
    else:
        with _Sampler(case) as sampler:
            asked = load.put(address, case.questions.media, case.questions.files, connections, seconds)
        checked = sampler.found
    return Measured(asked, checked, case.server.memory())


class _Sampler:
    """Reads an answer now and then while there is load: batches must not mix up who asked what."""

    def __init__(self, case: Case) -> None:
        self._case, self._over = case, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.found = Checked(0, 0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_PAUSE):
            try:
                one = _check(self._case, 1, self.found.answers)
            except UserError:  # no answer is a wrong one; whether the server is gone, the next measurement tells
                one = Checked(1, 1)
            self.found = Checked(self.found.answers + one.answers, self.found.wrong + one.wrong)


def _check(case: Case, count: int, first: int = 0) -> Checked:
    """Ask some questions on a connection of their own, and read the answers."""
    place, questions = urlsplit(case.server.url), case.questions
    connection = http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=120)
    wrong = 0
    try:
        for number in range(first, first + count):
            index = number % len(questions.files)
            body = questions.files[index].read_bytes()
            connection.request("POST", questions.path, body, {"Content-Type": questions.media})
            answer = connection.getresponse()
            content = answer.read()
            wrong += answer.status != 200 or not _is_right(questions, content, index)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{case.server.name} does not answer ({error}): its log says: {case.server.said()}") from None
    finally:
        connection.close()
    return Checked(count, wrong)


def _is_right(questions: Questions, content: bytes, index: int) -> bool:
    try:
        return questions.is_right(content, questions.expected[index])
    except (ValueError, KeyError, IndexError, TypeError):  # no answer of the kind that is agreed on
        return False
