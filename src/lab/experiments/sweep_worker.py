"""What a worker of a sweep does: it takes a trial, trains it, answers, until all are answered.

How good a trial is (to be minimised): for `accuracy` the number of wrong validation images, plus a part of one that grows
with the log loss, so that equal accuracies are decided by it; for `log_loss` that alone. The log loss is not the loss that
training minimises, which label smoothing changes, but that of the probabilities that would be served.
"""

import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from src.core import arrays, metrics
from src.core.command import Stopped, UserError
from src.lab.experiments import sweep_space, sweep_tracking
from src.lab.experiments.mlflow_callbacks import CALLBACKS
from src.lab.experiments.sweep_study import Book, Claimed, open_book, storage_told
from src.system.command_line import run
from src.system.params import Params
from src.training import machine
from src.training.batches import Batches
from src.training.loop import DivergedError, Fitted, Halt, Row, fit
from src.training.task import Task, of
from src.training.train_params import Train
from src.training.world import World

_BATCH = 512
_PAUSE = 1.0  # seconds between looks at what other workers still train


@dataclass(frozen=True)
class Job:
    """What every worker of a sweep is told; `until` is the time (time.time) after which none goes on training."""

    arrays: Path
    checkpoints: Path
    storage: str
    study: str
    params: Params
    tracked: str | None
    until: float | None

    @property
    def is_over(self) -> bool:
        """True when the time is up, or the process that started this one is gone."""
        above = parent_process()
        return (self.until is not None and time.time() > self.until) or (above is not None and not above.is_alive())


class _LeftError(Halt):
    """The worker stops in the middle of a trial, which another one goes on with."""


def work(job: Job) -> None:
    """Train trials until every question is answered, or the time is up.

    Raises:
        UserError: the storage cannot be used, or a trial cannot be trained for a reason that is none of its values.
    """
    task = of(arrays.load(job.arrays))
    book = open_book(job.storage, job.study, sweep_space.of(job.params), job.params.sweep)
    waits = False
    with storage_told(job.storage):
        while not job.is_over:
            claimed = book.claim()
            if claimed:
                _try(claimed, book, task, job)
            elif not (left := book.unfinished()):
                return
            else:
                if not waits:
                    print(f"waiting for {left} trials that other workers train", flush=True)
                waits = True
                time.sleep(_PAUSE)


def work_together(job: Job, workers: int) -> None:
    """Let several processes work, each with its share of the cores and, in turn, of the GPUs.

    Raises:
        UserError: none of them was left to finish the sweep.
    """
    started = [
        get_context("spawn").Process(target=_work_apart, args=(job, place, workers), daemon=True) for place in range(workers)
    ]
    interrupts = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is this process's, which then ends them
    for process in started:
        process.start()
    signal.signal(signal.SIGINT, interrupts)
    for process in started:
        process.join()
    lost = [process.exitcode for process in started if process.exitcode]
    if lost:
        print(f"{len(lost)} of {workers} workers ended early (exit status {', '.join(map(str, lost))})", file=sys.stderr)
    if len(lost) == workers:
        raise UserError("no worker is left: the lines above say why. Run the same command again, and the sweep goes on")


def _work_apart(job: Job, place: int, workers: int) -> None:
    def main() -> None:
        _take_share(place, workers)
        try:
            work(job)
        except Stopped:  # the process above has said why
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            sys.exit(128 + signal.SIGTERM)

    run("sweep", main)


def _take_share(place: int, workers: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[place::workers] or [cores[place % len(cores)]])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]


# ---------------------------------------------------------------------------------------------------------------------
# One trial
# ---------------------------------------------------------------------------------------------------------------------


def _try(claimed: Claimed, book: Book, task: Task, job: Job) -> None:
    """Train a trial and answer its question."""
    started = time.monotonic()
    checkpoints = job.checkpoints / job.study / str(claimed.question)
    twin = book.twin(claimed)
    value, told = _repeated(twin) if twin else _trained(claimed, task, checkpoints, job)
    if told is None:
        return
    told["seconds"] = round(time.monotonic() - started, 1)
    if not book.answer(claimed, value, told):
        print(f"trial {claimed.question} was given to another worker: what this one found is dropped", flush=True)
        return
    shutil.rmtree(checkpoints, ignore_errors=True)
    if job.tracked and not twin:
        numbers = {key: float(number) for key, number in told.items() if key in ("accuracy", "log_loss")}
        sweep_tracking.tell_trial(job.study, claimed.question, "pruned" if value is None else "complete", numbers)
    print(_line(claimed, told, job.params.sweep.trials), flush=True)


