"""The meter adds up, and tells waiting from working: python -m pytest tests/training/test_meter.py"""

from collections.abc import Iterator

import pytest
import torch

from src.training import meter
from src.training.meter import Meter
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


def test_the_energy_of_a_gpu_is_the_rise_of_its_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([5e6, 8.6e6])
    monkeypatch.setattr(meter, "_energy_counter", lambda _: lambda: next(readings))
    assert Meter(CPU, World()).summary()["energy_kwh"] == 1.0
    monkeypatch.undo()
    assert Meter(CPU, World()).summary()["energy_kwh"] is None  # a CPU is not asked
