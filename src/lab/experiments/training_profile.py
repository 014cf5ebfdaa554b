"""What is the bottleneck of training? `make profile` runs some steps as training does and answers on one page.

    python -m src profile out/arrays out/training-profile [--steps 30]

Writes bottleneck.txt and trace.json.gz, which chrome://tracing and ui.perfetto.dev open. No model is made.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity
from torch.profiler import profile as record

from src.core import arrays
from src.core.command import UserError, table
from src.core.files import check_outputs, replacing
from src.lab.experiments.training_steps import endless, prepare
from src.system.params import load
from src.training import loop, optimizer
from src.training.loop import Learner
from src.training.task import Task, of
from src.training.train_params import Train

_WARM_UP = 5
_TRACED = 10  # steps in the trace: more make a file that no viewer opens
_FEW = 2  # images of a step that hardly computes: what it still takes is the cost of starting operations
_PARTS = ("data", "forward", "backward", "optimiser", "other")
_HEAVY = ("conv", "mm", "matmul", "linear", "attention")  # in the name of an operation: arithmetic, not moving of memory
_REMARK = (
    "The device finishes each part of a step before the next begins, so their sum can be longer than an undisturbed step. "
    "`backward` has the loss and the clipping of gradients in it. Overhead is what forward and backward still take when a "
    "step has two images. Validation, checkpoints and MLflow come once an epoch and are not in it. `trace.json.gz` opens in "
    "chrome://tracing or ui.perfetto.dev."
)


class Cause(NamedTuple):
    """One thing that can hold training up: `advice` names the parameter to change."""

    name: str
    what: str
    advice: str


CAUSES = {
    "data": Cause(
        "data",
        "waiting for the next batch",
        "Take augmentations away (`train.augment`; `rotate` and `scale` cost most), or give the machine the memory to hold "
        "the images.",
    ),
    "overhead": Cause(
        "Python and launch overhead",
        "starting operations, the same for any number of images",
        "Raise `train.batch_size` (and `train.learning_rate` with it), or set `train.compile: on`.",
    ),
    "compute": Cause(
        "compute",
        "convolutions and matrix products",
        "This is as it should be. To be faster: `train.precision: bf16` where the hardware has it, a smaller `train.width` "
        "or `prepare.image_size`, or a faster device.",
    ),
    "memory": Cause(
        "memory bandwidth",
        "norms, activations, pooling and copies",
        "Set `train.precision: bf16` where the hardware has it, which halves what is moved, or `train.compile: on`, which "
        "fuses it.",
    ),
    "optimiser": Cause(
        "optimiser",
        "changing the weights",
        "Raise `train.batch_size`: fewer changes in an epoch; or a cheaper `train.optimizer` (sgd before adamw and muon).",
    ),
    "other": Cause(
        "what lies between the steps",
        "the moving average of the weights, the sum of losses",
        "Set `train.ema: 0`, or raise `train.batch_size`.",
    ),
}


@dataclass(frozen=True)
class StepProfile:
    """What some training steps took.

    `seconds` and `images` are of one undisturbed step, `parts` the seconds of a step's parts, `fixed` the share of forward
    and backward that is left when a step has hardly an image, `heavy` the share of the operations that compute.
    """

    seconds: float
    images: int
    parts: dict[str, float]
    fixed: float
    heavy: float

    @property
    def shares(self) -> dict[str, float]:
        """The share of a step's time that each cause has; they add up to 1."""
        parts, whole = self.parts, sum(self.parts.values()) or 1.0
        model = parts["forward"] + parts["backward"]
        seconds = {
            "data": parts["data"],
            "overhead": model * self.fixed,
            "compute": model * (1 - self.fixed) * self.heavy,
            "memory": model * (1 - self.fixed) * (1 - self.heavy),
            "optimiser": parts["optimiser"],
            "other": parts["other"],
        }
        return {cause: taken / whole for cause, taken in seconds.items()}

    @property
    def verdict(self) -> Cause:
        """The cause with the largest share."""
        return CAUSES[max(self.shares, key=self.shares.__getitem__)]


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


