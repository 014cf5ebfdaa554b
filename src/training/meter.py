"""How fast a run trains and what holds it up: images/s, time waiting for data, memory, energy of the GPU."""

import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch

from src.core.files import rounded
from src.training.world import World

T = TypeVar("T")

_PAIRS = 512  # of events that may be open
_JOULES_PER_KWH = 3.6e6

Row = dict[str, Any]


class Meter:
    """Listens to the epochs of one run. Nothing in it makes the device wait.

    `rows` has an entry an epoch: `seconds` of its training steps, `examples_per_second` of all processes together,
    `data_wait_share` of those seconds and `memory_gib` (the peak so far: of the GPU, else of the process).

    Waiting is the time between two marks around each batch: of the processor's clock, or of the GPU's own, in the queue of
    its work. There the host asks for a batch long before the GPU comes to it, so what the host waits says nothing.
    """

    def __init__(self, device: torch.device, world: World) -> None:
        """Start measuring.

        Args:
            device: where the run computes.
            world: the processes that train together; examples are those of all of them.
        """
        self._device, self._world = device, world
        self._open: deque[tuple[Any, Any]] = deque()
        self._waited, self._started = 0.0, time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._joules = _energy_counter(device)
        self._joules_before = self._joules() if self._joules else 0.0
        self.rows: list[Row] = []

    def begin(self) -> None:
        """Begin an epoch's training steps."""
        self._waited, self._started = 0.0, time.perf_counter()

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass batches on, and count how long each was waited for."""
        iterator = iter(batches)
        for asked in iter(self._mark, None):
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self._open.append((asked, self._mark()))
                self._add_up(_PAIRS)
            yield batch

    def _mark(self) -> Any:
        if self._device.type == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _add_up(self, most: int) -> None:
        """Add pairs of marks up until at most so many are open."""
        while len(self._open) > most:
            asked, given = self._open.popleft()
            if self._device.type == "cpu":
                self._waited += given - asked
            else:
                given.synchronize()  # long past, but at the end of an epoch
                self._waited += asked.elapsed_time(given) / 1000

    def end(self, epoch: int, examples: int) -> Row:
        """End an epoch whose steps have ended on the device too; keep and return its row.

        Args:
            epoch: counted from 1.
            examples: of all processes.
        """
        seconds = time.perf_counter() - self._started
        self._add_up(0)
        # the most that tensors took of the GPU at once; on a CPU the most that the process took, mapped files too
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if self._device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(self._device)
        row = {
            "epoch": epoch,
            "seconds": rounded(seconds, 4),
            "examples_per_second": rounded(examples / seconds, 1),
            "data_wait_share": rounded(self._waited / seconds, 5),
            "memory_gib": rounded(memory / 2**30, 3),
        }
        self.rows.append(row)
        return row

    def summary(self) -> Row:
        """Return what the epochs amount to that this process trained. All processes must ask: their energy is summed.

        The first epoch warms caches and compilers up: rates leave it out where there are more.
        """
        joules = self._joules() - self._joules_before if self._joules else 0.0
        told = torch.tensor([joules, float(self._joules is None)], dtype=torch.float64, device=self._device)
        total, unknown = self._world.sum(told).tolist()
        whole: Row = {
            "energy_kwh": None if unknown else rounded(total / _JOULES_PER_KWH, 9),
            "epochs_measured": len(self.rows),
            "memory_of": "GPU" if self._device.type == "cuda" else "process",
            "processes": self._world.size,
        }
        if not self.rows:
            return whole
        counted = self.rows[1:] or self.rows
        seconds = sum(row["seconds"] for row in counted)
        names = ("examples_per_second", "data_wait_share")
        means = {name: rounded(sum(row[name] * row["seconds"] for row in counted) / seconds, 5) for name in names}
        return {
            **whole,
            **means,
            "first_epoch": self.rows[0]["epoch"],
            "last_epoch": self.rows[-1]["epoch"],
            "memory_gib": self.rows[-1]["memory_gib"],
            "training_seconds": rounded(sum(row["seconds"] for row in self.rows), 4),
        }


def sentence(summary: Mapping[str, Any]) -> str:
    """Say a summary in one line, as for the end of a run."""
    if not summary["epochs_measured"]:
        return "speed: not measured, since an earlier process trained all epochs"
    energy, first, last = summary["energy_kwh"], summary["first_epoch"], summary["last_epoch"]
    told = f", {energy:.4g} kWh of the GPU" if energy is not None else ""
    resumed = f"; of epochs {first} to {last}, since an earlier process trained those before" if first > 1 else ""
    return (
        f"{summary['examples_per_second']:,.0f} images/s, {summary['data_wait_share']:.1%} of the time waiting for data, "
        f"{summary['memory_gib']:.1f} GiB of {summary['memory_of']} memory{told}{resumed}"
    )


def _energy_counter(device: torch.device) -> Callable[[], float] | None:
    """Return what reads a GPU's total energy in joules since its driver was loaded (NVML, from Volta on), or None."""
    if device.type != "cuda":
        return None
    try:
        import pynvml  # type: ignore[import-untyped]

        pynvml.nvmlInit()
        # by its UUID, since NVML does not heed CUDA_VISIBLE_DEVICES
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # no library, no driver, an older card, a slice of a card: then it does not tell
        return None
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
