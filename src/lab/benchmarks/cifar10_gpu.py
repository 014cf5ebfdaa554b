"""What a GPU reaches on CIFAR-10: time and accuracy of a recipe, FLOP/s by network, ResNet-18 beside the plain recipe.

    python -m src bench-gpu                        (`make bench-gpu`; out/arrays must hold CIFAR-10)
    python -m src bench-gpu --device cpu --small   (tries the script itself where there is no GPU)

The recipe trains once to warm up (kernels chosen, code compiled), starts anew from fresh weights, and is timed: the
seconds are those of its epochs, the last one waited for, without validation and without reading the images.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from src.core import arrays
from src.core.arrays import Split
from src.core.command import UserError, table
from src.system.params import load
from src.training import export, loop, optimizer, start
from src.training.batches import Batches
from src.training.loop import Learner
from src.training.meter import Meter
from src.training.task import Task, of
from src.training.train_params import Train
from src.training.world import World

_GOAL_ACCURACY, _GOAL_SECONDS, _GOAL_RATIO = 0.94, 10.0, 5.0
_SHAPES = (("airbench", 64, 1000), ("airbench", 64, 2000), ("resnet18", 64, 256), ("resnet18", 64, 1024))
_SMALL = (("airbench", 4, 64), ("resnet18", 4, 32))
_SMALL_IMAGES = 256
_BATCH = 500


def built(task: Task, params: Train) -> tuple[Learner, Batches, Meter]:
    """Return what the train stage trains with, from fresh weights."""
    torch.manual_seed(params.seed)
    classifier, frozen = start.start(task, params)
    flops = export.training_flops(classifier, task.size, task.channels)
    learner, training, _ = loop.prepare(classifier, frozen, task, params, World(), print, None)
    return learner, training, Meter(learner.device, flops, learner.bf16, World())


def recipe(task: Task, test: Split, params: Train) -> str:
    """Warm up, train anew, judge on the test images; return what came out and whether the goals hold."""
    learner, training, meter = built(task, params)
    fresh = {name: value.clone() for name, value in learner.classifier.state_dict().items()}
    _epochs(learner, training, meter, 1)
    learner.classifier.load_state_dict(fresh)
    learner.optimizer = optimizer.build(learner.classifier, params)
    meter.rows.clear()
    _epochs(learner, training, meter, params.epochs)
    seconds = sum(row["seconds"] for row in meter.rows)
    accuracy = _accuracy(learner, test)
    held = _holds(accuracy >= _GOAL_ACCURACY and seconds < _GOAL_SECONDS)
    return (
        f"{params.network} {params.width}, {params.epochs} epochs, seed {params.seed}: {seconds:.2f} s of training, "
        f"{accuracy:.2%} of {len(test.labels):,} test images\n{_GOAL_ACCURACY:.0%} in under {_GOAL_SECONDS:g} s: {held}"
    )


def _epochs(learner: Learner, training: Batches, meter: Meter, count: int) -> None:
    learner.classifier.train()
    for epoch in range(1, count + 1):
        loop.train_epoch(learner, training, meter, epoch)


def _accuracy(learner: Learner, test: Split) -> float:
    """Return the share of test images that the classifier, with its test-time augmentation, names rightly."""
    learner.classifier.eval()
    right = 0
    with torch.inference_mode(), learner.autocast():
        for first in range(0, len(test.labels), _BATCH):
            images = torch.from_numpy(np.array(test.images[first : first + _BATCH])).permute(0, 3, 1, 2)
            answers = learner.classifier(images.to(learner.device)).argmax(dim=1).cpu().numpy()
            right += int((answers == test.labels[first : first + _BATCH]).sum())
    return right / len(test.labels)


def utilisation(task: Task, params: Train, shapes: Sequence[tuple[str, int, int]]) -> str:
    """Train each network for two epochs, of which the second counts; return images/s and share of the peak."""
    rows, source = [], ""
    for network, width, batch in shapes:
        changes = {
            "network": network,
            "width": width,
            "batch_size": batch,
            "compile": "on" if params.device == "cuda" else "off",
            "epochs": 2,
        }
        learner, training, meter = built(task, params.model_copy(update=changes))
        _epochs(learner, training, meter, 2)
        last, source = meter.rows[-1], meter.summary()["peak_source"]
        rows.append(
            [network, str(width), str(batch), f"{last['images_per_second']:,.0f}", f"{last['flop_utilisation']:.1%}"]
        )
    return table(["network", "width", "batch", "images/s", f"model FLOP/s of the peak ({source})"], rows)


def beside_plain(folder: Path, device: str, small: bool) -> None:
    """Run the comparison of a ResNet-18 step with the plain recipe's, which prints its own table."""
    size = ["--width=4", "--batch=32", "--images=128", "--rounds=1"] if small else ["--width=64", "--batch=512"]
    images = [] if small else ["--images=49152"]
    command = [sys.executable, "-m", "src", "bench-train", "--network=resnet18", f"--arrays={folder}"]
    command += [*size, *images, f"--device={device}", f"--least={_GOAL_RATIO:g}"]
    if subprocess.run(command, check=False).returncode:
        raise UserError("the comparison with the plain recipe failed; it says why above")


def _holds(true: bool) -> str:
    return "holds" if true else "does not hold"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure on a GPU what training on CIFAR-10 costs and reaches.")
    parser.add_argument("--arrays", type=Path, default=Path("out/arrays"), help="folder that prepare wrote")
    parser.add_argument("--params", type=Path, default=Path("params/cifar10_gpu.yaml"), help="the recipe")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="a few images and narrow networks: to try the script")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("PyTorch sees no GPU here, and this measures one: run it there, or add --device cpu --small")
    params = load(args.params).train.model_copy(update={"device": args.device})
    data = arrays.load(args.arrays)
    task, test = of(data), data.split("test")
    if args.small:
        few = np.random.default_rng(1).permutation(len(task.training.labels))[:_SMALL_IMAGES]
        task = replace(task, training=task.training.subset(few))
        test = test.subset(np.arange(min(_SMALL_IMAGES, len(test.labels))))
        params = params.model_copy(update={"width": 4, "batch_size": 64, "epochs": 2})
    if not len(test.labels):
        raise UserError(f"{args.arrays} holds no test image to judge the recipe on: raise prepare.test_share")
    print(recipe(task, test, params) + "\n")
    print(utilisation(task, params, _SMALL if args.small else _SHAPES) + "\n")
    beside_plain(args.arrays, args.device, args.small)