def measure(
    learner: Learner, batches: Iterator[tuple[Tensor, Tensor]], steps: int, write_trace: Callable[[Any], None]
) -> StepProfile:
    """Train for some steps four times: as it is, cut into parts, with hardly an image, and under PyTorch's profiler.

    Args:
        learner: goes on learning.
        batches: as many as are asked for.
        steps: how many of each kind; a few more warm the machine up.
        write_trace: called with the finished profiler.
    """
    optimizer.set_rate(learner.optimizer, optimizer.learning_rate(0, 10 * steps, learner.params))
    _train(learner, batches, _WARM_UP)
    begun = time.perf_counter()
    images = _train(learner, batches, steps)
    seconds = (time.perf_counter() - begun) / steps
    parts, bare = (_parts(learner, batches, steps, images=few) for few in (None, _FEW))
    fixed = min(1.0, (bare["forward"] + bare["backward"]) / (parts["forward"] + parts["backward"]))
    heavy = _traced(learner, batches, min(steps, _TRACED), write_trace)
    return StepProfile(seconds, images // steps, parts, fixed, heavy)


def _train(
    learner: Learner,
    batches: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    mark: Callable[[str], None] = lambda _: None,
    few: int | None = None,
) -> int:
    """Take steps of the first `few` images of each batch and return how many images they had; the device has finished."""
    total, count = torch.zeros((), device=learner.device), 0
    for _ in range(steps):
        mark("other")
        images, targets = next(batches)
        mark("data")
        total += loop.step(learner, images[:few], targets[:few])
        count += len(images[:few])
    total.item()
    return count


def _parts(learner: Learner, batches: Iterator[tuple[Tensor, Tensor]], steps: int, images: int | None) -> dict[str, float]:
    """Return the seconds of each part of a step; the device finishes one before the next is begun."""
    for count in (_WARM_UP, steps):
        with _marked(learner) as (mark, seconds):
            _train(learner, batches, count, mark, images)
    return {part: seconds[part] / steps for part in _PARTS}


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


def _traced(
    learner: Learner, batches: Iterator[tuple[Tensor, Tensor]], steps: int, write_trace: Callable[[Any], None]
) -> float:
    """Train under PyTorch's profiler; return which share of the time of all operations is arithmetic."""
    cuda = learner.device.type == "cuda"
    with record(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        _train(learner, batches, steps)
    write_trace(profiler)
    unit = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = [event for event in profiler.key_averages() if event.key.startswith(("aten::", "mkldnn", "cudnn"))]
    taken = {event.key: float(getattr(event, unit)) for event in events}
    return sum(taken[key] for key in taken if any(word in key for word in _HEAVY)) / (sum(taken.values()) or 1.0)


def profile(task: Task, params: Train, out: Path, steps: int) -> StepProfile:
    """Measure some training steps; write page and trace into `out`, and return what was measured.

    Args:
        task: what the run would learn from.
        params: the section `train`.
        out: a folder.
        steps: how many; a few more warm it up.

    Raises:
        UserError: params ask for what is not there.
    """
    learner, training = prepare(task, params)
    with replacing(out) as fresh:
        fresh.mkdir()
        measured = measure(
            learner,
            endless(training, params),
            steps,
            lambda profiler: profiler.export_chrome_trace(str(fresh / "trace.json.gz")),
        )
        setting = f"Network {params.network} of width {params.width}, batches of {params.batch_size}"
        (fresh / "bottleneck.txt").write_text(_page(measured, f"{setting}; training images {training.where}", steps))
    return measured


def _page(measured: StepProfile, setting: str, steps: int) -> str:
    shares = sorted(measured.shares.items(), key=lambda pair: -pair[1])
    blocks = [
        f"The bottleneck is {measured.verdict.name}: {shares[0][1]:.0%} of a step. {measured.verdict.advice}",
        f"{setting}. {measured.images / measured.seconds:,.0f} images/s, {measured.seconds * 1000:,.2f} ms a step.",
        table(
            ("cause", "share of a step", "what it is"),
            [(CAUSES[key].name, f"{share:.1%}", CAUSES[key].what) for key, share in shares],
        ),
        table(("part", "ms a step"), [(part, f"{taken * 1000:,.2f}") for part, taken in measured.parts.items()]),
        f"Measured over {steps} steps. {_REMARK}",
    ]
    return "\n\n".join(blocks) + "\n"


def main() -> None:
    """Profile, and print the verdict."""
    parser = argparse.ArgumentParser(description="Find out what holds training up.")
    parser.add_argument("arrays", type=Path, help="folder that prepare wrote")
    parser.add_argument("out", type=Path, help="folder to write page and trace into")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--steps", type=int, default=30, help="training steps to measure")
    args = parser.parse_args()
    if args.steps < 1:
        raise UserError(f"--steps is {args.steps}: measure at least one")
    check_outputs([args.arrays], folders=[args.out])
    params = load(args.params)
    measured = profile(of(arrays.load(args.arrays, params.prepare.spec)), params.train, args.out, args.steps)
    cause, share = measured.verdict, max(measured.shares.values())
    print(
        f"the bottleneck is {cause.name}: {share:.0%} of a step. {cause.advice}\n{args.out / 'bottleneck.txt'} has the rest"
    )
