"""A version that must not serve is found, with its reason, and a good one passes.

python -m pytest tests/release/test_probes.py
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, encode
from ports import free_port
from small_service import CLASSES, RELEASE, Service
from test_serving import picture, write_model

from src.release import probes
from src.release.client import Answer, Client
from src.release.containers import State
from src.release.golden import FaultError
from src.release.probes import Clock, Limits

MIB = 2**20
LIMIT = 512 * MIB
ALIVE = State(exists=True, running=True, restarts=0, started="now", memory=100 * MIB, oom=False, exit_code=None)


class FakeClock(Clock):
    """Seconds that pass when somebody waits for them, and what happens at some of them."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.events: list[tuple[float, Callable[[], object]]] = []

    def now(self) -> float:  # type: ignore[override]
        return self.seconds

    def pause(self, seconds: float) -> None:  # type: ignore[override]
        self.seconds += seconds
        for event in [each for each in self.events if each[0] <= self.seconds]:
            self.events.remove(event)
            event[1]()


class Engine:
    """What the container engine would tell."""

    def __init__(self, **changes: Any) -> None:
        self.state = replace(ALIVE, **changes)

    def __call__(self) -> State:
        return self.state

    def become(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)


class Late(Client):
    """Asks a service that takes so many milliseconds longer."""

    def __init__(self, url: str, milliseconds: float) -> None:
        super().__init__(url)
        self.late = milliseconds

    def send(self, *arguments: Any, **named: Any) -> Answer:
        answer = super().send(*arguments, **named)
        return replace(answer, milliseconds=answer.milliseconds + self.late)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def golden(tmp_path: Path, random: np.random.Generator) -> Path:
    """A folder of six golden examples."""
    folder = tmp_path / "golden"
    folder.mkdir()
    examples = []
    for i in range(6):
        values = np.roll([0.97, 0.02, 0.01], i % 3).tolist()
        name = f"{i:06d}.png"
        (folder / name).write_bytes(encode(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)))
        examples.append({"file": name, "label": "cat", "prediction": CLASSES[i % 3], "probabilities": values})
    (folder / "golden.json").write_text(json.dumps({"classes": CLASSES, "examples": examples, "tolerance": 0.001}))
    return folder


@pytest.fixture
def serve(golden: Path) -> Iterator[Any]:
    """Return a function that starts a service with faults."""
    told = json.loads((golden / "golden.json").read_text())["examples"]
    answers = {(golden / entry["file"]).read_bytes(): entry["probabilities"] for entry in told}
    services: list[Service] = []

    def start(*faults: str) -> Service:
        services.append(Service(answers, *faults))
        return services[-1]

    yield start
    for service in services:
        service.close()


def smoke(service: Service, golden: Path, engine: Any = None, latency: float = 2000.0, late: float = 0) -> dict[str, float]:
    limits = Limits(latency_ms=latency, tolerance=0.001, memory=LIMIT)
    return probes.smoke(Late(service.url, late), golden, RELEASE, "3", limits, engine or Engine(), FakeClock())


def watch(
    service: Service, golden: Path, clock: Clock, engine: Any = None, latency: float = 2000.0, late: float = 0
) -> dict[str, float]:
    client = Late(service.url, late)
    return probes.watch(client, client, golden, "3", Limits(latency, 0.001, LIMIT), 30, engine or Engine(), clock)


# Until it is ready


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"running": False, "exit_code": 3}, "it ended by itself with exit code 3"),
        ({"restarts": 1}, "it crashed and was started again by the engine"),
        ({"started": "later"}, "it crashed and was started again"),
        ({"oom": True, "running": False}, "it needed more memory than it may have"),
        ({"exists": False, "running": False}, "it is gone"),
    ],
)
def test_a_death_ends_the_wait_at_once(clock: FakeClock, changes: dict[str, Any], words: str) -> None:
    engine = Engine()
    clock.events.append((0.15, partial(engine.become, **changes)))
    client = Client(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(FaultError, match=words):
        probes.wait_ready(client, 30, engine, clock)
    assert clock.seconds < 0.3
    with pytest.raises(FaultError, match="ended by itself"):
        probes.wait_ready(client, 30, Engine(running=False), clock)


# Before the switch


def test_a_good_version_passes(serve: Any, golden: Path) -> None:
    numbers = smoke(serve(), golden)
    assert numbers["golden"] == 6
    assert numbers["refused"] == 3
    assert numbers["largest_difference"] == 0
    assert numbers["memory_growth_mib"] == 0
    assert 0 < numbers["latency_p50_ms"] <= numbers["latency_p95_ms"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("never ready", r"/readyz got status 503"),
        ("other classes", r"/model says classes \['cat'\] instead of"),
        ("other manifest", "was answered with manifest ffff"),
        (
            "wrong label",
            "golden image 000000.png was answered wrongly: label fox with 0.97 instead of cat with 0.97",
        ),
        ("a little off", r"000000.png was answered with 0.9800 for label cat; reviewed was 0.9700"),
        ("no number", "was answered with nan for label dog"),
        ("batch in disorder", "in a batch, golden image 000000.png was answered wrongly"),
        ("fails on garbage", r"it answered garbage bytes with status 500 \(not like this\) instead of refusing it"),
        ("dies of garbage", "it answered garbage bytes with no answer"),
        ("every other", "golden image 000000.png got status 503"),
    ],
)
def test_a_bad_version_is_refused_with_its_reason(serve: Any, golden: Path, fault: str, words: str) -> None:
    with pytest.raises(FaultError, match=words):
        smoke(serve(fault), golden)


