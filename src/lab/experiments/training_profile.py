"""What is the bottleneck of training? `make profile` runs some steps of the real loop and answers on one page.

    python -m src profile out/arrays out/training-profile [--steps 30]

Writes bottleneck.md with its picture, and trace.json.gz, which chrome://tracing and ui.perfetto.dev open. No model is made.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from src.core import arrays
from src.core.command import UserError
from src.core.files import check_outputs, replacing
from src.lab.experiments import bottleneck, step_parts
from src.lab.experiments.mlflow_callbacks import CALLBACKS
from src.lab.experiments.step_parts import Measured
from src.system.params import load
from src.training import export, loop, start
from src.training.meter import Meter
from src.training.task import Task, of
from src.training.train_params import Train
from src.training.world import World

_EPOCHS = 8  # at least, so that the learning rate of the few steps is none of a run's end
_VALIDATION = 64


def profile(task: Task, params: Train, out: Path, steps: int) -> Measured:
    """Measure some training steps; write page, picture and trace into `out`, and return what was measured.

    Args:
        task: what the run would learn from.
        params: the section `train`.
        out: a folder.
        steps: how many; a few more warm it up.

    Raises:
        UserError: params ask for what is not there, or the loss is not finite.
    """
    params = params.model_copy(update={"epochs": max(_EPOCHS, params.epochs)})
    held_out = task.validation.subset(np.arange(min(_VALIDATION, len(task.validation.labels))))
    task = replace(task, validation=held_out)
    torch.manual_seed(params.seed)
    classifier, frozen = start.start(task, params, callbacks=CALLBACKS)
    flops = export.training_flops(classifier, task.size, task.channels)
    learner, training, _ = loop.prepare(classifier, frozen, task, params, World(), print, None)
    meter = Meter(learner.device, flops, learner.bf16, learner.world)
    with replacing(out) as fresh:
        fresh.mkdir()

        def write_trace(profiler: Any) -> None:
            profiler.export_chrome_trace(str(fresh / "trace.json.gz"))

        measured = step_parts.measure(learner, training, meter, steps, write_trace)
        bottleneck.draw(fresh / "bottleneck.png", measured)
        (fresh / "bottleneck.md").write_text(_page(measured, meter.summary(), params, training.where))
    return measured


def _page(measured: Measured, summary: dict[str, Any], params: Train, where: str) -> str:
    setting = f"Network {params.network} of width {params.width}, batches of {params.batch_size}; training images {where}"
    peak = f"{summary['peak_flops'] / 1e12:,.3g} TFLOP/s ({summary['peak_source']})"
    return bottleneck.page(measured, setting, peak)


def main() -> None:
    """Profile, and print the verdict."""
    parser = argparse.ArgumentParser(description="Find out what holds training up.")
    parser.add_argument("arrays", type=Path, help="folder that prepare wrote")
    parser.add_argument("out", type=Path, help="folder to write page, picture and trace into")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--steps", type=int, default=30, help="training steps to measure")
    args = parser.parse_args()
    if args.steps < 1:
        raise UserError(f"--steps is {args.steps}: measure at least one")
    check_outputs([args.arrays], folders=[args.out])
    params = load(args.params)
    measured = profile(of(arrays.load(args.arrays, params.prepare)), params.train, args.out, args.steps)
    cause, share = bottleneck.verdict(measured), max(bottleneck.shares(measured).values())
    print(
        f"the bottleneck is {cause.name}: {share:.0%} of a step. {cause.advice}\n{args.out / 'bottleneck.md'} has the rest"
    )
