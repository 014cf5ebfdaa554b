"""A worker of a sweep: Optuna's study in its storage, and the objective that trains one trial.

A worker that is killed stops its heartbeat; after the grace period Optuna marks its trial as failed and queues the same
values again (RetryHeartbeatStaleTrialCallback). The objective is minimised: for `accuracy` the share of wrong validation
examples, equal ones decided by log loss; for `log_loss` that alone, without smoothing. Source: Bergstra et al.,
"Algorithms for Hyper-Parameter Optimization" (2011), the tree-structured Parzen estimator.
"""

import shutil
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import BruteForceSampler, TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.study import MaxTrialsCallback
from optuna.trial import Trial, TrialState
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from src.core import arrays, metrics
from src.core.command import UserError
from src.lab.experiments import sweep_space
from src.lab.experiments.mlflow_callbacks import CALLBACKS
from src.lab.experiments.sweep_space import Space
from src.system.params import Params
from src.training import machine
from src.training.batches import Batches
from src.training.loop import DivergedError, Fitted, Halt, Row, fit
from src.training.task import Task, of
from src.training.train_params import Train
from src.training.world import World

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
HEARTBEAT = 20  # seconds between a worker's signs of life; after three times as many without one it counts as gone
_RETRIES = 5  # of a trial whose workers are killed, as those are that need more memory than there is
_ENOUGH = 5  # complete trials that have a median worth trusting
_BUSY = 120  # seconds to wait for another process that writes to the SQLite file
_BATCH = 512


class _LeftError(BaseException):
    """The worker leaves its trial unfinished, to be retried: Optuna would record an Exception as the end of the trial."""


@dataclass(frozen=True)
class Job:
    """What every worker of a sweep gets; `until` is the time (time.time) after which none goes on training."""

    arrays: Path
    checkpoints: Path
    storage: str
    study: str
    params: Params
    tracked: str | None
    until: float | None

    @property
    def is_over(self) -> bool:
        """True when the time is up."""
        return self.until is not None and time.time() > self.until

    @property
    def wanted(self) -> int:
        """The number of trials: `sweep.trials`, or all combinations where they are fewer."""
        return sweep_space.of(self.params).grid_size(self.params.sweep.trials) or self.params.sweep.trials


def work(job: Job, *, lost: bool = False) -> None:
    """Train trials until enough are finished, or the time is up; `lost`: those that workers that are gone left, no others.

    A lost trial is waited for until its heartbeat is stale, at most.

    Raises:
        UserError: the storage cannot be used, or a trial cannot be trained for a reason that is none of its values.
    """
    objective = Objective(of(arrays.load(job.arrays)), job)
    patience = time.time() + 4 * HEARTBEAT
    with storage_errors(job.storage):
        study = open_study(job.storage, job.study, objective.space, job.params)
        while not job.is_over:
            states = Counter(trial.state for trial in study.get_trials(deepcopy=False))
            if lost and states[TrialState.RUNNING] and not states[TrialState.WAITING] and time.time() < patience:
                time.sleep(0.5)
                fail_stale_trials(study)
            elif states[TrialState.WAITING] if lost else sum(states[state] for state in FINISHED) < job.wanted:
                try:
                    enough = [] if lost else [MaxTrialsCallback(job.wanted, FINISHED)]
                    study.optimize(objective, n_trials=1 if lost else None, callbacks=enough)
                except _LeftError as left:
                    if left.__cause__:
                        raise left.__cause__ from None
            else:
                return


# ---------------------------------------------------------------------------------------------------------------------
# One trial
# ---------------------------------------------------------------------------------------------------------------------


class Objective:
    """Trains one trial and returns what Optuna minimises."""

    def __init__(self, task: Task, job: Job) -> None:
        self.space, self._task, self._job = sweep_space.of(job.params), task, job

    def __call__(self, trial: Trial) -> float:
        """Train a trial.

        Raises:
            TrialPruned: it is under the median of others, or cannot be trained.
        """
        started, study = time.monotonic(), self._job.study
        lost = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial.study.get_trials(deepcopy=False)[trial.number])
        question = trial.number if lost is None else lost  # of a retry: that of the trial that was lost
        checkpoints = self._job.checkpoints / study / str(question)
        try:
            values = self.space.suggest(trial)
            trial.set_user_attr("question", question)
            trial.set_user_attr("values", values)
            value, facts = self._train(trial, question, values, checkpoints)
            seconds = time.monotonic() - started
            for name, fact in (facts | {"seconds": round(seconds, 1)}).items():
                trial.set_user_attr(name, fact)
        except UpdateFinishedTrialError:  # this worker counted as gone, and another one has the trial
            raise _LeftError from None
        except (Exception, KeyboardInterrupt) as error:
            raise _LeftError from error
        shutil.rmtree(checkpoints, ignore_errors=True)
        result = f"accuracy {facts['accuracy']:.2%}" if "accuracy" in facts else "no accuracy"
        result += f", log loss {facts['log_loss']:.4f}" if "log_loss" in facts else f"; {facts['reason']}"
        pairs = ", ".join(f"{key} {value}" for key, value in values.items())
        print(f"trial {question} of {self._job.wanted}: {result} ({seconds:.0f} s; {pairs})", flush=True)
        if value is None:
            raise optuna.TrialPruned
        return value

    def _train(
        self, trial: Trial, question: int, values: sweep_space.Values, checkpoints: Path
    ) -> tuple[float | None, dict[str, Any]]:
        """Return a trial's value (None: pruned) and further facts; it goes on from the last checkpoint of a lost worker."""
        job, params = self._job, self.space.train(values)
        reached: dict[str, Any] = {}

        def on_epoch(row: Row) -> None:
            reached.update(accuracy=row["validation_accuracy"], epoch=int(row["epoch"]))
            trial.report(1 - row["validation_accuracy"], reached["epoch"])
            if job.is_over:
                raise _LeftError
            if question and reached["epoch"] < params.epochs and trial.should_prune():  # the first is what others must beat
                raise Halt

        tags = {"mlflow.runName": f"{job.study} trial {question}", "sweep.study": job.study, "sweep.trial": str(question)}
        tags |= {"mlflow.parentRunId": job.tracked} if job.tracked else {}
        try:
            fitted = fit(
                self._task,
                params,
                checkpoints,
                tags=tags,
                callbacks=CALLBACKS,
                on_epoch=on_epoch,
                exportable=False,
                quiet=True,
            )
        except Halt:
            return None, {**reached, "reason": f"under the median after epoch {reached['epoch']}"}
        except DivergedError:
            return None, {"reason": "diverged: the loss was no longer finite"}
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return None, {"reason": "out of memory"}
        log_loss = _log_loss(fitted, self._task, params)
        facts = {"accuracy": fitted.best["validation_accuracy"], "log_loss": log_loss, "epoch": fitted.best["epoch"]}
        images = len(self._task.validation.labels)
        return to_minimise(job.params.sweep.objective, facts["accuracy"], log_loss, images), facts


