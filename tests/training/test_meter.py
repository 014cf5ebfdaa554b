"""The meter adds up, knows its peaks and never guesses at energy: python -m pytest tests/training/test_meter.py"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from src.training import meter, peaks
from src.training.energy import Energy
from src.training.meter import Meter, sentence
from src.training.world import World

CPU = torch.device("cpu")
FLOPS = 10_000_000


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
    peaks.of(CPU, bf16=False)  # measured by the real one, and kept
    made = Clock()
    monkeypatch.setattr(meter, "time", made)
    return made


def test_waiting_for_data_is_told_from_working(clock: Clock) -> None:
    measuring = Meter(CPU, FLOPS, bf16=False, world=World())
    assert clock.epoch(measuring, 1, 0.75, 0.25)["data_wait_share"] == 0.75
    assert clock.epoch(measuring, 2, 0.0, 0.25)["data_wait_share"] == 0.0


def test_speed_and_utilisation_follow_from_the_seconds(clock: Clock) -> None:
    measuring = Meter(CPU, FLOPS, bf16=False, world=World())
    row = clock.epoch(measuring, 1, 0.5, 0.5)
    assert (row["seconds"], row["images_per_second"]) == (3.0, 100.0)
    assert row["flop_utilisation"] == pytest.approx(100 * FLOPS / peaks.of(CPU, bf16=False).flops, abs=1e-5)


def test_several_processes_share_one_figure(clock: Clock) -> None:
    """Twice the devices could do twice the work: the same images a second are half the utilisation."""
    alone, both = (clock.epoch(Meter(CPU, 10**9, False, World(size=size)), 1, 0.0, 0.1) for size in (1, 2))
    assert both["flop_utilisation"] == pytest.approx(alone["flop_utilisation"] / 2, rel=1e-3)


def test_the_first_epoch_counts_only_where_it_is_alone(clock: Clock) -> None:
    measuring = Meter(CPU, FLOPS, bf16=False, world=World())
    clock.epoch(measuring, 1, 0.0, 10.0)
    assert measuring.summary()["images_per_second"] == pytest.approx(10)
    clock.epoch(measuring, 2, 0.0, 1.0)
    whole = measuring.summary()
    assert whole["images_per_second"] == pytest.approx(100)
    assert (whole["first_epoch_seconds"], whole["training_seconds"]) == (30.0, 33.0)


def test_memory_is_at_least_what_was_just_taken(clock: Clock) -> None:
    measuring = Meter(CPU, FLOPS, bf16=False, world=World())
    before = clock.epoch(measuring, 1, 0.0, 0.1)["memory_gib"]
    taken = torch.ones(2**27)  # half a GiB
    assert clock.epoch(measuring, 2, 0.0, 0.1)["memory_gib"] >= max(before, 0.5)
    del taken


def test_the_sentence_names_what_is_known_and_what_is_not(clock: Clock) -> None:
    measuring = Meter(CPU, FLOPS, bf16=False, world=World())
    assert "not measured" in sentence(measuring.summary())
    clock.epoch(measuring, 4, 0.0, 0.01)
    said = sentence(measuring.summary() | {"energy_kwh": None})
    assert all(words in said for words in ("images/s", "waiting for data", "matmul peak", "GiB of process memory"))
    assert "energy not told by this machine" in said
    assert "of epochs 4 to 4, since an earlier process" in said
    assert "0.25 kWh (GPU)" in sentence(measuring.summary() | {"energy_kwh": 0.25, "energy_of": "GPU"})


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H200", 989e12, 495e12),
        ("NVIDIA H100 80GB HBM3", 989e12, 495e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12),
        ("NVIDIA L4", 121e12, 60e12),
        ("NVIDIA L40S", 362e12, 183e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
        ("Tesla V100-SXM2-16GB", None, 15.7e12),
        ("Tesla T4", None, 8.1e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA GeForce RTX 4090 D", None, None),
        ("AMD Instinct MI300X", None, None),
    ],
)
def test_cards_are_known_by_their_whole_name(name: str, bf16: float | None, fp32: float | None) -> None:
    assert peaks.from_data_sheet(name, bf16=True) == bf16
    assert peaks.from_data_sheet(name, bf16=False) == fp32


def test_a_processor_is_measured_once_and_quickly() -> None:
    started = time.perf_counter()
    peak = peaks.of(CPU, bf16=False)
    again = peaks.of(CPU, bf16=False)
    assert time.perf_counter() - started < 30  # a fifth of a second, on a machine that does nothing else
    assert peak == again
    assert 1e8 < peak.flops < 1e14
    assert peak.source == "measured matmul peak"


def package(folder: Path, number: int, energy: int, name: str = "package-0") -> Path:
    zone = folder / f"intel-rapl:{number}"
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "name").write_text(f"{name}\n")
    (zone / "max_energy_range_uj").write_text("10000000\n")
    (zone / "energy_uj").write_text(f"{energy}\n")
    return zone / "energy_uj"


def test_packages_are_summed_and_may_wrap_around(tmp_path: Path) -> None:
    one, two = package(tmp_path, 0, 9_000_000), package(tmp_path, 1, 0, "package-1")
    package(tmp_path, 2, 0, "psys")  # holds the packages: it would count them twice
    energy = Energy(CPU, World(), tmp_path)
    one.write_text("500000")  # 1 J to the limit, and half a joule on
    two.write_text("2000000")
    assert energy.joules() == pytest.approx(3.5)
    assert energy.of == "processor"


def test_only_one_process_a_machine_counts_the_packages(tmp_path: Path) -> None:
    package(tmp_path, 0, 0)
    assert Energy(CPU, World(rank=1, size=2, local_rank=1), tmp_path).joules() is None


def test_energy_is_not_guessed_where_nothing_counts_it(tmp_path: Path) -> None:
    assert Energy(CPU, World(), tmp_path / "absent").joules() is None
    counter = package(tmp_path, 0, 0)
    energy = Energy(CPU, World(), tmp_path)
    counter.unlink()  # it has become unreadable
    assert energy.joules() is None
    assert energy.of == ""


def test_the_energy_of_a_run_is_in_its_rows_and_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = package(tmp_path, 0, 0)
    monkeypatch.setattr(meter, "Energy", lambda device, world: Energy(device, world, tmp_path))
    measuring = Meter(CPU, FLOPS, bf16=False, world=World())
    measuring.begin()
    counter.write_text("3600000")
    assert measuring.end(1, 10)["energy_wh"] == pytest.approx(0.001)
    assert measuring.summary()["energy_kwh"] == pytest.approx(1e-6)


class _Clocked:
    """Stands in for a GPU's events, of which there are none here: each recording is a second after the one before."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        _Clocked.now += 1.0
        self.at = _Clocked.now

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "_Clocked") -> float:
        return 1000 * (end.at - self.at)


def test_a_gpu_is_asked_for_its_own_time_between_the_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", _Clocked)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    waiting = meter._DeviceWait(torch.device("cuda"))
    for _ in range(2 * meter._PAIRS):
        waiting.asked()
        waiting.given()
    assert len(waiting._open) == meter._PAIRS  # a long epoch keeps no more open
    assert waiting.close() == pytest.approx(2 * meter._PAIRS)
