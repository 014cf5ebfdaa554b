"""A soak tells a service that stays as it was from one that does not: python -m pytest tests/test_soak.py"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT
from test_serving import make_engine, picture, serving, write_model

from src.benchmarks import soak_watch
from src.benchmarks.soak import faults
from src.benchmarks.soak_client import Clients, Question, learn, questions, request
from src.benchmarks.soak_watch import Sample
from src.command import UserError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    with serving(make_engine(write_model(tmp_path_factory.mktemp("soak") / "model"), max_batch=64)) as url:
        yield "127.0.0.1", int(url.rsplit(":", 1)[1])


def samples(growth: float, noise: float, random: np.random.Generator, count: int = 400) -> list[Sample]:
    """Return memory that grows by a share of 100 MB over a run, after it filled up in the first tenth."""
    steps = np.arange(count) / count
    memory = 1e8 * (1 - 0.5 * (steps < 0.1) + growth * steps + noise * random.standard_normal(count))
    return [Sample(i * 100, int(value), 50) for i, value in enumerate(memory)]


@pytest.mark.parametrize(
    ("growth", "noise", "verdict"),
    [(0.0, 0.001, "flat"), (0.0, 0.02, "flat"), (0.2, 0.02, "rising"), (0.1, 0.001, "rising"), (0.06, 0.3, "undecided")],
)
def test_memory_is_called_flat_or_rising_only_where_the_run_shows_it(
    growth: float, noise: float, verdict: str, random: np.random.Generator
) -> None:
    found = soak_watch.slope(samples(growth, noise, random))
    assert found
    assert found.low <= found.growth <= found.high
    assert found.verdict == verdict


def test_the_growth_is_that_of_the_whole_run(random: np.random.Generator) -> None:
    found = soak_watch.slope(samples(0.2, 0.0, random))
    assert found
    assert found.growth == pytest.approx(0.2 / 1.125, rel=0.01)  # of the mean memory, which is 112.5 MB after the start


def test_of_a_short_run_nothing_is_said(random: np.random.Generator) -> None:
    assert soak_watch.slope(samples(0.5, 0.0, random, count=40)) is None


def test_descriptors_that_stay_open_are_a_leak() -> None:
    assert soak_watch.leaks(Sample(0, 0, 50), Sample(0, 0, 70))
    assert not soak_watch.leaks(Sample(0, 0, 50), Sample(0, 0, 52))


def test_the_processes_that_listen_are_found_and_looked_at(place: tuple[str, int]) -> None:
    watched = soak_watch.processes(place[1])
    assert [process.pid for process in watched] == [os.getpid()]
    before = soak_watch.look(watched)
    with open(os.devnull), open(os.devnull):
        assert soak_watch.look(watched).descriptors == before.descriptors + 2
    assert before.memory == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)


def test_every_way_of_asking_is_answered_and_the_labels_are_learnt(
    place: tuple[str, int], random: np.random.Generator
) -> None:
    learnt = learn(place, questions((8, 8), 3, random))
    assert sorted({len(question.labels) for question in learnt}) == [1, 4, 8]
    assert len({question.content.split(b" HTTP", 1)[0] for question in learnt}) == 3


def test_a_question_that_is_refused_from_the_start_stops_the_soak(place: tuple[str, int]) -> None:
    with pytest.raises(UserError, match="a good request with 400"):
        learn(place, [Question(request(b"/predict", b"image/png", b"no picture"))])


@pytest.mark.slow
def test_clients_count_every_answer_and_notice_a_wrong_one(place: tuple[str, int]) -> None:
    good = learn(place, [Question(request(b"/predict", b"image/png", picture()))])[0]
    refused = Question(request(b"/predict", b"image/png", b"no picture"), ("red",))
    asking = Clients(place, [good, good._replace(labels=("blue",)), refused, good], 40, 2)
    asking.start()
    report = asking.join()
    assert report.answered + sum(report.failures.values()) == 40 == asking.answered()
    assert set(report.failures) == {"another label than before", "status 400"}
    assert report.answered >= 10


@pytest.mark.slow
def test_the_command_soaks_a_running_service_and_writes_what_it_found(place: tuple[str, int], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "src.benchmarks.soak", "--url", f"http://127.0.0.1:{place[1]}", "--requests", "300"]
    done = subprocess.run(
        [*command, "--hostile", "8", "--clients", "1", "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    told = json.loads((tmp_path / "soak.json").read_text())
    assert (told["good"]["answered"], told["good"]["failed"], told["hostile"]["requests"]) == (300, {}, 8)
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
    assert done.returncode == (1 if faults(told) else 0), done.stderr
    assert "300 answered" in done.stdout


def test_each_thing_that_went_wrong_is_named() -> None:
    told = {
        "good": {"failed": {}}, "hostile": {"faults": []}, "memory": {"verdict": "flat"}, "descriptors": {"leak": False},
        "same_processes": True,
    }  # fmt: skip
    assert faults(told) == []
    wrong = {
        "good": {"failed": {"status 500": 3}}, "hostile": {"faults": ["x"]}, "memory": {"verdict": "rising"},
        "descriptors": {"leak": True}, "same_processes": False,
    }  # fmt: skip
    for key, value in wrong.items():
        assert len(faults({**told, key: value})) == 1, key


def test_a_soak_of_nothing_says_what_to_start() -> None:
    command = [sys.executable, "-m", "src.benchmarks.soak", "--url", "http://127.0.0.1:1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("soak: no process of yours listens on http://127.0.0.1:1: start the service")
    assert done.stderr.count("\n") == 1