def test_one_that_is_over_its_budget_is_refused_as_slow(serve: Any, golden: Path) -> None:
    service = serve()
    with pytest.raises(FaultError, match=r"it is slow: p95 of one image is \d+ ms, over the budget of 2000 ms"):
        smoke(service, golden, late=3000)
    assert service.asked < 100  # of those that are timed: it is not measured on when it cannot be in time any more


@pytest.mark.parametrize(("each", "words"), [(0.3, r"its memory grew from \d+ to \d+ MiB in \d+ requests"), (3, "is at")])
def test_a_leak_is_refused_with_the_numbers(serve: Any, golden: Path, each: float, words: str) -> None:
    service = serve()
    with pytest.raises(FaultError, match=words):
        smoke(service, golden, lambda: replace(ALIVE, memory=int((100 + each * service.asked) * MIB)))


@pytest.fixture
def real(tmp_path: Path) -> Iterator[str]:
    """Serve a tiny model by the service itself, in a process of its own; give its address."""
    write_model(tmp_path / "model")
    port = free_port()
    command = [sys.executable, "-m", "src", "serve", "--model", str(tmp_path / "model"), "--port", str(port)]
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path / "bentoml")}
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log) as process:
        yield f"http://127.0.0.1:{port}"
        process.terminate()


@pytest.mark.journey
def test_the_real_service_passes_all_that_is_asked_of_it(real: str, tmp_path: Path) -> None:
    client = Client(real)
    probes.wait_ready(client, 60, Engine())
    told = client.model()
    images = {name: picture(colour) for name, colour in (("0.png", (250, 10, 10)), ("1.png", (10, 10, 250)))}
    examples = []
    for name, content in images.items():
        (tmp_path / name).write_bytes(content)
        answer = client.predict(content, len(told["classes"])).body
        said = {entry["label"]: entry["probability"] for entry in answer["probabilities"]}
        probabilities = [said[label] for label in told["classes"]]
        examples.append({"file": name, "prediction": answer["label"], "probabilities": probabilities})
    (tmp_path / "golden.json").write_text(json.dumps({"classes": told["classes"], "examples": examples}))
    release = replace(RELEASE, **{name: told[name] for name in ("manifest", "model_sha256", "classes")})
    limits = Limits(latency_ms=2000, tolerance=0.001, memory=LIMIT)
    numbers = probes.smoke(client, tmp_path, release, told["version"], limits, Engine())
    assert numbers["refused"] == 3
    watched = probes.watch(client, client, tmp_path, told["version"], limits, 1.0, Engine())
    assert watched["faults"] == 0


# After the switch


def test_a_good_version_is_watched_for_as_long_as_asked(serve: Any, golden: Path, clock: FakeClock) -> None:
    numbers = watch(serve(), golden, clock)
    assert (numbers["seconds"], numbers["probes"], numbers["faults"]) == (30, 121, 0)
    client = Client(serve().url)
    assert probes.watch(client, client, golden, "3", Limits(2000, 0.001, LIMIT), 0, Engine(), clock)["probes"] == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("wrong label", "through the proxy, golden image 000001.png was answered wrongly"),
        ("never ready", r"it stopped saying that it is ready \(/readyz failed twice in a row\)"),
        ("every other", "through the proxy, golden image 00000..png got status 503"),
    ],
)
def test_a_version_that_goes_wrong_is_found_long_before_the_watch_ends(
    serve: Any, golden: Path, clock: FakeClock, fault: str, words: str
) -> None:
    with pytest.raises(FaultError, match=words):
        watch(serve(fault), golden, clock)
    assert clock.seconds < 3


# For a rollback, and the client


def test_the_quick_look_asks_three_times_and_finds_a_wrong_or_bad_version(serve: Any, golden: Path) -> None:
    service = serve()
    probes.quick(Client(service.url), golden, "3", 0.001)
    assert service.asked == 3
    with pytest.raises(FaultError, match="answered by version 3 instead of 4"):
        probes.quick(Client(service.url), golden, "4", 0.001)
    with pytest.raises(FaultError, match="does not say that it is ready"):
        probes.quick(Client(serve("never ready").url), golden, "3", 0.001)
