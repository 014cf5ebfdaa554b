"""How fast a run trains and what holds it up: images/s, time waiting for data, FLOP/s utilisation, memory, energy."""

import resource
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch

from src.core.files import rounded
from src.training import peaks
from src.training.energy import JOULES_PER_KWH, Energy
from src.training.world import World

T = TypeVar("T")

_LOOK_EVERY = 60.0  # seconds between looks at counters of energy, the fastest of which wraps around in some minutes
_PAIRS = 512  # of events that may be open

Row = dict[str, Any]


class Meter:
    """Listens to the epochs of one run. Nothing in it makes the device wait.

    `rows` has an entry an epoch: `seconds` of its training steps, `images_per_second` of all processes together,
    `data_wait_share` of those seconds, `flop_utilisation` (the operations of the model, forwards and backwards, over
    those the devices could have done), `memory_gib` (the peak so far: of the GPU, else of the process) and, where the
    hardware counts it, `energy_wh` of this process's devices.
    """

    def __init__(self, device: torch.device, training_flops: int, bf16: bool, world: World) -> None:
        """Start measuring.

        Args:
            device: where the run computes.
            training_flops: floating-point operations of one image, forwards and backwards.
            bf16: the precision of the run.
            world: the processes that train together; images and operations are those of all of them.
        """
        self._device, self._flops, self._world = device, training_flops, world
        self._peak = peaks.of(device, bf16)
        self._wait = _DeviceWait(device) if device.type == "cuda" else _HostWait()
        self._started = self._looked = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._energy = Energy(device, world)
        self._joules = 0.0
        self.rows: list[Row] = []

    def begin(self) -> None:
        """An epoch's training steps begin."""
        self._joules = self._energy.joules() or 0.0
        self._wait.seconds = 0.0
        self._started = self._looked = time.perf_counter()

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass batches on, and count how long each was waited for."""
        iterator = iter(batches)
        while True:
            self._wait.asked()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self._wait.given()
            if time.perf_counter() - self._looked > _LOOK_EVERY:
                self._energy.joules()
                self._looked = time.perf_counter()
            yield batch

    def end(self, epoch: int, images: int) -> Row:
        """The epoch's steps have ended on the device too: return and keep its row. `images` are those of all processes."""
        seconds = time.perf_counter() - self._started
        row = {
            "epoch": epoch,
            "seconds": rounded(seconds, 4),
            "images_per_second": rounded(images / seconds, 1),
            "data_wait_share": rounded(self._wait.close() / seconds, 5),
            "flop_utilisation": rounded(self._utilisation(images / seconds), 5),
            "memory_gib": rounded(_memory(self._device) / 2**30, 3),
        }
        joules = self._energy.joules()
        if joules is not None:
            row["energy_wh"] = rounded((joules - self._joules) / 3600)
        self.rows.append(row)
        return row

    def summary(self) -> Row:
        """Return what the epochs amount to that this process trained. All processes must ask: their energy is summed.

        The first epoch warms caches and compilers up: rates leave it out where there are more.
        """
        joules = self._energy.joules()
        mute = joules is None and (self._device.type == "cuda" or self._world.local_rank == 0)
        told = torch.tensor([joules or 0.0, float(mute)], dtype=torch.float64, device=self._device)
        total, mute_ones = self._world.sum(told).tolist()
        whole: Row = {
            "energy_kwh": None if mute_ones else rounded(total / JOULES_PER_KWH, 9),
            "energy_of": self._energy.of or None,
            "epochs_measured": len(self.rows),
            "memory_of": "GPU" if self._device.type == "cuda" else "process",
            "peak_flops": rounded(self._peak.flops, 0),
            "peak_source": self._peak.source,
            "processes": self._world.size,
        }
        return whole | (_rates(self.rows) if self.rows else {})

    def _utilisation(self, images_per_second: float) -> float:
        return images_per_second * self._flops / (self._peak.flops * self._world.size)


def sentence(summary: Mapping[str, Any]) -> str:
    """Say a summary in one line, as for the end of a run."""
    if not summary["epochs_measured"]:
        return "speed: not measured, since an earlier process trained all epochs"
    peak = f"{summary['peak_flops'] / 1e12:,.3g} TFLOP/s ({summary['peak_source']})"
    joined = f" each of {summary['processes']} processes" if summary["processes"] > 1 else ""
    energy = summary["energy_kwh"]
    told = f"{energy:.4g} kWh ({summary['energy_of']})" if energy is not None else "energy not told by this machine"
    first, last = summary["first_epoch"], summary["last_epoch"]
    resumed = f"; of epochs {first} to {last}, since an earlier process trained those before" if first > 1 else ""
    return (
        f"{summary['images_per_second']:,.0f} images/s, {summary['data_wait_share']:.1%} of the time waiting for data, "
        f"{summary['flop_utilisation']:.0%} of {peak}{joined}, "
        f"{summary['memory_gib']:.1f} GiB of {summary['memory_of']} memory, {told}{resumed}"
    )


def _rates(rows: list[Row]) -> Row:
    """The means over the seconds of all epochs but the first, where there are more; memory is the peak of all."""
    counted = rows[1:] or rows
    seconds = sum(row["seconds"] for row in counted)
    names = ("images_per_second", "data_wait_share", "flop_utilisation")
    means = {name: rounded(sum(row[name] * row["seconds"] for row in counted) / seconds, 5) for name in names}
    return {
        **means,
        "first_epoch": rows[0]["epoch"],
        "first_epoch_seconds": rows[0]["seconds"],
        "last_epoch": rows[-1]["epoch"],
        "memory_gib": rows[-1]["memory_gib"],
        "training_seconds": rounded(sum(row["seconds"] for row in rows), 4),
    }


def _memory(device: torch.device) -> int:
    """Bytes: the most that tensors took of the GPU at once; on a CPU the most that the process took, mapped files too."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) of each
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class _HostWait:
    """Waiting for a batch where the processor computes: the time that `next` takes."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def asked(self) -> None:
        self._since = time.perf_counter()

    def given(self) -> None:
        self.seconds += time.perf_counter() - self._since

    def close(self) -> float:
        """Return the sum. The device has finished."""
        return self.seconds


class _DeviceWait:
    """Waiting where a GPU computes: its own time between two marks, around each batch, in the queue of its work.

    The host asks for a batch long before the GPU comes to it: what the host waits says nothing. Between the marks lie
    the augmentation, the copy that is waited for, and the idle time when the host comes too late.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self._device = device
        self._asked = self._mark()
        self._open: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def asked(self) -> None:
        self._asked = self._mark()

    def given(self) -> None:
        self._open.append((self._asked, self._mark()))
        while len(self._open) > _PAIRS and self._open[0][1].query():  # type: ignore[no-untyped-call]
            self._take()

    def close(self) -> float:
        """Return the sum. The device has finished."""
        while self._open:
            self._take()
        return self.seconds

    def _take(self) -> None:
        asked, given = self._open.popleft()
        self.seconds += asked.elapsed_time(given) / 1000

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event