def _repeated(twin: FrozenTrial) -> tuple[float | None, dict[str, Any]]:
    """Answer as a trial of equal values did: training it again would give the same."""
    told = {key: fact for key, fact in twin.user_attrs.items() if key in ("accuracy", "log_loss", "epoch")}
    value = twin.value if twin.state == TrialState.COMPLETE else None
    return value, {**told, "reason": f"the values of trial {twin.user_attrs['question']}"}


def _trained(claimed: Claimed, task: Task, checkpoints: Path, job: Job) -> tuple[float | None, dict[str, Any] | None]:
    """Return a trial's value (None: pruned) and what there is to tell; (None, None) when this worker is to stop."""
    params = sweep_space.of(job.params).train(claimed.values)
    rows: dict[int, Row] = {}

    def on_epoch(row: Row) -> None:
        epoch = int(row["epoch"])
        rows[epoch] = row
        try:
            claimed.trial.report(1 - row["validation_accuracy"], epoch)
        except UpdateFinishedTrialError:  # this worker counted as gone, and another one has the question
            raise _LeftError from None
        if job.is_over:
            raise _LeftError
        if claimed.question and epoch < params.epochs and claimed.trial.should_prune():  # the first is what others must beat
            raise Halt

    try:
        tags = sweep_tracking.tags(job.study, claimed.question, job.tracked)
        fitted = fit(
            task, params, checkpoints, tags=tags, callbacks=CALLBACKS, on_epoch=on_epoch, exportable=False, quiet=True
        )
    except _LeftError:
        return None, None
    except Halt:
        epoch = max(rows)
        told = {"accuracy": rows[epoch]["validation_accuracy"], "epoch": epoch}
        return None, {**told, "reason": f"under the median after epoch {epoch}"}
    except DivergedError:
        return None, {"reason": "diverged: the loss was no longer finite"}
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None, {"reason": "out of memory"}
    for row in fitted.history:  # epochs that an earlier worker trained
        if row["epoch"] not in rows:
            claimed.trial.report(1 - row["validation_accuracy"], int(row["epoch"]))
    return _judged(fitted, task, params, job.params.sweep.objective)


def _judged(fitted: Fitted, task: Task, params: Train, objective: str) -> tuple[float, dict[str, Any]]:
    """Return the number to be minimised, and accuracy, log loss and best epoch."""
    accuracy, images = fitted.best["validation_accuracy"], len(task.validation.labels)
    log_loss = _log_loss(fitted, task, params)
    wrong = round((1 - accuracy) * images)
    value = log_loss if objective == "log_loss" else (wrong + log_loss / (1 + log_loss)) / images
    return value, {"accuracy": accuracy, "log_loss": log_loss, "epoch": fitted.best["epoch"]}


@torch.inference_mode()
def _log_loss(fitted: Fitted, task: Task, params: Train) -> float:
    """Return the mean log loss of the probabilities on the validation split, temperature and all."""
    device = machine.device(params, World())
    classifier = fitted.classifier.to(device)
    batches = Batches(task.validation, device, params.augment, len(task.classes), World())
    parts = [classifier(images).float().softmax(dim=1).cpu() for images, _ in batches.in_order(_BATCH)]
    return float(metrics.log_losses(task.validation.labels, torch.cat(parts).numpy()).mean())


def _line(claimed: Claimed, told: dict[str, Any], trials: int) -> str:
    """Say in one line how a trial ended."""
    found = f"accuracy {told['accuracy']:.2%}" if "accuracy" in told else "no accuracy"
    found += f", log loss {told['log_loss']:.4f}" if "log_loss" in told else f"; {told['reason']}"
    values = ", ".join(f"{key} {value}" for key, value in claimed.values.items())
    return f"trial {claimed.question} of {trials}: {found} ({told['seconds']:.0f} s; {values})"
