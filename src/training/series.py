"""How much is chance: the same recipe trained on the folds of the training split, and with further seeds.

made = plan(data, params, manifest)                                      # before hours of training: what does not go
written = run(made, data, params, checkpoints, fitted, seconds, world)   # {"folds": {...}, "repeats": {...}}

The model that ships is trained before and is no part of it, but for being the first of the seeds.
"""

import math
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from src.core.arrays import Arrays
from src.core.command import UserError, cores, table
from src.training import folds, job, machine, memory, side_by_side
from src.training.callbacks import NO_CALLBACKS, Callbacks
from src.training.job import METRICS, Job, Row, Setting
from src.training.loop import Fitted
from src.training.task import of
from src.training.train_params import Train
from src.training.world import World

_WORTH = 10.0  # seconds that a training must take before a process of its own, which takes some to start, can pay
_PROCESS = 2**30  # bytes that a process takes beside the images: PyTorch, the network, a batch
_COPIES = (
    4  # of the training images: src/training/batches.py keeps them in memory, padded, where half of what is free holds them
)


@dataclass(frozen=True)
class Plan:
    """What is to be trained beside the model.

    For each kind `digests` say on which images it is scored, `examples` of which images it keeps each answer.
    """

    jobs: list[Job] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    groups: bool = False


def plan(data: Arrays, params: Train, manifest: Path | None) -> Plan:
    """Return the folds and seeds that params ask for; with both, the folds are trained with each seed.

    Raises:
        UserError: there are too few images or groups, no validation image, or the manifest is missing or of other data.
    """
    if not params.folds and params.repeats == 1:
        return Plan()
    if manifest is None:
        raise UserError("train.folds and train.repeats need to know which images are the same: name --manifest")
    training, validation, test = folds.tables(manifest, data)
    made, digests, groups = [], {}, training.column("group").to_pylist()
    examples = {"folds": folds.examples(training), "repeats": folds.examples(test)}
    seeds = [(params.seed + i) % 2**32 for i in range(params.repeats)]
    if params.folds:
        dealt = folds.split(data.split("train").labels, groups, params.folds, params.seed, data.classes)
        made += [_fold(params, i, seed, rows, held) for seed in seeds for i, (rows, held) in enumerate(dealt, start=1)]
        places = np.zeros(len(training), dtype=np.int64)
        for i, (_, held) in enumerate(dealt):
            places[held] = i
        digests["folds"] = folds.digest(training, places)
    if params.repeats > 1:
        if not len(validation):
            raise UserError(
                "train.repeats needs validation images to score on: raise prepare.validation_share, or set it to 1"
            )
        made += [Job("repeats", f"seed {seed}", f"seed-{seed}", seed) for seed in seeds[1:]]
        digests["repeats"] = folds.digest(validation)
    return Plan(made, digests, examples, any(group is not None for group in groups))


def _fold(params: Train, number: int, seed: int, rows: NDArray[np.int64], held: NDArray[np.int64]) -> Job:
    name, folder = f"fold {number} of {params.folds}", f"fold-{number}"
    if seed != params.seed:
        name, folder = f"{name}, seed {seed}", f"{folder}-seed-{seed}"
    return Job("folds", name, folder, seed, rows, held)


def run(
    made: Plan,
    data: Arrays,
    params: Train,
    checkpoints: Path,
    fitted: Fitted,
    seconds: float | None,
    world: World | None = None,
    callbacks: Callbacks = NO_CALLBACKS,
) -> dict[str, Any]:
    """Train what was planned, side by side where there is room; what an earlier run finished is not trained again.

    Args:
        made: of `plan`.
        data: the arrays.
        params: the section `train`.
        checkpoints: the folder of the main run's state; each training gets a folder in it.
        fitted: the model that ships, trained just now in this process.
        seconds: that its training takes as a whole; None where it is not known.
        world: the processes that train together: more than one do all trainings one after another.
        callbacks: what tracks them, and fetches the champion to start from.

    Returns:
        For each kind its runs with METRICS, and what they were scored on; rank 0 has it, the others {}.
    """
    world = world or World()
    threads = _threads(len(made.jobs), world)
    tags = {"mlflow.parentRunId": fitted.run_id} if fitted.run_id else None
    setting = Setting(data, params, checkpoints, threads, tags, callbacks)
    done: dict[str, Row] = world.share({one.folder: row for one in made.jobs if (row := job.kept(setting, one))})
    todo = [one for one in made.jobs if one.folder not in done]
    each = None if seconds is None else seconds * max(1.0, torch.get_num_threads() / threads)
    at_once = room(setting, len(todo), each, world)
    if world.writes:
        print(_announced(params, len(todo), len(done), at_once, each))
    for one, row in _rows(setting, todo, at_once, world):
        done[one.folder] = row
        if world.writes:
            print(f"{one.name}: accuracy {row['accuracy']:.2%} of {row['images']:,} images, best epoch {row['epoch']}")
    return _told(made, done, fitted, params, data, world) if world.writes else {}


