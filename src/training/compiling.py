"""torch.compile, where it pays: `train.compile` says on, off, or auto, which goes by the device and the number of steps."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

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
    `auto` measures nothing, since equal runs make equal models only where they decide alike.

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
    reason = ""
    with _untouched(module):
        for mode in _modes(images.device):
            candidate = _compile(module, mode)
            try:
                _step(candidate, images, labels, bf16)
            except Exception as error:  # the compiler and its back ends raise many classes, with pages of text
                reason = _first_line(error)
                torch.compiler.reset()
            else:
                return candidate, f"torch.compile ({mode})"
    return module, f"torch.compile: not used, since it fails here ({reason})"


def _compile(module: nn.Module, mode: str) -> nn.Module:
    """Compile for fixed shapes: batches come in two lengths at most, and a graph of any length is a slower one."""
    made: nn.Module = torch.compile(module, mode=mode, dynamic=False)  # type: ignore[assignment]
    return made


def _modes(device: torch.device) -> tuple[str, ...]:
    """The modes to try. CUDA graphs (reduce-overhead) first, but not under gradients that other processes wait for."""
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    return ("reduce-overhead", "default") if device.type == "cuda" and alone else ("default",)


def _step(module: nn.Module, images: Tensor, labels: Tensor, bf16: bool) -> None:
    """Compile now, forwards and backwards as in the loop: a compiler that fails does so here."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        logits = module(images.float())
    F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """Leave statistics, gradients, modes and random numbers as they were: compiling is no training."""
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    modes = {name: part.training for name, part in module.named_modules()}
    devices = [value.device.index for value in buffers.values() if value.is_cuda][:1]
    module.train()
    try:
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler, about itself
            yield
    finally:
        with torch.no_grad():
            for name, value in module.named_buffers():
                value.copy_(buffers[name])
        for name, part in module.named_modules():
            part.training = modes[name]
        for parameter in module.parameters():
            parameter.grad = None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
