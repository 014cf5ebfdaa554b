"""How much is chance: the same recipe trained on the folds of the training split, and with further seeds.

made = plan(data, params, manifest)                                      # before hours of training: what does not go
written = run(made, data, params, checkpoints, fitted, world)   # {"folds": {...}, "repeats": {...}}

The model that ships is trained before and is no part of it, but for being the first of the seeds.
"""

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.core.arrays import Arrays
from src.core.command import UserError, table
from src.training import folds, job, machine
from src.training.callbacks import NO_CALLBACKS, Callbacks
from src.training.job import METRICS, Job, Row, Setting
from src.training.loop import Fitted
from src.training.task import of
from src.training.train_params import Train
from src.training.world import World


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
    world: World | None = None,
    callbacks: Callbacks = NO_CALLBACKS,
) -> dict[str, Any]:
    """Train what was planned, one after another; what an earlier run finished is not trained again.

    Args:
        made: of `plan`.
        data: the arrays.
        params: the section `train`.
        checkpoints: the folder of the main run's state; each training gets a folder in it.
        fitted: the model that ships, trained just now in this process.
        world: the processes that train together.
        callbacks: what tracks them, and fetches the champion to start from.

    Returns:
        For each kind its runs with METRICS, and what they were scored on; rank 0 has it, the others {}.
    """
    world = world or World()
    tags = {"mlflow.parentRunId": fitted.run_id} if fitted.run_id else None
    setting = Setting(data, params, checkpoints, tags, callbacks)
    done: dict[str, Row] = world.share({one.folder: row for one in made.jobs if (row := job.kept(setting, one))})
    todo = [one for one in made.jobs if one.folder not in done]
    if world.writes:
        print(f"{len(todo)} further trainings for folds and seeds" + (f", {len(done)} were done before" if done else ""))
    for one in todo:
        row = done[one.folder] = job.train(setting, one, world)
        if world.writes:
            print(f"{one.name}: accuracy {row['accuracy']:.2%} of {row['images']:,} images, best epoch {row['epoch']}")
    return _told(made, done, fitted, params, data, world) if world.writes else {}


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
