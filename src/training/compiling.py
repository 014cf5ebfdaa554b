"""torch.compile, where it pays: `train.compile` says on, off, or auto, which measures a few steps both ways."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.params import Train

_WORTH = 1.05  # times as fast, or it is noise
_STEPS = 10  # timed after as many to warm up
_LONG = 120.0  # seconds of steps from which compiling, about half a minute for each length of batch, can be won back


def compiled(
    module: nn.Module, images: Tensor, labels: Tensor, bf16: bool, steps: int, params: Train
) -> tuple[nn.Module, str]:
    """Return the module that trains faster, and one sentence that gives the measured gain or the reason why not.

    What is returned shares the classifier's weights; the classifier itself, its names and its weights stay as they are.
    Equal runs make equal models only where they decide alike: on a CPU `auto` therefore never compiles.

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
        return module, "torch.compile: not on a CPU unless train.compile is on: half a minute, for little or nothing"
    with _untouched(module):
        return _tried(module, images, labels, bf16, steps, params)


def _tried(
    module: nn.Module, images: Tensor, labels: Tensor, bf16: bool, steps: int, params: Train
) -> tuple[nn.Module, str]:
    plain = _step_seconds(module, images, labels, bf16)
    if params.compile == "auto" and steps * plain < _LONG:
        return module, f"torch.compile: not for a run of about {steps * plain:.0f} s, which cannot win back its half minute"
    reason = ""
    for mode in _modes(images.device):
        candidate = _compile(module, mode)
        started = time.perf_counter()
        try:
            taken = _step_seconds(candidate, images, labels, bf16)
        except Exception as error:  # the compiler and its back ends raise many classes, with pages of text
            reason = f"it fails here ({_first_line(error)})"
            torch.compiler.reset()
            continue
        gain, seconds = plain / taken, time.perf_counter() - started
        if gain >= _WORTH or params.compile == "on":
            said = (
                f"torch.compile ({mode}): a step was measured {gain:.2f} times as fast, after {seconds:.0f} s of compiling"
            )
            return candidate, said
        reason = f"a step was measured only {gain:.2f} times as fast ({mode}), after {seconds:.0f} s of compiling"
    return module, f"torch.compile: not used, since {reason}"


def _compile(module: nn.Module, mode: str) -> nn.Module:
    """Compile for fixed shapes: batches come in two lengths at most, and a graph of any length is a slower one."""
    made: nn.Module = torch.compile(module, mode=mode, dynamic=False)  # type: ignore[assignment]
    return made


def _modes(device: torch.device) -> tuple[str, ...]:
    """The modes to try. CUDA graphs (reduce-overhead) first, but not under gradients that other processes wait for."""
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    return ("reduce-overhead", "default") if device.type == "cuda" and alone else ("default",)


def _step_seconds(module: nn.Module, images: Tensor, labels: Tensor, bf16: bool) -> float:
    """Return the mean time of a few steps, forwards and backwards in the order of the loop, after as many to warm up."""
    parameters = list(module.parameters())
    started = time.perf_counter()
    for i in range(2 * _STEPS):
        if i == _STEPS:
            _wait(images.device)
            started = time.perf_counter()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            logits = module(images.float())
        loss = F.cross_entropy(logits.float(), labels)
        for parameter in parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
    _wait(images.device)
    return (time.perf_counter() - started) / _STEPS


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """Leave statistics, gradients, modes and random numbers as they were: measuring is no training."""
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
