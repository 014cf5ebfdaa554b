"""What is the bottleneck of training? `make profile` runs some steps as training does and answers on one page.

    python -m src profile out/arrays out/training-profile [--steps 30]

Writes bottleneck.txt, with PyTorch's own table of the operations, and trace.json.gz, which chrome://tracing and
ui.perfetto.dev open. No model is made.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
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
_ROWS = 15  # operations in the table
_ADVICE = {  # the part of a step: what makes it shorter
    "data": (
        "Take augmentations away (`train.augment`; `rotate` and `scale` cost most), or give the machine the memory to hold "
        "the images."
    ),
    "model": (
        "This is as it should be. To be faster: `train.precision: bf16` where the hardware has it, `train.compile: on`, a "
        "smaller `train.width` or `prepare.image_size`, a larger `train.batch_size` where a GPU waits, or a faster device."
    ),
    "optimiser": (
        "Raise `train.batch_size`: fewer changes in an epoch; or a cheaper `train.optimizer` (sgd before adamw and muon)."
    ),
}
_REMARK = (
    "The device finishes each part of a step before the next begins, so their sum can be longer than an undisturbed step. "
    "`model` is forward and backward, with the loss and the clipping of gradients. Validation, checkpoints and MLflow come "
    "once an epoch and are not in it. `trace.json.gz` opens in chrome://tracing or ui.perfetto.dev."
)


@dataclass(frozen=True)
class StepProfile:
    """What some training steps took: seconds and images of an undisturbed step, the seconds of a step's parts, a table."""

    seconds: float
    images: int
    parts: dict[str, float]
    operations: str

    @property
    def bottleneck(self) -> tuple[str, float]:
        """The largest part, and its share of a step."""
        name = max(self.parts, key=self.parts.__getitem__)
        return name, self.parts[name] / (sum(self.parts.values()) or 1.0)

    @property
    def verdict(self) -> str:
        """The bottleneck with its advice, in a sentence or two."""
        name, share = self.bottleneck
        return f"The bottleneck is the {name}: {share:.0%} of a step. {_ADVICE[name]}"


def profile(task: Task, params: Train, out: Path, steps: int) -> StepProfile:
    """Train for some steps three times: as it is, cut into parts, and under PyTorch's profiler; write page and trace.

    Args:
        task: what the run would learn from.
        params: the section `train`.
        out: a folder.
        steps: how many; a few more warm it up.

    Raises:
        UserError: params ask for what is not there.
    """
    learner, training = prepare(task, params)
    batches = endless(training, params)
    optimizer.set_rate(learner.optimizer, optimizer.learning_rate(0, 10 * steps, params))
    _train(learner, batches, _WARM_UP)
    begun = time.perf_counter()
    images = _train(learner, batches, steps)
    seconds = (time.perf_counter() - begun) / steps
    with _marked(learner) as (mark, parts):
        _train(learner, batches, steps, mark)
    cuda = learner.device.type == "cuda"
    with record(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        _train(learner, batches, min(steps, _TRACED))
    order = "self_device_time_total" if cuda else "self_cpu_time_total"
    operations = profiler.key_averages().table(sort_by=order, row_limit=_ROWS, max_name_column_width=40)
    found = StepProfile(seconds, images // steps, {part: parts[part] / steps for part in _ADVICE}, operations)
    setting = f"Network {params.network} of width {params.width}, batches of {params.batch_size}"
    blocks = [
        found.verdict,
        f"{setting}; training images {training.where}",
        f"{found.images / found.seconds:,.0f} images/s, {found.seconds * 1000:,.2f} ms a step",
        table(("part", "ms a step"), [(part, f"{taken * 1000:,.2f}") for part, taken in found.parts.items()]),
        f"Measured over {steps} steps. {_REMARK}",
        operations,
    ]
    with replacing(out) as fresh:
        fresh.mkdir()
        profiler.export_chrome_trace(str(fresh / "trace.json.gz"))
        (fresh / "bottleneck.txt").write_text("\n\n".join(blocks) + "\n")
    return found


def _train(
    learner: Learner,
    batches: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    mark: Callable[[str], None] = lambda _: None,
) -> int:
    """Take steps and return how many images they had; the device has finished."""
    total, count = torch.zeros((), device=learner.device), 0
    for _ in range(steps):
        mark("other")
        images, targets = next(batches)
        mark("data")
        total += loop.step(learner, images, targets)
        count += len(images)
    total.item()
    return count


@contextmanager
def _marked(learner: Learner) -> Iterator[tuple[Callable[[str], None], dict[str, float]]]:
    """Mark data, model and optimiser of a learner's steps; what ends at a mark is added to its part."""
    seconds: dict[str, float] = defaultdict(float)
    last: list[float] = []

    def mark(part: str) -> None:
        if learner.device.type == "cuda":
            torch.cuda.synchronize(learner.device)
        now = time.perf_counter()
        if last:
            seconds[part] += now - last.pop()
        last.append(now)

    hooks = [
        learner.optimizer.register_step_pre_hook(lambda *_: mark("model")),
        learner.optimizer.register_step_post_hook(lambda *_: mark("optimiser")),
    ]
    try:
        yield mark, seconds
    finally:
        for hook in hooks:
            hook.remove()


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
    found = profile(of(arrays.load(args.arrays, params.prepare.spec)), params.train, args.out, args.steps)
    print(f"{found.verdict}\n{args.out / 'bottleneck.txt'} has the rest")