def to_minimise(objective: str, accuracy: float, log_loss: float, images: int) -> float:
    """Return the log loss, or the share of wrong images with a part of one image that grows with the log loss."""
    return log_loss if objective == "log_loss" else (round((1 - accuracy) * images) + log_loss / (1 + log_loss)) / images


@torch.inference_mode()
def _log_loss(fitted: Fitted, task: Task, params: Train) -> float:
    """Return the mean log loss of the probabilities on the validation split, temperature and all."""
    device = machine.device(params, World())
    classifier = fitted.classifier.to(device)
    batches = Batches(task.validation, device, params.augment, len(task.classes), World())
    parts = [classifier(images).float().softmax(dim=1).cpu() for images, _ in batches.in_order(_BATCH)]
    return float(metrics.log_losses(task.validation.labels, torch.cat(parts).numpy()).mean())


# ---------------------------------------------------------------------------------------------------------------------
# The study
# ---------------------------------------------------------------------------------------------------------------------


def open_study(address: str, name: str, space: Space, params: Params) -> optuna.Study:
    """Open a study, or create it with the params as they are as its first trial.

    Raises:
        UserError: the storage is neither SQLite nor PostgreSQL, is not there, or is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=ExperimentalWarning)  # the heartbeat and the grid, at a pinned version
    warnings.filterwarnings("ignore", "The reported value is ignored")  # an epoch that a lost worker reported already
    url, sweep = _url(address), params.sweep
    options: dict[str, Any] = (
        {"connect_args": {"timeout": _BUSY}} if url.get_backend_name() == "sqlite" else {"poolclass": NullPool}
    )
    with storage_errors(address, (ImportError, RuntimeError)):  # no driver; made by another version of Optuna
        storage = RDBStorage(
            url.render_as_string(hide_password=False),
            engine_kwargs=options,
            heartbeat_interval=HEARTBEAT,
            grace_period=3 * HEARTBEAT,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(_RETRIES, inherit_intermediate_values=True),
        )
        study = optuna.create_study(storage=storage, study_name=name, direction="minimize", load_if_exists=True)
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial(space.present)
    # no seed: workers, and a restart, must not draw the same values
    is_grid = space.grid_size(sweep.trials) is not None
    study.sampler = BruteForceSampler() if is_grid else TPESampler(n_startup_trials=sweep.random + 1)
    warmup = max(1, round(sweep.prune_after * params.train.epochs))
    study.pruner = NopPruner() if sweep.prune_after == 1 else MedianPruner(_ENOUGH, n_warmup_steps=warmup)
    return study


@contextmanager
def storage_errors(address: str, further: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn an error of a database that cannot be used into one sentence, without the password."""
    expected: tuple[type[Exception], ...] = (SQLAlchemyError, StorageInternalError, *further)
    try:
        yield
    except expected as error:
        reason = str(error.__cause__ or error).splitlines()[0][:200]
        raise UserError(
            f"the sweep's storage {_url(address).render_as_string(hide_password=True)} cannot be used ({reason}): mend it "
            "or name another (--storage, SWEEP_STORAGE), then run the same command again; what is finished there stays"
        ) from None


def _url(address: str) -> URL:
    try:
        url = make_url(address)
    except ArgumentError:
        url = URL.create("none")
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    in_file = url.drivername == "sqlite" and url.database not in (None, ":memory:")
    if url.drivername != "postgresql+psycopg" and not in_file:
        raise UserError(
            "a sweep is stored in sqlite:///FILE, or for several machines in postgresql://USER:PASSWORD@HOST/DATABASE: "
            "name one of them (--storage, SWEEP_STORAGE)"
        )
    return url
