"""How much energy a run takes, where the hardware counts it: a GPU's own counter (NVML), the processor's (RAPL)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from src.training.world import World

POWERCAP = Path("/sys/class/powercap")
JOULES_PER_KWH = 3.6e6


@dataclass
class _Counter:
    """A counter that only rises, but for falling back to zero at `limit`. Units of joules."""

    read: Callable[[], float]
    limit: float | None
    last: float
    total: float = 0.0

    def advance(self) -> None:
        now = self.read()
        grown = now - self.last
        if grown < 0 and self.limit:
            grown += self.limit
        self.last, self.total = now, self.total + max(0.0, grown)


class Energy:
    """Counts the joules of this process's GPU and, on one process a machine, of all processor packages.

    `of` names what is counted, and is empty where nothing can be. A counter that fails once is given up for good.
    """

    def __init__(self, device: torch.device, world: World, powercap: Path = POWERCAP) -> None:
        gpu = _gpu(device)
        # the packages are the whole machine's: counted by each of its processes, they would be summed several times
        packages = _packages(powercap) if world.local_rank == 0 else []
        self._counters = [*gpu, *packages]
        self.of = " and ".join(name for name, found in (("GPU", gpu), ("processor", packages)) if found)

    def joules(self) -> float | None:
        """Return what was taken since the beginning. To be asked every few minutes: a package's counter wraps around."""
        try:
            for counter in self._counters:
                counter.advance()
        except Exception:  # NVML's errors and the operating system's: without a counter there is no figure, no more
            self._counters, self.of = [], ""
        return sum(counter.total for counter in self._counters) if self._counters else None


def _gpu(device: torch.device) -> list[_Counter]:
    """The total-energy counter of a GPU, in mJ since its driver was loaded; from Volta on."""
    if device.type != "cuda":
        return []
    try:
        import pynvml  # type: ignore[import-untyped]

        pynvml.nvmlInit()
        # by its UUID, since NVML does not heed CUDA_VISIBLE_DEVICES
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")

        def read() -> float:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3

        return [_Counter(read, None, read())]
    except Exception:  # no library, no driver, an older card, a slice of a card: then it does not tell
        return []


def _packages(powercap: Path) -> list[_Counter]:
    """Intel's and AMD's counters, in uJ; since 2020 Linux lets only root read them. Source: its powercap documentation."""
    found = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        try:
            if (zone / "name").read_text().startswith("package"):  # others are parts of a package, or hold it
                read = _reader(zone / "energy_uj")
                found.append(_Counter(read, _reader(zone / "max_energy_range_uj")(), read()))
        except (OSError, ValueError):
            continue
    return found


def _reader(path: Path) -> Callable[[], float]:
    return lambda: int(path.read_text()) / 1e6
