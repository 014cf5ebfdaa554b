"""Which learning rate? `make find-lr` raises it step by step until training breaks, and suggests; it changes nothing.

    python -m src find-lr out/arrays out/find-lr [--steps 100] [--rounds 3] [--low 1e-5] [--high 10]

Trains with network, batches and optimiser of params.yaml, from fresh (or given) weights in each round. Writes rates.png.
Source of the method: Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), learning rate range test.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from src.core import arrays, pictures
from src.core.command import UserError, progress
from src.core.files import check_outputs, replacing
from src.lab.experiments.training_steps import endless, prepare
from src.system.params import load
from src.training import loop, optimizer
from src.training.batches import Batches
from src.training.loop import Learner
from src.training.task import Task, of
from src.training.train_params import Train

_MEMORY = 0.9  # of the running mean that decides when to stop
_BROKEN = 2.0  # times the first loss: nothing is to be learnt from higher rates
_WIDTH = 1 / 8  # of the smoothing, in decades of the rate
_FALL = 0.02  # share of the first loss that it must fall by to have fallen at all


@dataclass(frozen=True)
class Round:
    """One test: rising rates, evenly spaced in their logarithm, and the loss of a step at each; both float64 (n,)."""

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]


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
    params = params.model_copy(update={"compile": "off", "ema": 0.0})  # so few steps win no compiling back
    found: list[Round] = []
    with progress(rounds * len(rates), "step", "find-lr") as bar:
        for seed in range(params.seed, params.seed + rounds):
            learner, training = prepare(task, params.model_copy(update={"seed": seed % 2**32}), quiet=bool(found))
            losses = []
            for loss in _losses(learner, training, rates):
                losses.append(loss)
                bar.update()
            if not losses:
                raise UserError(f"the loss is not finite at rate {rates[0]:g}: try a lower --low, or make check-model")
            found.append(Round(rates[: len(losses)], np.array(losses)))
    return found


def _losses(learner: Learner, training: Batches, rates: NDArray[np.float64]) -> Iterator[float]:
    """Yield the loss of each step, measured before the step is taken, until it is broken or the rates end."""
    mean, weight, first = 0.0, 0.0, math.inf
    for rate, (images, targets) in zip(rates, endless(training, learner.params), strict=False):
        optimizer.set_rate(learner.optimizer, float(rate))
        loss = loop.step(learner, images, targets).item()
        if not math.isfinite(loss):
            return
        yield loss
        mean, weight = _MEMORY * mean + (1 - _MEMORY) * loss, _MEMORY * weight + (1 - _MEMORY)
        first = min(first, loss) if math.isinf(first) else first
        if mean / weight > _BROKEN * first:
            return


def smoothed(one: Round) -> NDArray[np.float64]:
    """Return the losses under a Gaussian in the logarithm of the rate.

    It looks both ways: a running mean, as fastai's, lags behind, and would show each fall at a rate that is too high.
    """
    if len(one.rates) < 2:
        return one.losses
    steps_a_decade = 1 / np.log10(one.rates[1] / one.rates[0])
    return np.asarray(gaussian_filter1d(one.losses, _WIDTH * steps_a_decade, mode="nearest"))


def suggested(rounds: Sequence[Round]) -> tuple[float, float] | None:
    """Return the ends of what is suggested, as medians of the rounds; None where the loss never fell.

    One is a tenth of the rate with the lowest loss, the other the rate at which the loss falls fastest.
    """
    ends = []
    for one in rounds:
        curve = smoothed(one)
        lowest = int(curve.argmin())
        if lowest >= 2 and curve[0] - curve[lowest] >= _FALL * curve[0]:
            slopes = np.gradient(curve[: lowest + 1])  # the rates are evenly spaced in their logarithm
            ends.append((one.rates[lowest] / 10, one.rates[slopes.argmin()]))
    if not ends:
        return None
    low, high = sorted(float(end) for end in np.median(ends, axis=0))
    return low, high


def write(out: Path, rounds: Sequence[Round], within: tuple[float, float] | None, now: float) -> None:
    """Write the picture into a folder; `within` is what is suggested, `now` the rate that is set."""
    with replacing(out) as fresh:
        fresh.mkdir()
        _draw(fresh / "rates.png", rounds, within, now)


def sentence(within: tuple[float, float] | None, rate: float) -> str:
    """Say what is suggested beside the rate that is set, and how to set it."""
    now = f"train.learning_rate is {rate:g}"
    if within is None:
        return f"{now}; the loss fell at no rate, so nothing is suggested: raise --high or --steps, or run make check-model"
    ends = "between {:.2g} and {:.2g}".format(*within)
    if within[0] <= rate <= within[1]:
        return f"{now}, which lies in what the range test suggests: {ends}"
    return f"{now}; the range test suggests {ends}: set train.learning_rate in params.yaml, train, and compare"


def _draw(path: Path, rounds: Sequence[Round], within: tuple[float, float] | None, now: float) -> None:
    """Draw every round's losses and their smoothed curve over the rate, what is suggested, and the rate that is set."""
    made = pictures.figure(7.5, 4.2)
    axes = made.subplots()
    for one in rounds:
        axes.plot(one.rates, one.losses, color=pictures.GREY, linewidth=0.6, alpha=0.7)
    for i, one in enumerate(rounds):
        axes.plot(one.rates, smoothed(one), color=pictures.BLUE, label="" if i else "training loss, smoothed, each round")
    if within:
        label = "suggested: {:.2g} to {:.2g}".format(*within)
        axes.axvspan(*within, color=pictures.ORANGE, alpha=0.25, linewidth=0, label=label)
    axes.axvline(now, color=pictures.RED, linestyle="--", label=f"params.yaml: {now:g}")
    lowest = min(smoothed(one).min() for one in rounds)
    top = 2 * max(one.losses[0] for one in rounds)  # what is higher is broken, and would press the rest flat
    axes.set(xscale="log", ylim=(max(0.0, lowest * 0.8), top), xlabel="learning rate", ylabel="training loss")
    axes.set_title("Learning rate range test")
    axes.legend(fontsize=8, loc="lower left")
    pictures.save(made, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Raise the learning rate until training breaks, and suggest one.")
    parser.add_argument("arrays", type=Path, help="folder that prepare wrote")
    parser.add_argument("out", type=Path, help="folder to write rates.png into")
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
    data, params = arrays.load(args.arrays, asked.prepare.spec), asked.train
    rounds = find(of(data), params, np.geomspace(args.low, args.high, args.steps), args.rounds)
    within = suggested(rounds)
    write(args.out, rounds, within, params.learning_rate)
    print(f"{sentence(within, params.learning_rate)} (see {args.out / 'rates.png'})")
