"""The meter adds up, knows its peaks and never guesses at energy: python -m pytest tests/test_meter.py"""

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


def slow(batches: int, seconds: float) -> Iterator[int]:
    for i in range(batches):
        time.sleep(seconds)
        yield i


def epoch(measuring: Meter, number: int, waits: float, works: float, images: int = 300) -> meter.Row:
    measuring.begin()
    for _ in measuring.timed(slow(3, waits)):
        time.sleep(works)
    return measuring.end(number, images)


def test_waiting_for_data_is_told_from_working() -> None:
    measuring = Meter(CPU, FLOPS, bf16=False, world=World())
    hungry, fed = epoch(measuring, 1, 0.03, 0.001), epoch(measuring, 2, 0.0, 0.03)
    assert hungry["data_wait_share"] > 0.8
    assert fed["data_wait_share"] < 0.05


def test_speed_and_utilisation_follow_from_the_seconds() -> None:
    measuring = Meter(CPU, FLOPS, bf16=False, world=World())
    row = epoch(measuring, 1, 0.0, 0.02)
    assert row["images_per_second"] == pytest.approx(300 / row["seconds"], rel=1e-2)
    achieved = row["images_per_second"] * FLOPS
    assert row["flop_utilisation"] == pytest.approx(achieved / measuring.summary()["peak_flops"], abs=2e-5)


def test_several_processes_share_one_figure() -> None:
    """Twice the devices could do twice the work: the same images a second are half the utilisation."""
    alone, both = (epoch(Meter(CPU, 10**9, False, World(size=size)), 1, 0.0, 0.02) for size in (1, 2))
    assert both["flop_utilisation"] / both["images_per_second"] == pytest.approx(
        alone["flop_utilisation"] / alone["images_per_second"] / 2, rel=1e-2
    )


def test_the_first_epoch_counts_only_where_it_is_alone() -> None:
    measuring = Meter(CPU, FLOPS, bf16=False, world=World())
    first = epoch(measuring, 1, 0.0, 0.1)
    assert measuring.summary()["images_per_second"] == pytest.approx(first["images_per_second"], rel=1e-3)
    second = epoch(measuring, 2, 0.0, 0.01)
    whole = measuring.summary()
    assert whole["images_per_second"] == pytest.approx(second["images_per_second"], rel=1e-3)
    assert whole["first_epoch_seconds"] == first["seconds"]
    assert whole["training_seconds"] == pytest.approx(first["seconds"] + second["seconds"], abs=1e-3)


def test_memory_is_at_least_what_was_just_taken() -> None:
    measuring = Meter(CPU, FLOPS, bf16=False, world=World())
    before = epoch(measuring, 1, 0.0, 0.0)["memory_gib"]
    taken = torch.ones(2**27)  # half a GiB
    assert epoch(measuring, 2, 0.0, 0.0)["memory_gib"] >= max(before, 0.5)
    del taken


def test_the_sentence_names_what_is_known_and_what_is_not() -> None:
    measuring = Meter(CPU, FLOPS, bf16=False, world=World())
    assert "not measured" in sentence(measuring.summary())
    epoch(measuring, 4, 0.0, 0.01)
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
    assert time.perf_counter() - started < 3
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
