"""torch.compile, where it pays: `train.compile` says on, off, or auto, which goes by the device and the number of steps."""

import copy
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.training.train_params import Train

_LONG = 20_000  # steps, some minutes of a GPU: from there on half a minute of compiling for each length of batch is won back


def compiled(
    module: nn.Module, images: Tensor, labels: Tensor, bf16: bool, steps: int, params: Train
) -> tuple[nn.Module, str]:
    """Return the module to train, compiled or as it is, and one sentence that says why.

    What is returned shares the classifier's weights; the classifier itself, its names and its weights stay as they are.

    Args:
        module: the classifier, on its device.
        images: one batch as it will come, on the device.
        labels: its targets, int64 (n,).
        bf16: whether steps run under autocast.
        steps: how many steps the run will take in all: compiling takes time that they must win back.
        params: the section `train`.
    """
    if params.compile == "off":
        return module, "torch.compile: off, as train.compile says"
    if params.compile == "auto" and images.device.type == "cpu":
        return module, "torch.compile: not on a CPU unless train.compile is on: half a minute, for little or nothing"
    if params.compile == "auto" and steps < _LONG:
        return module, f"torch.compile: not for {steps:,} steps; from {_LONG:,} on, or where train.compile is on"
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
