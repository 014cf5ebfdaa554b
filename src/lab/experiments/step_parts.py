"""Where the time of a training step goes: the real loop, with a clock that is read between its parts."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from src.training.batches import Batches
from src.training.loop import Learner, train_epoch
from src.training.meter import Meter

PARTS = ("data", "forward", "backward", "optimiser", "other")
_WARM_UP = 5
_TRACED = 10  # steps in the trace: more make a file that no viewer opens
_FEW = 2  # images of a step that hardly computes: what it still takes is the cost of starting operations


@dataclass(frozen=True)
class Operator:
    """An operation of PyTorch: its own time as a share of all operations', and how often it ran in a step."""

    name: str
    share: float
    calls: float


@dataclass(frozen=True)
class Measured:
    """What was measured.

    `row` is the meter's of undisturbed steps. `parts` are seconds a step, `fixed` the share of forward and backward that
    is left when a step has hardly an image, `operators` the costliest first.
    """

    row: dict[str, Any]
    steps: int
    parts: dict[str, float]
    fixed: float
    operators: list[Operator]


class _Some:
    """So many steps of a source of batches, as the loop asks for them; `mark` hears when a batch is asked for and there."""

    def __init__(self, source: Batches, steps: int, mark: Callable[[str], None], images: int | None = None) -> None:
        self._source, self._steps, self._mark, self._images = source, steps, mark, images
        self._size = source.steps(1)

    def steps(self, size: int) -> int:
        self._size = size
        return self._steps

    def __len__(self) -> int:
        """So many images are in the steps, to within the unequal lengths of batches."""
        return round(self._steps * len(self._source) / self._source.steps(self._size))

    def epoch(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        left = self._steps
        while left:
            batches = iter(self._source.epoch(size, seed + left))
            while left:
                self._mark("other")
                batch = next(batches, None)
                self._mark("data")
                if batch is None:
                    break
                left -= 1
                images, targets = batch
                yield images[: self._images], targets[: self._images]


class _Timed(nn.Module):
    """A module whose beginning and end are marked."""

    def __init__(self, module: nn.Module, mark: Callable[[str], None]) -> None:
        super().__init__()
        self._module, self._mark = module, mark

    def forward(self, images: Tensor) -> Any:
        self._mark("other")
        answers = self._module(images)
        self._mark("forward")
        return answers


def measure(learner: Learner, source: Batches, meter: Meter, steps: int, write_trace: Callable[[Any], None]) -> Measured:
    """Train for some steps four times: as it is, cut into parts, with hardly an image, and under PyTorch's profiler.

    Args:
        learner: it goes on learning.
        source: of the batches.
        meter: of a run, on the learner's device.
        steps: how many.
        write_trace: called with the finished profiler.
    """
    _run(learner, _Some(source, _WARM_UP, _silent), meter)
    _run(learner, _Some(source, steps, _silent), meter)
    row = meter.rows[-1]
    parts = _parts(learner, source, meter, steps, None)
    bare = _parts(learner, source, meter, steps, _FEW)
    fixed = min(1.0, (bare["forward"] + bare["backward"]) / (parts["forward"] + parts["backward"]))
    return Measured(row, steps, parts, fixed, _operators(learner, source, meter, min(steps, _TRACED), write_trace))


def _run(learner: Learner, some: _Some, meter: Meter) -> None:
    train_epoch(learner, cast("Batches", some), meter, 1)


def _silent(_: str) -> None:
    """Nothing is marked in undisturbed steps."""


def _parts(learner: Learner, source: Batches, meter: Meter, steps: int, images: int | None) -> dict[str, float]:
    """Return the seconds of each part of a step; the device finishes one before the next is begun."""
    with _marked(learner) as (mark, _):
        _run(learner, _Some(source, _WARM_UP, mark, images), meter)
    with _marked(learner) as (mark, seconds):
        _run(learner, _Some(source, steps, mark, images), meter)
    return {part: seconds[part] / steps for part in PARTS}


@contextmanager
def _marked(learner: Learner) -> Iterator[tuple[Callable[[str], None], dict[str, float]]]:
    """Mark forward, backward and optimiser of a learner; what ends at a mark is added to its part."""
    seconds: dict[str, float] = defaultdict(float)
    last: list[float] = []

    def mark(part: str) -> None:
        if learner.device.type == "cuda":
            torch.cuda.synchronize(learner.device)
        now = time.perf_counter()
        if last:
            seconds[part] += now - last.pop()
        last.append(now)

    whole = learner.forward
    learner.forward = _Timed(whole, mark)
    hooks = [
        learner.optimizer.register_step_pre_hook(lambda *_: mark("backward")),
        learner.optimizer.register_step_post_hook(lambda *_: mark("optimiser")),
    ]
    try:
        yield mark, seconds
    finally:
        learner.forward = whole
        for hook in hooks:
            hook.remove()


def _operators(
    learner: Learner, source: Batches, meter: Meter, steps: int, write_trace: Callable[[Any], None]
) -> list[Operator]:
    activities = [ProfilerActivity.CPU]
    if learner.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        _run(learner, _Some(source, steps, _silent), meter)
    write_trace(profiler)
    unit = "self_device_time_total" if learner.device.type == "cuda" else "self_cpu_time_total"
    found = [(event.key, float(getattr(event, unit)), event.count) for event in profiler.key_averages()]
    found = [(name, taken, count) for name, taken, count in found if name.startswith(("aten::", "mkldnn", "cudnn"))]
    whole = sum(taken for _, taken, _ in found) or 1.0
    return [Operator(name, taken / whole, count / steps) for name, taken, count in sorted(found, key=lambda each: -each[1])]
