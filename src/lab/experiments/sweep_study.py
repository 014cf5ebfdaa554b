"""The trials of a sweep, in Optuna's storage: which are done, which is next, and which a worker left unfinished.

Every question (a set of values to try) is asked until it is answered once, by a trial that is complete or was pruned. A
trial whose worker is gone becomes FAIL, and a new one takes its question over (`retry_of`). So questions are counted, not
trials, and no restart and no further worker can lose or double one. Source of the search: Bergstra et al., "Algorithms for
Hyper-Parameter Optimization" (2011), the tree-structured Parzen estimator, as in Optuna.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import URL, create_engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from src.core.command import UserError
from src.lab.experiments.sweep_claims import Claims, FileClaims, PostgresClaims
from src.lab.experiments.sweep_space import Space, Values
from src.system.sweep_params import Sweep

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_ENOUGH = 5  # complete trials that have a median worth trusting
_LOSSES = 5  # workers that one question may cost before a single epoch ends
_BUSY = 120  # seconds to wait for another process that writes to the SQLite file


@dataclass(frozen=True)
class Claimed:
    """A trial that this worker has taken: the number of its question, the values to try, and Optuna's trial."""

    question: int
    values: Values
    trial: Trial


class Book:
    """One study, as one process sees it."""

    def __init__(self, study: optuna.Study, claims: Claims, space: Space, trials: int, random: int) -> None:
        self.study, self._claims, self._space = study, claims, space
        self._trials, self._random = trials, random

    def finished(self) -> list[FrozenTrial]:
        """Return what is answered, in the order of the questions."""
        trials = self.study.get_trials(deepcopy=False, states=FINISHED)
        return sorted(trials, key=lambda trial: int(trial.user_attrs["question"]))

    def unfinished(self) -> int:
        """Count what is being trained or waits for it, by workers that live or are gone."""
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)))

    def note(self, key: str, make: Callable[[Any], Any]) -> Any:
        """Return what `make` makes of a fact about the study (None at first), which becomes that fact; alone meanwhile."""
        with self._claims.alone():
            value = make(self.study.user_attrs.get(key))
            self.study.set_user_attr(key, value)
            return value

    def claim(self) -> Claimed | None:
        """Take the next question, one that was left unfinished first; None when all are answered or taken."""
        with self._claims.alone():
            self._take_back()
            question = self._next()
            if question is None:
                return None
            self.study.sampler = self._sampler(question)
            trial = self.study.ask(self._space.distributions)
            self._claims.take(trial.number)
            # a trial that is killed before it has its number was never asked: the same question gets the same values again
            trial.set_user_attr("question", question)
            values = dict(self._space.present) if question == 0 else self._space.rounded(trial.params)
            trial.set_user_attr("values", values)
            return Claimed(question, values, trial)

    def _next(self) -> int | None:
        """Return the number of the question that Optuna will hand out next; None where there is none."""
        trials = self.study.get_trials(deepcopy=False)
        waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
        if waiting:
            return int(waiting[0].user_attrs["question"])
        asked = len({trial.user_attrs["question"] for trial in trials if "question" in trial.user_attrs})
        if asked >= self._trials:
            return None
        if asked <= self._random:
            values = self._space.scattered(asked)[-1] if asked else dict(self._space.present)
            self.study.enqueue_trial(values, {"question": asked})
        return asked

    def _sampler(self, question: int) -> BaseSampler:
        """Return what proposes a question's values; its seed is the question's own, or a restart would repeat itself."""
        seed = int(np.random.SeedSequence((self._space.base.seed, question)).generate_state(1)[0])
        return TPESampler(seed=seed, n_startup_trials=1)

    def twin(self, claimed: Claimed) -> FrozenTrial | None:
        """Return the trial that has answered a question of equal values, as happens where there are few choices."""
        return next((trial for trial in self.finished() if trial.user_attrs["values"] == claimed.values), None)

    def answer(self, claimed: Claimed, value: float | None, told: Mapping[str, Any]) -> bool:
        """Record a trial's value, or without one that it was pruned, and further facts.

        Returns:
            False when this worker counted as gone meanwhile, and another one has the question.
        """
        with self._claims.alone():
            number = claimed.trial.number
            if self.study.get_trials(deepcopy=False)[number].state != TrialState.RUNNING:
                return False
            for name, fact in told.items():
                claimed.trial.set_user_attr(name, fact)
            self.study.tell(claimed.trial, value, TrialState.PRUNED if value is None else TrialState.COMPLETE)
            self._claims.release(number)
            return True

    def _take_back(self) -> None:
        """Queue the questions of workers that are gone. It may be stopped anywhere, and be done again."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not self._claims.is_taken(trial.number):
                self.study.tell(trial.number, state=TrialState.FAIL)
        trials = self.study.get_trials(deepcopy=False)
        retried = {trial.user_attrs.get("retry_of") for trial in trials}
        for trial in trials:
            if trial.state == TrialState.FAIL and "question" in trial.user_attrs and trial.number not in retried:
                self._queue_again(trial)

    def _queue_again(self, lost: FrozenTrial) -> None:
        """Queue a lost trial's values, or give them up when they end every worker, as those do that need too much memory."""
        losses = 1 if lost.intermediate_values else int(lost.user_attrs.get("losses", 0)) + 1
        told = {"question": lost.user_attrs["question"], "retry_of": lost.number, "losses": losses}
        if losses < _LOSSES:
            self.study.enqueue_trial(lost.params, told)
            return
        told |= {"reason": f"{_LOSSES} workers ended before its first epoch did", "values": self._space.rounded(lost.params)}
        self.study.add_trial(
            optuna.create_trial(
                state=TrialState.PRUNED, params=lost.params, distributions=lost.distributions, user_attrs=told
            )
        )


