"""The meter adds up, and tells waiting from working: python -m pytest tests/training/test_meter.py"""

from collections.abc import Iterator

import pytest
import torch

from src.training import meter
from src.training.meter import Meter, sentence
from src.training.world import World

CPU = torch.device("cpu")


class Clock:
    """Goes forward only when told to, so that no other process on the machine changes a result."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def slow(self, batches: int, seconds: float) -> Iterator[int]:
        for i in range(batches):
            self.now += seconds
            yield i

    def epoch(self, measuring: Meter, number: int, waits: float, works: float, images: int = 300) -> meter.Row:
        """Three steps, each of which waits and works for so many seconds."""
        measuring.begin()
        for _ in measuring.timed(self.slow(3, waits)):
            self.now += works
        return measuring.end(number, images)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(meter, "time", made)
    return made


def test_waiting_for_data_is_told_from_working(clock: Clock) -> None:
    measuring = Meter(CPU, World())
    row = clock.epoch(measuring, 1, 0.75, 0.25)
    assert (row["data_wait_share"], row["seconds"], row["examples_per_second"]) == (0.75, 3.0, 100.0)
    assert clock.epoch(measuring, 2, 0.0, 0.25)["data_wait_share"] == 0.0


def test_the_first_epoch_counts_only_where_it_is_alone(clock: Clock) -> None:
    measuring = Meter(CPU, World())
    clock.epoch(measuring, 1, 0.0, 10.0)
    assert measuring.summary()["examples_per_second"] == pytest.approx(10)
    clock.epoch(measuring, 2, 0.0, 1.0)
    whole = measuring.summary()
    assert whole["examples_per_second"] == pytest.approx(100)
    assert whole["training_seconds"] == 33.0


def test_the_sentence_names_what_is_known_and_what_is_not(clock: Clock) -> None:
    measuring = Meter(CPU, World())
    assert "not measured" in sentence(measuring.summary())
    clock.epoch(measuring, 4, 0.0, 0.01)
    said = sentence(measuring.summary() | {"energy_kwh": None})
    assert all(words in said for words in ("images/s", "waiting for data", "GiB of process memory"))
    assert "kWh" not in said
    assert "of epochs 4 to 4, since an earlier process" in said
    assert "0.25 kWh of the GPU" in sentence(measuring.summary() | {"energy_kwh": 0.25})


def test_the_energy_of_a_gpu_is_the_rise_of_its_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([5e6, 8.6e6])
    monkeypatch.setattr(meter, "_energy_counter", lambda _: lambda: next(readings))
    assert Meter(CPU, World()).summary()["energy_kwh"] == 1.0
    monkeypatch.undo()
    assert Meter(CPU, World()).summary()["energy_kwh"] is None  # a CPU is not asked


class _Clocked:
    """Stands in for a GPU's events, of which there are none here: each recording is a second after the one before."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        _Clocked.now += 1.0
        self.at = _Clocked.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "_Clocked") -> float:
        return 1000 * (end.at - self.at)


def test_a_gpu_is_asked_for_its_own_time_between_the_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", _Clocked)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    measuring = Meter(CPU, World())
    measuring._device = torch.device("cuda")
    batches = list(measuring.timed(range(2 * meter._PAIRS)))
    assert len(measuring._open) == meter._PAIRS  # a long epoch keeps no more open
    measuring._add_up(0)
    assert measuring._waited == pytest.approx(len(batches) + 1)
