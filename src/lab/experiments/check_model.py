"""Is my network wired right? `make check-model` tells in about a minute; it trains for seconds and writes nothing.

    python -m src check-model [--arrays out/arrays] [--steps 300]

Takes the network that params.yaml names, on the training images of `prepare`, or on drawn ones where there are none. Ends
with status 1 when a check fails; a warning fails nothing.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from src.core import arrays
from src.core.arrays import Split
from src.core.command import UserError, table
from src.lab.experiments import wiring
from src.lab.experiments.wiring import EARLY, ENOUGH, Found, Lesson, Result, Subject, first_line
from src.system.params import Params, load
from src.training import export, machine, onednn, start
from src.training.classifier import Classifier
from src.training.task import Task, of
from src.training.world import World

_IMAGES = 32
_FEWEST_IMAGES = 8  # of a large network
_STEPS = 300
_CPU_OPERATIONS = 2e12  # floating-point operations of learning by heart: some 20 seconds of two cores
_OF_A_LESSON = {
    "first loss": wiring.first_loss,
    "gradients": wiring.gradients,
    "learns by heart": wiring.overfits,
    "evaluation mode": wiring.modes,
    "repeatable": wiring.repeats,
}


class CheckResult(NamedTuple):
    """What one check found; `advice` is for what is not ok. "not shown": too few steps to tell."""

    check: str
    result: Result
    told: str
    advice: str


def check(task: Task, params: Params, steps: int | None = None) -> list[CheckResult]:
    """Try the network of `params` on some images of a task; a check that others make pointless is left out.

    Args:
        task: whose training split is taken from.
        params: `train` names network, width, seed, precision and device.
        steps: the most that learning a few images by heart may take; None chooses 300, or fewer of fewer images where a
            network of many operations meets a CPU.

    Raises:
        UserError: there is no such network, device, or training image.
    """
    fresh: dict[str, Any] = {"weights": None, "weights_sha256": None, "freeze": [], "freeze_until": None}
    train = params.train.model_copy(update=fresh)
    device = machine.device(train, World())

    def build() -> Classifier:
        torch.manual_seed(train.seed)
        classifier, _ = start.start(task, train, lambda _: None)
        return classifier.to(device).train()

    images, labels = (value.to(device) for value in _few(task.training))
    subject = Subject(build, images, labels, task.classes, task.spec, device, machine.bf16(train, device))
    return list(_findings(subject, params.evaluate.parity_tolerance, steps))


def _findings(subject: Subject, tolerance: float, steps: int | None) -> Iterator[CheckResult]:
    def ask(name: str, question: Callable[..., Found], *about: Any) -> CheckResult:
        try:
            return CheckResult(name, *question(subject, *about))
        except Exception as error:  # whatever the network of a stranger raises is the finding
            return CheckResult(name, "FAIL", f"raises {first_line(error)}", "mend forward(); see src/model.py")

    try:
        classifier = subject.build()
    except UserError:
        raise
    except Exception as error:  # likewise
        yield CheckResult("builds", "FAIL", first_line(error), "mend __init__; it is called with (shape, width)")
        return
    yield CheckResult("builds", "ok", f"{sum(value.numel() for value in classifier.parameters()):,} parameters", "")
    yield (shapes := ask("shapes", wiring.shapes))
    if shapes.result == "FAIL":
        return
    if steps is None:
        subject, steps = _affordable(subject, classifier)
    yield ask("logits", wiring.logits)
    yield ask("one image alone", wiring.independence)
    yield ask("extreme images", wiring.extremes)
    lesson = Lesson(subject.build())
    try:
        onednn.require_sound(lesson.classifier.network, subject.device)
        lesson = wiring.learn(subject, steps)
    except UserError as error:
        told, _, advice = str(error).rpartition(": ")
        yield CheckResult("gradients", "FAIL", told, advice)
    except Exception as error:  # likewise
        yield CheckResult("learns", "FAIL", first_line(error), "a step must run forwards and backwards in training mode")
    else:
        for name, question in _OF_A_LESSON.items():
            yield ask(name, question, lesson)
    yield ask("ONNX", wiring.parity, lesson, tolerance)


def _affordable(subject: Subject, classifier: Classifier) -> tuple[Subject, int]:
    """Choose images and steps by the operations that they cost, so that no clock decides what is found."""
    if subject.device.type != "cpu":
        return subject, _STEPS
    operations = max(1, export.training_flops(classifier, subject.spec))
    images = int(min(len(subject.images), max(_FEWEST_IMAGES, _CPU_OPERATIONS / operations / ENOUGH)))
    steps = int(min(_STEPS, max(2 * EARLY, _CPU_OPERATIONS / operations / images)))
    return replace(subject, images=subject.images[:images], labels=subject.labels[:images]), steps


def _few(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """Take images of every class in turn, so that the first of them are of as many classes as can be; and their labels."""
    ranks = np.empty(len(split.labels), dtype=np.int64)
    for label in np.unique(split.labels):
        rows = np.flatnonzero(split.labels == label)
        ranks[rows] = np.arange(len(rows))
    chosen = np.lexsort((split.labels, ranks))[:_IMAGES]
    images = torch.from_numpy(np.array(split.examples[chosen])).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(split.labels[chosen])


def drawn(params: Params) -> Task:
    """Return a task of noise about ten colours, of the size that params.yaml asks for."""
    random = np.random.default_rng(0)
    spec = params.prepare.spec
    labels = np.arange(4 * _IMAGES, dtype=np.int64) % 10
    colours = random.integers(0, 256, (10, 1, 1, spec.shape[2]))
    noise = random.normal(0, 40, (len(labels), *spec.shape))
    split = Split(np.clip(colours[labels] + noise, 0, 255).astype(np.uint8), labels)
    return Task(split, split, [str(i) for i in range(10)], spec, "")


def main() -> None:
    """Try the network, print a table, and end with status 1 when a check failed."""
    parser = argparse.ArgumentParser(description="Try whether the network of params.yaml is wired right.")
    parser.add_argument("--arrays", type=Path, default=Path("out/arrays"), help="folder that prepare wrote")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--steps", type=int, metavar="N", help="the most that learning a few images by heart may take")
    args = parser.parse_args()
    params = load(args.params)
    there = (args.arrays / "card.json").is_file()
    task = of(arrays.load(args.arrays, params.prepare.spec)) if there else drawn(params)
    print(f"network {params.train.network}, width {params.train.width}, on {args.arrays if there else 'drawn images'}\n")
    found = check(task, params, args.steps)
    print(table(("check", "result", "what was found"), [(each.check, each.result, each.told) for each in found]))
    advice = [f"  {each.check}: {each.advice}" for each in found if each.result != "ok"]
    print("\n" + ("\n".join(["what to do:", *advice]) if advice else "the network is wired right"))
    failed = [each.check for each in found if each.result == "FAIL"]
    if failed:
        raise UserError(f"{len(failed)} of {len(found)} checks failed: {', '.join(failed)}")
