"""How much is chance: the same recipe trained on the folds of the training split, and with further seeds.

made = plan(data, params, manifest)                             # before hours of training: what does not go
written = run(made, data, params, checkpoints, fitted, world)   # {"folds": {...}, "repeats": {...}}

The model that ships is trained before and is no part of it, but for being the first of the seeds. The result of each
training lies in a folder of its own under the checkpoints, under a key of everything that shaped it, until all are done:
a series that was killed does not train it again.
"""

import json
import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from src.core import metrics
from src.core.arrays import Arrays, Split
from src.core.command import UserError, table
from src.core.files import write_json
from src.training import checkpoint, folds, loop, machine
from src.training.callbacks import NO_CALLBACKS, Callbacks
from src.training.classifier import Classifier
from src.training.loop import Fitted, fit
from src.training.task import of
from src.training.train_params import Train
from src.training.world import World

METRICS = ("accuracy", "macro_f1", "log_loss", "ece")
_BATCH = 512
_BINS = 15  # of the calibration error
_RESULT = "result.json"

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One training: `training` and `held` are rows of the training split; None is all of it, and the validation split."""

    kind: str  # folds or repeats
    name: str
    folder: str  # under the checkpoints
    seed: int
    training: NDArray[np.int64] | None = None
    held: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Setting:
    """What all jobs of a series share. `tags` are those of their tracked runs; None tracks nothing."""

    data: Arrays
    params: Train
    checkpoints: Path
    tags: dict[str, str] | None
    callbacks: Callbacks = NO_CALLBACKS


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
        for seed in seeds:
            named, tail = ("", "") if seed == params.seed else (f", seed {seed}", f"-seed-{seed}")
            made += [
                Job("folds", f"fold {i} of {params.folds}{named}", f"fold-{i}{tail}", seed, rows, held)
                for i, (rows, held) in enumerate(dealt, start=1)
            ]
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
    done: dict[str, Row] = world.share({one.folder: row for one in made.jobs if (row := kept(setting, one))})
    todo = [one for one in made.jobs if one.folder not in done]
    if world.writes:
        print(f"{len(todo)} further trainings for folds and seeds" + (f", {len(done)} were done before" if done else ""))
    for one in todo:
        row = done[one.folder] = train(setting, one, world)
        if world.writes:
            print(f"{one.name}: accuracy {row['accuracy']:.2%} of {row['examples']:,} images, best epoch {row['epoch']}")
    return _told(made, done, fitted, params, data, world) if world.writes else {}


def train(setting: Setting, job: Job, world: World | None = None) -> Row:
    """Train, score the held-out images, keep the result; go on from a checkpoint where there is one.

    `right` of the result has a mark for each held-out image; of a further seed, for each image of the test split. The test
    split is scored as evidence for the gates only: nothing is selected by it.

    Raises:
        UserError: as src.training.loop.fit does.
    """
    world, key = world or World(), _key(setting, job)
    task, params = of(setting.data), setting.params.model_copy(update={"seed": job.seed})
    training = task.training if job.training is None else task.training.subset(job.training)
    scored = task.validation if job.held is None else task.training.subset(job.held)
    tags = None if setting.tags is None else {**setting.tags, "mlflow.runName": job.name}
    fitted = fit(
        replace(task, training=training),
        params,
        setting.checkpoints / job.folder,
        world=world,
        tags=tags,
        callbacks=setting.callbacks,
        exportable=False,
        quiet=True,
    )
    facts = {"epoch": fitted.best["epoch"], "seed": job.seed, "training_examples": len(training.labels)}
    if not world.writes:
        return facts
    device = machine.device(params, world)
    row, right = score(fitted.classifier, scored, device)
    if job.held is None:
        _, right = score(fitted.classifier, setting.data.split("test"), device)
    row = {**facts, **row, "right": right}
    write_json(setting.checkpoints / job.folder / _RESULT, {"key": key, "row": row})
    return row


def kept(setting: Setting, job: Job) -> Row | None:
    """Return the result that an earlier run of this very job left, or None."""
    try:
        found = json.loads((setting.checkpoints / job.folder / _RESULT).read_text())
    except (OSError, ValueError):  # none, or one that was damaged: the job is done again
        return None
    same = isinstance(found, dict) and found.get("key") == _key(setting, job)
    return found["row"] if same else None


def _key(setting: Setting, job: Job) -> str:
    data, threads = setting.data, torch.get_num_threads()  # sums in another order give other weights
    rows = [None if part is None else part.tolist() for part in (job.training, job.held)]
    params = setting.params.model_dump(exclude={"folds", "repeats", "processes"})
    shaped = [data.manifest_sha256, str(data.spec), threads, job.seed, rows, params]
    return checkpoint.key(shaped, torch.__version__, *loop.CODE)


def score(classifier: Classifier, split: Split, device: torch.device) -> tuple[Row, str]:
    """Return `images` and METRICS of a split, and a mark for each example, 1 where it is answered rightly, in order."""
    if not len(split.labels):
        return {}, ""
    classifier.to(device).eval()
    parts = []
    with torch.inference_mode():
        for first in range(0, len(split.labels), _BATCH):
            images = torch.from_numpy(np.array(split.examples[first : first + _BATCH])).to(device).permute(0, 3, 1, 2)
            parts.append(classifier(images).float().softmax(dim=1).cpu())
    classifier.cpu()
    probabilities = torch.cat(parts).numpy()
    found = metrics.overall(split.labels, probabilities, 0.95, _BINS)
    marks = "".join("01"[right] for right in (probabilities.argmax(axis=1) == split.labels).astype(int))
    return {"examples": len(split.labels), **{name: found[name] for name in METRICS}}, marks


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
        rows += [[run["name"], f"{run['examples']:,}", *map("{:.4f}".format, line)]
                 for run, line in zip(told["runs"], values, strict=True)]  # fmt: skip
        for name, line in (("mean", values.mean(axis=0)), ("deviation", values.std(axis=0, ddof=1))):
            rows.append([f"{kind}: {name}", "", *map("{:.4f}".format, line)])
    return table(["training", "examples", *METRICS], rows)


def _told(made: Plan, done: dict[str, Row], fitted: Fitted, params: Train, data: Arrays, world: World) -> dict[str, Any]:
    """Put the results in order, those of the model that ships first among the seeds.

    `answers` keep a mark for each of their examples, by seed: of the test split for the seeds, of the training split for the
    folds, each image by the model that did not see it.
    """
    told: dict[str, Any] = {}
    for kind, digest in made.digests.items():
        runs = [{"name": one.name, **done[one.folder]} for one in made.jobs if one.kind == kind]
        right = {str(run["seed"]): np.full(len(made.examples[kind]), "0") for run in runs}
        for one, run in zip((one for one in made.jobs if one.kind == kind), runs, strict=True):
            right[str(one.seed)][slice(None) if one.held is None else one.held] = list(run.pop("right"))
        answers = {"examples": made.examples[kind], "right": {seed: "".join(each) for seed, each in right.items()}}
        told[kind] = {"runs": runs, "split_sha256": digest, "answers": answers}
    if "repeats" in told:
        task, device = of(data), machine.device(params, world)
        own, _ = score(fitted.classifier, task.validation, device)
        facts = {"epoch": fitted.best["epoch"], "seed": params.seed, "training_examples": len(task.training.labels)}
        told["repeats"]["runs"].insert(0, {"name": f"seed {params.seed}", **facts, **own})
        _, told["repeats"]["answers"]["right"][str(params.seed)] = score(fitted.classifier, data.split("test"), device)
    if "folds" in told:
        told["folds"]["grouped"] = made.groups
    return told
