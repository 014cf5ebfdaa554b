"""What the machine gives to training: device, precision, threads, an allocator that keeps memory, a compiler.

None of it is measured: equal runs on machines of one kind choose alike, whatever else these have to do.
"""

import copy
import ctypes
import os
import sys
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.core.command import UserError, cores
from src.training.train_params import Train
from src.training.world import World

_STEP_FLOPS = 1.5e9  # of a step, for each thread: with twice as many a second thread gains a third; docs/training.md
_LONG = 20_000  # steps, some minutes of a GPU: from there on half a minute of compiling for each length of batch is won back
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
    value = os.environ.get("OMP_NUM_THREADS", "")
    # torchrun sets 1 by itself, which nobody wanted
    if value.isdigit() and int(value) and not (value == "1" and "TORCHELASTIC_RUN_ID" in os.environ):
        torch.set_num_threads(int(value))
        return f"{value} threads, as OMP_NUM_THREADS says"
    most = max(1, cores() // world.local_size)
    chosen = max(1, min(most, int(step_flops / _STEP_FLOPS)))
    torch.set_num_threads(chosen)
    return f"{chosen} of {most} threads" + (" (a step is too small for more)" if chosen < most else "")


def compiled(
    module: nn.Module, images: Tensor, labels: Tensor, bf16: bool, steps: int, params: Train
) -> tuple[nn.Module, str]:
    """Return the module to train, compiled where that pays or as it is, and one sentence that says why.

    What is returned shares the classifier's weights; the classifier itself, its names and its weights stay as they are.

    Args:
        module: the classifier, on its device.
        images: one batch as it will come, on the device.
        labels: its targets, int64 (n,).
        bf16: whether steps run under autocast.
        steps: how many steps the run will take in all: compiling takes time that they must win back.
        params: the section `train`.
    """
    if params.compile == "off" or (params.compile == "auto" and (images.device.type == "cpu" or steps < _LONG)):
        return module, f"torch.compile: not with train.compile {params.compile} for {steps:,} steps on this device"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler, about itself
            # a step of a copy, whose statistics and gradients are thrown away: a compiler that fails does so here
            with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
                logits = _compile(copy.deepcopy(module).train())(images.float())
            F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # the compiler and its back ends raise many classes, with pages of text
        torch.compiler.reset()
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:160]
        return module, f"torch.compile: not used, since it fails here ({type(error).__name__}: {reason})"
    return _compile(module), "torch.compile"


def _compile(module: nn.Module) -> nn.Module:
    """Compile for fixed shapes: batches come in two lengths at most, and a graph of any length is a slower one."""
    made: nn.Module = torch.compile(module, dynamic=False)  # type: ignore[assignment]
    return made