# ---------------------------------------------------------------------------------------------------------------------
# Opening
# ---------------------------------------------------------------------------------------------------------------------


def open_book(address: str, name: str, space: Space, sweep: Sweep) -> Book:
    """Open a study, or make it.

    Args:
        address: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE.
        name: of the study.
        space: what is searched.
        sweep: the section of params.yaml.

    Raises:
        UserError: the storage is of another kind, is not there, or is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = _url(address)
    with storage_told(address, (ImportError, RuntimeError)):  # no driver; made by another version of Optuna
        with _claims(url, "").alone():  # two processes that make the tables at one time trip over each other
            options = {"connect_args": {"timeout": _BUSY}} if url.get_backend_name() == "sqlite" else {"pool_pre_ping": True}
            storage = RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=options)
            pruner = _pruner(space.base.epochs, sweep)
            study = optuna.create_study(
                storage=storage, study_name=name, direction="minimize", load_if_exists=True, pruner=pruner
            )
        return Book(study, _claims(url, name), space, sweep.trials, sweep.random)


@contextmanager
def storage_told(address: str, further: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn what a database says when it cannot be used into one sentence, without the password."""
    meant: tuple[type[Exception], ...] = (SQLAlchemyError, StorageInternalError, *further)
    try:
        yield
    except meant as error:
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
    if url.drivername != "postgresql+psycopg" and not (
        url.drivername == "sqlite" and url.database not in (None, ":memory:")
    ):
        raise UserError(
            "a sweep is stored in sqlite:///FILE, or for several machines in postgresql://USER:PASSWORD@HOST/DATABASE: "
            "name one of them (--storage, SWEEP_STORAGE)"
        )
    return url


def _claims(url: URL, study: str) -> Claims:
    if url.get_backend_name() == "sqlite":
        return FileClaims(Path(f"{url.database}.lock"), study)
    return PostgresClaims(create_engine(url, poolclass=NullPool), study)


def _pruner(epochs: int, sweep: Sweep) -> BasePruner:
    """Return the median rule, from an epoch on."""
    if sweep.prune_after == 1:
        return NopPruner()
    return MedianPruner(n_startup_trials=_ENOUGH, n_warmup_steps=max(1, round(sweep.prune_after * epochs)))
