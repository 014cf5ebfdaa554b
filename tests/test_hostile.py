"""The service withstands what attackers send: python -m pytest tests/test_hostile.py

The kinds of requests, and what may come back, are in src/benchmarks/hostile.py.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, closing
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from test_serving import SERVICE, make_engine, picture, served, serving, stop_all, wait_ready, write_model

from src.benchmarks import soak_watch
from src.benchmarks.exchange import Answer, Outcome, Sent, answers, exchange, fault
from src.benchmarks.hostile import KINDS, Tally, attack, order, siege
from src.benchmarks.hostile_kinds import CANARY, FILES, all_of
from src.benchmarks.soak_client import Connection, labels, request

REQUESTS = 2000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    folder = write_model(tmp_path_factory.mktemp("hostile") / "model")
    with serving(make_engine(folder, timeout=1.0, max_body=10_000_000, max_pixels=12_500_000)) as url:
        yield "127.0.0.1", int(url.rsplit(":", 1)[1])


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.slow])
def test_a_hostile_request_is_refused_or_harmless(place: tuple[str, int], name: str) -> None:
    tally = Tally()
    attack(place, name, 1, 15, tally)
    assert tally.faults == []


def test_there_are_many_kinds_and_each_is_made_again_from_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(KINDS) > 100
    for name, kind in KINDS.items():
        one = all_of(kind.make(np.random.default_rng(5)).pieces)
        with monkeypatch.context() as later:
            later.setattr(time, "time", lambda now=time.time: now() + 3600)
            assert all_of(kind.make(np.random.default_rng(5)).pieces) == one, name


def test_all_kinds_come_equally_often_and_those_that_wait_seldom() -> None:
    names = [name for name, _ in zip(order(np.random.default_rng(1)), range(8 * len(KINDS)), strict=False)]
    for name, kind in KINDS.items():
        assert names.count(name) in ((1, 2) if kind.slow else (7, 8, 9)), name


GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
PROBLEM = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\nx-request-id: Ab\r\ncontent-length: %d\r\n\r\n%s"
)
DETAILS = b'{"status": 400, "title": "Bad Request", "request_id": "Ab", "detail": "x"}'


def refusal(body: bytes) -> bytes:
    return PROBLEM % (len(body), body)


@pytest.mark.parametrize(
    ("received", "closed", "late", "says"),
    [
        (refusal(DETAILS), True, False, None),
        (GOOD, False, False, "status 200"),
        (b"", True, False, "closed without a word"),
        (b"", False, True, "neither answered nor closed"),
        (b"hello\r\n\r\n", True, False, "no HTTP answer"),
        (refusal(DETAILS.replace(b'"Ab"', b'"B"')), True, False, "request id"),
        (refusal(DETAILS.replace(b"400", b"500")), True, False, "another status"),
        (refusal(DETAILS.replace(b'"x"', b'"/tmp/x.onnx"')), True, False, "how the service is made"),
        (refusal(b"no JSON"), True, False, "no JSON"),
        (refusal(DETAILS).replace(b"problem+json", b"json"), True, False, "no problem details"),
    ],
)
def test_what_is_wrong_with_an_answer_is_seen(received: bytes, closed: bool, late: bool, says: str | None) -> None:
    found = fault(Outcome(bytearray(received), closed, late), Sent([]), frozenset({400}), silent=False)
    assert (found or "").find(says or "") >= 0
    assert (found is None) == (says is None)


def test_answers_are_told_apart_and_a_cut_one_is_none() -> None:
    received = b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD + refusal(DETAILS)
    assert [answer.status for answer in answers(received)] == [200, 400]
    assert [answer.status for answer in answers(received[:-1])] == [200]
    assert list(answers(GOOD[:-2], bodyless=True)) == [Answer(200, GOOD[:-6].lower(), b"")]


def test_a_good_picture_among_hostile_ones_is_still_a_picture(place: tuple[str, int]) -> None:
    outcome = exchange(place, Sent([request(b"/predict", b"image/png", picture())]), 10)
    assert [answer.status for answer in answers(outcome.received)] == [200]
    assert {200} & FILES["archive in a png"].may


# ---------------------------------------------------------------------------------------------------------------------
# As it really runs
# ---------------------------------------------------------------------------------------------------------------------


class Client(threading.Thread):
    """Asks all the time, as an honest client does: told to come again later, it does."""

    def __init__(self, place: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self.place, self.over = place, threading.Event()
        self.faults: list[str] = []
        self.latencies: list[float] = []
        self.later = 0

    def run(self) -> None:
        content = request(b"/predict", b"image/png", picture())
        with closing(Connection(self.place)) as connection:
            while not self.over.wait(0.005):
                began = time.perf_counter()
                try:
                    status, body = connection.ask(content)
                    if status == 429:
                        self.later += 1
                    elif status != 200 or labels(body) != ("red",):
                        self.faults.append(f"{status}: {body!r}")
                    self.latencies.append(time.perf_counter() - began)
                except (OSError, ValueError) as error:
                    self.faults.append(repr(error))
                    connection.close()

    def stop(self) -> None:
        self.over.set()
        self.join(30)


@pytest.mark.slow
def test_a_siege_harms_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path / "model")
    variables = {"SERVE_MODEL": str(model), "SERVE_WORKERS": "2", "SERVE_ACCESS_LOG": "1"}
    with served(tmp_path, SERVICE, ROOT, **variables) as (process, url), ExitStack() as stack:
        assert process.stdout
        log = stack.enter_context(ThreadPoolExecutor(1)).submit(
            process.stdout.read
        )  # a pipe that nobody reads would stop the service
        wait_ready(url)
        place = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        attackers = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))  # the client shall not wait for them
        attackers.submit(siege, place, len(KINDS), 1).result()  # what grows once, as buffers do, has grown
        watched = soak_watch.processes(place[1])
        before = soak_watch.settled(watched)
        client = Client(place)
        client.start()
        tally = attackers.submit(siege, place, REQUESTS, 2).result()
        client.stop()
        after = soak_watch.settled(watched)
        same = soak_watch.processes(place[1])
        stop_all(process)
        said = log.result()
    with capsys.disabled():
        p50, p99 = np.percentile(np.array(client.latencies) * 1000, (50, 99))
        print(f"\n  a good client meanwhile: {len(client.latencies)} answers, p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        print(f"  memory {before.memory / 1e6:.0f} MB before, {after.memory / 1e6:.0f} MB after")
    assert tally.faults == []
    assert tally.requests == REQUESTS
    assert len(tally.answered) == len(KINDS)
    assert client.faults == []
    assert client.later < 0.02 * len(client.latencies)
    assert [process.pid for process in same] == [process.pid for process in watched]
    assert after.memory < 1.2 * before.memory
    assert not soak_watch.leaks(before, after)
    assert "Traceback" not in said
    assert CANARY.decode() not in said
