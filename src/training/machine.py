"""What the machine gives to training: device, precision, as many threads as pay, an allocator that keeps memory."""

import ctypes
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

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
    network: nn.Module, images: torch.Tensor, bf16: bool, params: Train, world: World, given: int | None = None
) -> str:
    """Set PyTorch's number of threads by timing a training step of the network on `images`, and say why.

    Args:
        network: stays as it was: it is timed in evaluation mode, and no gradient is kept.
        images: one batch as it will come, on the CPU.
        bf16: whether steps run under autocast.
        params: the section `train`.
        world: the processes that share this machine's cores.
        given: so many, unmeasured: who runs several trainings at once has shared out the cores.
    """
    if given:
        torch.set_num_threads(given)
        return f"{given} threads"
    most = max(1, cores() // world.local_size)
    if most == 1 or images.numel() // images.shape[1] * params.width >= _LARGE:
        torch.set_num_threads(most)
        return f"{most} threads"
    taken = _fastest(network, images, bf16, (1, most))
    chosen = most if taken[1] >= _WORTH * taken[most] else 1
    torch.set_num_threads(chosen)
    gain = taken[1] / taken[most]
    return f"{chosen} of {most} threads (a step with {most} was measured {gain:.2f} times as fast as with 1)"


def _fastest(network: nn.Module, images: torch.Tensor, bf16: bool, counts: tuple[int, ...]) -> dict[int, float]:
    """Return the seconds of the fastest step, forwards and backwards, with each number of threads."""
    was_training, best, began = network.training, dict.fromkeys(counts, float("inf")), time.perf_counter()
    network.eval()  # batch norm must not learn from being timed
    for rounds in range(_ROUNDS):
        if rounds > 1 and time.perf_counter() - began > _SECONDS:
            break
        for count in counts:
            torch.set_num_threads(count)
            started = time.perf_counter()
            _step(network, images, bf16)
            best[count] = min(best[count], time.perf_counter() - started)
    network.train(was_training)
    return best


def _step(network: nn.Module, images: torch.Tensor, bf16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = network(images).float()
    torch.autograd.grad(
        F.cross_entropy(logits, torch.zeros(len(images), dtype=torch.long)),
        [parameter for parameter in network.parameters() if parameter.requires_grad],
        allow_unused=True,
    )
