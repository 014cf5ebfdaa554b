"""What the machine gives to training: device, precision, as many threads as pay, an allocator that keeps memory."""

import ctypes
import math
import os
import sys
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from src.batches import Batch
from src.command import UserError, cores
from src.params import Train
from src.training.world import World

_LARGE = 2**22  # numbers a batch makes in the first layer, from which on every core pays and nothing need be measured
_ROUNDS, _SECONDS = 10, 0.5  # of the trial: by turns, so that a busy moment meets both
_WORTH = 1.3  # a further thread must gain this much: less is lost again when another process wants the core
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


def threads(
    network: nn.Module,
    images: torch.Tensor,
    trial: Callable[[], Iterator[Batch]],
    bf16: bool,
    params: Train,
    world: World,
    given: int | None = None,
) -> str:
    """Set PyTorch's number of threads by timing training steps of the network, and say why.

    Args:
        network: stays as it was: it is timed in evaluation mode, and no gradient is kept.
        images: one batch as it will come, on the CPU.
        trial: begins an epoch.
        bf16: whether steps run under autocast.
        params: the section `train`.
        world: the processes that share this machine's cores.
        given: so many, unmeasured: who runs several trainings at once has shared out the cores.
    """
    if given:
        torch.set_num_threads(given)
        return f"{given} threads"
    if wanted := _wanted():
        torch.set_num_threads(wanted)
        return f"{wanted} threads, as OMP_NUM_THREADS says"
    most = max(1, cores() // world.local_size)
    if most == 1 or images.numel() // images.shape[1] * params.width >= _LARGE:
        torch.set_num_threads(most)
        return f"{most} threads"
    gain = _gain(network, trial, bf16, most)
    chosen = most if gain >= _WORTH else 1
    torch.set_num_threads(chosen)
    return f"{chosen} of {most} threads (a step with {most} was measured {gain:.2f} times as fast as with 1)"


def _wanted() -> int | None:
    """Return what the user set; torchrun sets 1 by itself, which nobody wanted."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    if not value.isdigit() or (value == "1" and "TORCHELASTIC_RUN_ID" in os.environ):
        return None
    return int(value) or None


def _gain(network: nn.Module, trial: Callable[[], Iterator[Batch]], bf16: bool, most: int) -> float:
    """Return how many times as fast a step, forwards and backwards, is with `most` threads as with one.

    Another thread augments ahead. Beside one thread it has a core to itself; of several it holds one up, and so all. It is
    timed until it has ended, with what it began after the first batch: that is about what it cost where it was measured.
    """
    was_training, began = network.training, time.perf_counter()
    network.eval()  # batch norm must not learn from being timed
    ahead = one = several = math.inf
    batch = next(trial())
    for rounds in range(_ROUNDS):
        if rounds > 1 and time.perf_counter() - began > _SECONDS:
            break
        torch.set_num_threads(1)
        ahead = min(ahead, _seconds(lambda: next(trial())))
        one = min(one, _seconds(lambda: _step(network, *batch, bf16)))
        torch.set_num_threads(most)
        several = min(several, _seconds(lambda: _step(network, *batch, bf16)))
    network.train(was_training)
    return max(one, ahead) / (several + ahead)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _step(network: nn.Module, images: torch.Tensor, targets: torch.Tensor, bf16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = network(images).float()
    torch.autograd.grad(
        F.cross_entropy(logits, targets),
        [parameter for parameter in network.parameters() if parameter.requires_grad],
        allow_unused=True,
    )
