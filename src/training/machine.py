"""What the machine gives to training: device, precision, as many threads as pay, an allocator that keeps memory.

None of it is measured: equal runs on machines of one kind choose alike, whatever else these have to do.
"""

import ctypes
import os
import sys

import torch

from src.core.command import UserError, cores
from src.training.train_params import Train
from src.training.world import World

_STEP_FLOPS = 1.5e9  # of a step, for each thread: with twice as many a second thread gains a third; docs/training.md
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def device(params: Train, world: World) -> torch.device:
    """Return the device that params ask for; with several processes each takes the GPU of its local rank.

    Raises:
        UserError: a GPU is asked for, and there is none for this process.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if params.device == "cuda" and not gpus:
        raise UserError("train.device is 'cuda', but PyTorch sees no GPU here: check the driver, or set it to auto")
    if params.device == "cpu" or not gpus:
        return torch.device("cpu")
    if world.local_rank >= gpus:
        raise UserError(f"{world.local_rank + 1} processes on this machine, but only {gpus} GPUs: lower train.processes")
    return torch.device("cuda", world.local_rank) if world.size > 1 else torch.device("cuda")


def bf16(params: Train, device: torch.device) -> bool:
    """Choose the precision: bf16 where the hardware computes in it; elsewhere it is emulated, and slower."""
    if params.precision != "auto":
        return params.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001 - torch has no public question for it


def keep_memory() -> None:
    """Tell glibc to keep the memory that a step frees: the next step takes it again without a page fault for each page.

    Elsewhere than on glibc nothing happens. Source: mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26)):
        mallopt(option, value)


def threads(step_flops: float, world: World) -> str:
    """Set PyTorch's number of threads by a rule, and say how many and why.

    Args:
        step_flops: floating-point operations of a training step of this process, forwards and backwards.
        world: the processes that share this machine's cores.
    """
    if wanted := _wanted():
        torch.set_num_threads(wanted)
        return f"{wanted} threads, as OMP_NUM_THREADS says"
    most = max(1, cores() // world.local_size)
    chosen = max(1, min(most, int(step_flops / _STEP_FLOPS)))
    torch.set_num_threads(chosen)
    return f"{chosen} of {most} threads" + (" (a step is too small for more)" if chosen < most else "")


def _wanted() -> int | None:
    """Return what the user set; torchrun sets 1 by itself, which nobody wanted."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    if not value.isdigit() or (value == "1" and "TORCHELASTIC_RUN_ID" in os.environ):
        return None
    return int(value) or None