def room(setting: Setting, count: int, seconds: float | None, world: World) -> int:
    """Return how many of so many trainings, each of so many seconds, go at once.

    One a GPU; on a CPU as many as have their threads and memory. Their results do not depend on it.
    """
    if world.size > 1 or count < 2 or (seconds is not None and seconds < _WORTH):
        return 1
    device = machine.device(setting.params, world)
    if device.type == "cuda":
        return min(count, torch.cuda.device_count())
    images = setting.data.split("train").images.nbytes
    fit_in = memory.available() // (_PROCESS + _COPIES * images)
    return max(1, min(count, cores() // setting.threads, fit_in))


def remove(checkpoints: Path) -> None:
    """Remove what the series and the main run left in the folder of checkpoints, and nothing else."""
    for path in checkpoints.iterdir() if checkpoints.is_dir() else ():
        if path.is_dir() and re.fullmatch(r"(fold|seed)-\d+(-seed-\d+)?", path.name):
            shutil.rmtree(path)
        elif re.fullmatch(r"[0-9a-f]{32}\.pt", path.name):
            path.unlink()


def summary(written: dict[str, Any]) -> str:
    """Lay out every run with its metrics, then mean and standard deviation."""
    rows: list[list[str]] = []
    for kind, told in written.items():
        values = np.array([[run[name] for name in METRICS] for run in told["runs"]])
        rows += [[run["name"], f"{run['images']:,}", *map("{:.4f}".format, line)]
                 for run, line in zip(told["runs"], values, strict=True)]  # fmt: skip
        for name, line in (("mean", values.mean(axis=0)), ("deviation", values.std(axis=0, ddof=1))):
            rows.append([f"{kind}: {name}", "", *map("{:.4f}".format, line)])
    return table(["training", "images", *METRICS], rows)


def _threads(count: int, world: World) -> int:
    """Return the threads of each training: one where the main run gained nothing by more, else a fair share of the cores.

    It depends on nothing that changes while a series runs: sums in another order would give other weights.
    """
    chosen = torch.get_num_threads()
    return chosen if chosen == 1 or world.size > 1 else max(1, cores() // count)


def _announced(params: Train, left: int, done: int, at_once: int, seconds: float | None) -> str:
    each = f" for each of {params.repeats} seeds" if params.repeats > 1 else ""
    asked = [f"{params.folds} folds{each}"] if params.folds else []
    asked += [f"{params.repeats - 1} more seed{'s' if params.repeats > 2 else ''}"] if params.repeats > 1 else []
    kept = f", {done} of them done before" if done else ""
    together = f", {at_once} at a time" if at_once > 1 else ""
    about = "" if seconds is None else f": about {_duration(math.ceil(left / at_once) * seconds)}"
    return f"{' and '.join(asked)}{kept}{together}{about}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _rows(setting: Setting, todo: Sequence[Job], at_once: int, world: World) -> Iterator[tuple[Job, Row]]:
    if at_once > 1:
        yield from side_by_side.run(setting, todo, at_once)
        return
    for one in todo:
        yield one, job.train(setting, one, world)


def _told(made: Plan, done: dict[str, Row], fitted: Fitted, params: Train, data: Arrays, world: World) -> dict[str, Any]:
    """Put the results in order, those of the model that ships first among the seeds.

    `answers` keep a mark for each of their examples, by seed: of the test split for the seeds, of the training split for the
    folds, each image by the model that did not see it.
    """
    told: dict[str, Any] = {}
    for kind, digest in made.digests.items():
        runs = [{"name": one.name, **done[one.folder]} for one in made.jobs if one.kind == kind]
        right = {str(run["seed"]): run.pop("right") for run in runs} if kind == "repeats" else _out_of_fold(made, runs)
        told[kind] = {"runs": runs, "split_sha256": digest, "answers": {"examples": made.examples[kind], "right": right}}
    if "repeats" in told:
        task, device = of(data), machine.device(params, world)
        own, _ = job.score(fitted.classifier, task.validation, device)
        facts = {"epoch": fitted.best["epoch"], "seed": params.seed, "training_images": len(task.training.labels)}
        told["repeats"]["runs"].insert(0, {"name": f"seed {params.seed}", **facts, **own})
        told["repeats"]["answers"]["right"][str(params.seed)] = job.marks(fitted.classifier, data.split("test"), device)
    if "folds" in told:
        told["folds"]["grouped"] = made.groups
    return told


def _out_of_fold(made: Plan, runs: list[Row]) -> dict[str, str]:
    """Take the marks out of the folds' results; return those of all training images in their order, by seed."""
    marks = {run["seed"]: np.full(len(made.examples["folds"]), "0") for run in runs}
    for one, run in zip((one for one in made.jobs if one.kind == "folds"), runs, strict=True):
        assert one.held is not None
        marks[one.seed][one.held] = list(run.pop("right"))
    return {str(seed): "".join(each) for seed, each in marks.items()}
