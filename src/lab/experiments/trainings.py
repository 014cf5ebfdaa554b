"""The trainings of a study: each is done once, scored on one split, and kept, so that a study that was stopped goes on."""

import os
import zipfile
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from src.core import metrics
from src.core.arrays import Split
from src.core.command import UserError, progress
from src.core.files import replacing, sha256
from src.lab.experiments.mlflow_callbacks import CALLBACKS
from src.training import checkpoint, loop, machine
from src.training.classifier import Served
from src.training.loop import fit
from src.training.task import Task
from src.training.train_params import Train
from src.training.world import World

_BATCH = 512
_NOT_OF_ONE_TRAINING = {"folds", "repeats", "processes"}


@dataclass(frozen=True)
class Training:
    """One training of a study: what it is called there, what it learns from, and how."""

    name: str
    task: Task
    params: Train


@dataclass(frozen=True)
class Answers:
    """How a model did on the scored split: `right`, bool (n,), and `losses`, the log loss of each image, float64 (n,)."""

    right: NDArray[np.bool_]
    losses: NDArray[np.float64]


def changed(params: Train, **changes: object) -> Train:
    """Return the section `train` with other values, which are checked; `augment__flip=True` reaches inside a section."""
    values = params.model_dump()
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        (values[section] if section else values)[key] = value
    return Train.model_validate(values)


def seeds(params: Train, count: int) -> list[Train]:
    """Return the same recipe with so many seeds, the one of params.yaml first."""
    return [changed(params, seed=(params.seed + i) % 2**32) for i in range(count)]


def add_budget(parser: ArgumentParser) -> None:
    """Let a study be told how long and how often to train; a workflow tells it by variables."""
    for name, default, words in (
        ("epochs", 0, "of each training; 0: as params.yaml says"),
        ("seeds", 3, "trainings of each that is compared"),
    ):
        variable = f"STUDY_{name.upper()}"
        value = os.environ.get(variable) or str(default)
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{words} (default {default}; {variable})")


def train_all(wanted: Sequence[Training], study: str, scored: Split, scored_name: str, folder: Path) -> list[Answers]:
    """Do every training that has no result yet, in the given order; return what each answered on the scored split.

    Results lie in `folder`/runs, one file a training, named after all that shaped it: data, parameters, seed and code.
    A study that was killed loses no finished training, and the unfinished one goes on from its checkpoint.

    Args:
        wanted: the trainings; two that are equal are done once.
        study: its name in messages, the progress bar and MLflow's tag `study`.
        scored: the split to answer, of the same data as the tasks.
        scored_name: which split that is.
        folder: of the study.

    Raises:
        UserError: a training is not possible or its loss is not finite; the text names the training.
    """
    with progress(len(wanted), "training", study) as bar:
        found = []
        for training_ in wanted:
            bar.set_postfix_str(training_.name)
            found.append(_answers(training_, study, scored, scored_name, folder))
            bar.update()
    return found


def _answers(wanted: Training, study: str, scored: Split, scored_name: str, folder: Path) -> Answers:
    path = folder / "runs" / f"{key(wanted, scored_name)}.npz"
    kept = _read(path, len(scored.labels))
    if kept is None:
        try:
            tags = {"study": study, "training": wanted.name}
            fitted = fit(
                wanted.task,
                wanted.params,
                folder / "checkpoints",
                tags=tags,
                callbacks=CALLBACKS,
                exportable=False,
                quiet=True,
            )
        except UserError as error:
            raise UserError(f"{study}, training {wanted.name!r}: {error}") from None
        probabilities = answer(Served(fitted.classifier), scored, machine.device(wanted.params, World()))
        right = probabilities.argmax(axis=1) == scored.labels
        kept = Answers(right, metrics.log_losses(scored.labels, probabilities))
        with replacing(path) as fresh, fresh.open("wb") as file:
            np.savez(file, right=kept.right, losses=kept.losses)
    return kept


def key(wanted: Training, scored_name: str) -> str:
    """Return the digest of everything that shapes a training's result."""
    task = wanted.task
    rows = np.asarray(getattr(task.training.images, "rows", np.arange(len(task.training.labels))), dtype=np.int64)
    start = sha256(Path(wanted.params.weights)) if wanted.params.weights and Path(wanted.params.weights).is_file() else None
    settings = [task.manifest_sha256, task.classes, task.size, task.channels, task.fit, rows.tolist(), scored_name, start]
    return checkpoint.key(settings, wanted.params.model_dump(exclude=_NOT_OF_ONE_TRAINING), torch.__version__, _code())


@cache
def _code() -> str:
    """Return the digest of the code that trains, once: a file that is edited meanwhile is not the one that runs here."""
    return checkpoint.key(*loop.CODE)


@torch.inference_mode()
def answer(served: Served, split: Split, device: torch.device) -> NDArray[np.float32]:
    """Return the probabilities that the served model gives to a split, float32 (n, classes)."""
    served = served.to(device).eval()
    parts = []
    for start in range(0, len(split.labels), _BATCH):
        images = torch.from_numpy(np.array(split.images[start : start + _BATCH])).to(device)
        parts.append(served(images).float().cpu().numpy())
    return np.concatenate(parts)


def _read(path: Path, images: int) -> Answers | None:
    """Return a kept result; None where there is none that is whole, and the training is done again."""
    try:
        with path.open("rb") as file, np.load(file) as kept:
            answers = Answers(kept["right"], kept["losses"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return answers if answers.right.shape == answers.losses.shape == (images,) else None
