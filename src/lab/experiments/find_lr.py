"""Which learning rate? `make find-lr` raises it step by step until training breaks, and suggests; it changes nothing.

    python -m src find-lr out/arrays out/find-lr [--steps 100] [--rounds 3] [--low 1e-5] [--high 10]

Trains with network, batches and optimiser of params.yaml, from fresh (or given) weights in each round. Writes rates.csv,
rates.png and find-lr.md. Source of the method: Smith, "Cyclical Learning Rates for Training Neural Networks" (2017),
learning rate range test.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.core import arrays
from src.core.command import UserError, progress
from src.core.files import check_outputs, replacing
from src.lab.experiments import page
from src.lab.experiments.mlflow_callbacks import CALLBACKS
from src.lab.experiments.rates import Answer, Round, answer, picture, smoothed
from src.system.params import load
from src.training import loop, optimizer, start
from src.training.batches import Batches
from src.training.loop import Learner
from src.training.task import Task, of
from src.training.train_params import Train
from src.training.world import World

_MEMORY = 0.9  # of the running mean that decides when to stop
_BROKEN = 2.0  # times the first loss: nothing is to be learnt from higher rates
_HOW_TO_READ = """The rate rises from step to step; the curves are the training loss, smoothed over an eighth of a decade.
A good peak for a schedule that warms up and comes down lies between a tenth of the rate with the lowest loss and the rate at
which it falls fastest. The test is short: where two rates are close, only training tells."""


def find(task: Task, params: Train, rates: NDArray[np.float64], rounds: int) -> list[Round]:
    """Train for one step at each rate, from the lowest on, until the loss is broken; do so several times.

    Args:
        task: what to learn from.
        params: the section `train`; each round has the next seed. Its schedule and epochs do not matter.
        rates: rising learning rates, the peak that `train.learning_rate` would name: layers learn at their share of it.
        rounds: how often.

    Raises:
        UserError: params ask for what is not there, or the loss is not finite from the first step on.
    """
    found: list[Round] = []
    with progress(rounds * len(rates), "step", "find-lr") as bar:
        for seed in range(params.seed, params.seed + rounds):
            learner, training = _begun(task, params.model_copy(update={"seed": seed % 2**32}), again=bool(found))
            losses = []
            for loss in _losses(learner, training, rates):
                losses.append(loss)
                bar.update()
            if not losses:
                raise UserError(f"the loss is not finite at rate {rates[0]:g}: try a lower --low, or make check-model")
            found.append(Round(rates[: len(losses)], np.array(losses)))
    return found


def _begun(task: Task, params: Train, *, again: bool) -> tuple[Learner, Batches]:
    """Build what a run of training builds; what it says is said once."""
    params = params.model_copy(update={"compile": "off", "ema": 0.0})  # so few steps win no compiling back
    say = (lambda _: None) if again else print
    torch.manual_seed(params.seed)
    classifier, frozen = start.start(task, params, say, CALLBACKS)
    threads = torch.get_num_threads() if again else None
    learner, training, _ = loop.prepare(classifier, frozen, task, params, World(), say, threads)
    learner.classifier.train()
    for module in frozen:
        module.eval()
    return learner, training


def _losses(learner: Learner, training: Batches, rates: NDArray[np.float64]) -> Iterator[float]:
    """Yield the loss of each step, measured before the step is taken, until it is broken or the rates end."""
    mean, weight, first = 0.0, 0.0, math.inf
    for rate, (images, targets) in zip(rates, _endless(training, learner.params), strict=False):
        optimizer.set_rate(learner.optimizer, float(rate))
        loss = loop.step(learner, images, targets).item()
        if not math.isfinite(loss):
            return
        yield loss
        mean, weight = _MEMORY * mean + (1 - _MEMORY) * loss, _MEMORY * weight + (1 - _MEMORY)
        first = min(first, loss) if math.isinf(first) else first
        if mean / weight > _BROKEN * first:
            return


def _endless(training: Batches, params: Train) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches as training sees them, one epoch after the other."""
    epoch = 1
    while True:
        yield from training.epoch(params.batch_size, loop.epoch_seed(params.seed, epoch))
        epoch += 1


# ---------------------------------------------------------------------------------------------------------------------
# What is written
# ---------------------------------------------------------------------------------------------------------------------


def write(out: Path, rounds: Sequence[Round], found: Answer, params: Train) -> None:
    """Write table, picture and page into a folder."""
    rows = [
        {"round": i, "learning_rate": f"{rate:.6g}", "loss": f"{loss:.6f}", "smoothed": f"{smooth:.6f}"}
        for i, one in enumerate(rounds, start=1)
        for rate, loss, smooth in zip(one.rates, one.losses, smoothed(one), strict=True)
    ]
    with replacing(out) as fresh:
        fresh.mkdir()
        page.write_csv(fresh / "rates.csv", rows)
        picture(fresh / "rates.png", rounds, found, params.learning_rate)
        page.write(fresh / "find-lr.md", _blocks(found, params))


def _blocks(found: Answer, params: Train) -> list[str]:
    table = page.table(
        ("what", "median", "lowest", "highest"),
        [
            (name, *(f"{value:.2g}" for value in (np.median(values), min(values), max(values))))
            for name, values in (
                ("the loss falls fastest at", found.steepest),
                ("the loss is lowest at", found.lowest),
                ("the loss has lost half of its gain at", found.broken),
            )
            if values
        ],
    )
    return [
        "# Learning rate",
        sentence(found, params),
        table if found.steepest else "",
        f"Optimiser {params.optimizer}, batches of {params.batch_size}, {found.rounds} rounds with a seed each.",
        "![loss over learning rate](rates.png)",
        _HOW_TO_READ,
    ]


def sentence(found: Answer, params: Train) -> str:
    """Say what is suggested beside what is set, and how to set it."""
    now = f"train.learning_rate is {params.learning_rate:g}"
    if found.low is None or found.high is None:
        return f"{now}; the loss fell at no rate, so nothing is suggested: raise --high or --steps, or run make check-model"
    within = f"between {found.low:.2g} and {found.high:.2g}"
    if found.low <= params.learning_rate <= found.high:
        return f"{now}, which lies in what the range test suggests: {within}"
    return f"{now}; the range test suggests {within}: set train.learning_rate in params.yaml, train, and compare"


def main() -> None:
    parser = argparse.ArgumentParser(description="Raise the learning rate until training breaks, and suggest one.")
    parser.add_argument("arrays", type=Path, help="folder that prepare wrote")
    parser.add_argument("out", type=Path, help="folder to write rates.csv, rates.png and find-lr.md into")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--steps", type=int, default=100, help="of each round; more give a finer curve")
    parser.add_argument("--rounds", type=int, default=3, help="each with another seed; they tell how much is chance")
    parser.add_argument("--low", type=float, default=1e-5, help="rate of the first step")
    parser.add_argument("--high", type=float, default=10.0, help="rate of the last step")
    args = parser.parse_args()
    if args.steps < 20 or args.rounds < 1 or not 0 < args.low < args.high < math.inf:
        raise UserError("use --steps of 20 or more, --rounds of 1 or more, and a --low over 0 that is under --high")
    check_outputs([args.arrays, args.params], folders=[args.out])
    asked = load(args.params)
    data, params = arrays.load(args.arrays, asked.prepare), asked.train
    rounds = find(of(data), params, np.geomspace(args.low, args.high, args.steps), args.rounds)
    found = answer(rounds)
    write(args.out, rounds, found, params)
    print(f"{sentence(found, params)} (see {args.out / 'find-lr.md'})")
