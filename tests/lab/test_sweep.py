"""A sweep loses no trial and doubles none, whatever is killed: python -m pytest tests/lab/test_sweep.py

Most tests use Optuna's real storage and train nothing; the slow ones kill the real command on three plain colours.
"""

import csv
import json
import math
import os
import random as chance
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PATIENCE, ROOT, draw_colours, write_params
from optuna.trial import TrialState
from ruamel.yaml import YAML
from standin import GitHub, clone, commit
from test_register import postgres

from src.core.command import UserError
from src.github import sweep_pull
from src.images.prepare import prepare
from src.lab.experiments import sweep_branch, sweep_results, sweep_space, sweep_worker
from src.lab.experiments.sweep import study_name
from src.lab.experiments.sweep_results import Results, Tried
from src.lab.experiments.sweep_study import Book, open_book
from src.system.params import Params, load
from src.training.loop import DivergedError, Halt

TRIALS = 20
SMALL = {
    "learning_rate": {"low": 0.01, "high": 1.0, "log": True},
    "batch_size": [32, 64],
    "augment.rotate": {"low": 0, "high": 20},
}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Params]:
    return lambda **changes: write_params(
        tmp_path / "params.yaml", **({"sweep__space": SMALL, "train__epochs": 3} | changes)
    )


@pytest.fixture
def book(tmp_path: Path, make: Callable[..., Params]) -> Book:
    params = make(sweep__trials=6, sweep__random=3)
    return open_book(f"sqlite:///{tmp_path}/sweep.db", "study", sweep_space.of(params), params.sweep)


# ---------------------------------------------------------------------------------------------------------------------
# The space
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, "sweep.space"),
        ({"lerning_rate": [0.1]}, "space.lerning_rate is no key of train"),
        ({"seed": [1, 2]}, "space.seed is no key of train"),
        ({"augment": [1]}, "space.augment is no key of train"),
        ({"augment.tilt": [1]}, "space.augment.tilt is no key of train"),
        ({"learning_rate": {"lo": 1, "high": 2}}, "sweep.space.learning_rate: should be {low, high}"),
        ({"learning_rate": {"low": 2, "high": 1}}, "low must be under high"),
        ({"learning_rate": {"low": 0, "high": 1, "log": True}}, "log must have a low over 0"),
        ({"batch_size": []}, "sweep.space.batch_size"),
        ({"batch_size": [64, 64]}, "different choices"),
        ({"batch_size": 64}, "different choices"),
        ({"freeze": [["stem"]]}, "sweep.space.freeze"),
    ],
)
def test_a_space_that_params_yaml_cannot_mean_is_refused_by_name(
    make: Callable[..., Params], space: Any, words: str
) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        make(sweep__space=space)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"learning_rate": {"low": -1, "high": 1}}, "train.learning_rate"),
        ({"optimizer": ["sgd", "adamv"]}, "train.optimizer"),
        ({"optimizer": {"low": 0, "high": 1}}, "sweep.space.optimizer should have a list of choices"),
        ({"batch_size": {"low": 1.5, "high": 64}}, "sweep.space.batch_size should have whole numbers"),
        (
            {"learning_rate": {"low": 0.2, "high": 1}},
            "train.learning_rate is 0.1, which sweep.space.learning_rate leaves out",
        ),
        ({"batch_size": [16, 32]}, "train.batch_size is 64, which"),
        ({"batch_size": {"low": 32, "high": 128, "step": 48}}, "train.batch_size is 64, which"),
        ({"augment.flip": [0, 1]}, "augment.flip"),
    ],
)
def test_a_space_that_does_not_fit_train_is_refused_by_name(make: Callable[..., Params], space: Any, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        sweep_space.of(make(sweep__space=space))


def test_the_space_of_the_repository_can_be_searched() -> None:
    space = sweep_space.of(load(ROOT / "params.yaml"))
    assert space.train(space.present) == space.base


def test_scattered_values_lie_inside_cover_the_space_and_begin_the_same_however_many_are_asked_for(
    make: Callable[..., Params],
) -> None:
    space = sweep_space.of(
        make(
            sweep__space={
                **SMALL,
                "width": {"low": 8, "high": 64, "log": True},
                "augment.crop": {"low": 0, "high": 4, "step": 2},
                "label_smoothing": {"low": 0.0, "high": 0.3, "step": 0.1},
            },
            train__augment__crop=2,
        )
    )
    drawn = space.scattered(16)
    assert space.scattered(5) == drawn[:5]
    values = [space.rounded(one) for one in drawn]
    for one in values:
        assert space.train(one).learning_rate == one["learning_rate"]
        assert isinstance(one["width"], int)
    assert {one["augment.crop"] for one in values} == {0, 2, 4}
    assert {one["label_smoothing"] for one in values} == {0.0, 0.1, 0.2, 0.3}
    quarters = [int(4 * math.log10(one["learning_rate"] / 0.01) / 2) for one in values]
    assert sorted(quarters) == sorted([0, 1, 2, 3] * 4)


def test_another_question_is_another_study_and_more_trials_are_not(make: Callable[..., Params]) -> None:
    first = study_name("data", make())
    assert first == study_name("data", make(sweep__trials=99, sweep__random=2, train__processes=2))
    changes: list[dict[str, Any]] = [
        {"train__seed": 2},
        {"train__learning_rate": 0.2},
        {"train__width": 8},
        {"sweep__space": {"batch_size": [64, 128]}},
        {"sweep__objective": "log_loss"},
    ]
    names = {study_name("data", make(**change)) for change in changes} | {study_name("other", make()), first}
    assert len(names) == len(changes) + 2


# ---------------------------------------------------------------------------------------------------------------------
# The book: each question is answered once
# ---------------------------------------------------------------------------------------------------------------------


def lose(book: Book, number: int) -> None:
    """Let a trial's worker be gone."""
    book._claims.release(number)


def test_the_first_trial_is_the_params_as_they_are_and_each_question_is_asked_once(book: Book) -> None:
    claimed = [book.claim() for _ in range(6)]
    assert [one.question for one in claimed if one] == list(range(6))
    assert claimed[0]
    assert claimed[0].values == {"learning_rate": 0.1, "batch_size": 64, "augment.rotate": 10.0}
    assert len({json.dumps(one.values) for one in claimed if one}) == 6
    assert book.claim() is None
    for one in claimed:
        assert one
        assert book.answer(one, 0.1, {"accuracy": 0.9})
    assert [trial.user_attrs["question"] for trial in book.finished()] == list(range(6))
    assert book.claim() is None
    assert book.unfinished() == 0


def test_a_lost_trial_is_asked_again_with_its_values_exactly_once(book: Book) -> None:
    first, second = book.claim(), book.claim()
    assert first
    assert second
    lose(book, second.trial.number)
    again, third = book.claim(), book.claim()
    assert again
    assert third
    assert (again.question, again.values) == (second.question, second.values)
    assert again.trial.user_attrs["retry_of"] == second.trial.number
    assert third.question == 2
    assert not book.answer(second, 0.1, {"accuracy": 0.5}), "it was given to another worker"
    assert book.answer(again, 0.2, {"accuracy": 0.8})
    assert [trial.user_attrs["accuracy"] for trial in book.finished()] == [0.8]


def test_what_is_stopped_between_two_steps_of_taking_back_is_done_again(book: Book) -> None:
    claimed = book.claim()
    assert claimed
    lose(book, claimed.trial.number)
    book.study.tell(claimed.trial.number, state=TrialState.FAIL)  # and killed before the question was queued again
    again = book.claim()
    assert again
    assert (again.question, again.values) == (claimed.question, claimed.values)
    book.study.ask()  # killed before its question was written down, as it was before the trial had a lock
    following = book.claim()
    assert following
    assert following.question == 1


def test_questions_do_not_hang_on_how_often_workers_were_killed(tmp_path: Path, make: Callable[..., Params]) -> None:
    params = make(sweep__trials=5, sweep__random=2)

    def asked(name: str, losses: int) -> list[Any]:
        book = open_book(f"sqlite:///{tmp_path}/{name}.db", "study", sweep_space.of(params), params.sweep)
        found = []
        while claimed := book.claim():
            if losses:
                losses -= 1
                lose(book, claimed.trial.number)
                continue
            found.append(claimed.values)
            book.answer(claimed, claimed.values["learning_rate"], {})
        return found

    assert asked("unbroken", 0) == asked("broken", 2)


def test_a_question_that_ends_every_worker_is_given_up(book: Book) -> None:
    for _ in range(5):
        claimed = book.claim()
        assert claimed
        assert claimed.question == 0
        lose(book, claimed.trial.number)
    following = book.claim()
    assert following
    assert following.question == 1
    (trial,) = book.finished()
    assert trial.state == TrialState.PRUNED
    assert "5 workers ended" in trial.user_attrs["reason"]


def test_a_question_whose_workers_get_on_is_not_given_up(book: Book) -> None:
    for epoch in range(1, 9):
        claimed = book.claim()
        assert claimed
        assert claimed.question == 0
        claimed.trial.report(0.5, epoch)
        lose(book, claimed.trial.number)


def test_more_trials_go_on_with_the_same_study(book: Book) -> None:
    while claimed := book.claim():
        book.answer(claimed, 0.1, {})
    book._trials = 8
    assert [one.question for one in iter(book.claim, None)] == [6, 7]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("mysql://host/x", "sqlite:///FILE"),
        ("nonsense", "sqlite:///FILE"),
        ("sqlite://", "sqlite:///FILE"),
        ("sqlite:///{folder}/params.yaml", "cannot be used"),
        ("sqlite:///{folder}/none/sweep.db", ""),
        ("postgresql://me:secret@127.0.0.1:1/x", "me:***@127.0.0.1"),
    ],
)
def test_a_storage_that_cannot_be_used_is_told_in_one_sentence(
    tmp_path: Path, make: Callable[..., Params], address: str, words: str
) -> None:
    params = make()
    with pytest.raises((UserError, OSError)) as told:
        open_book(address.format(folder=tmp_path), "study", sweep_space.of(params), params.sweep)
    assert words in str(told.value)
    assert "secret" not in str(told.value)


HAMMER = """
import random, sys, time
from pathlib import Path
from src.lab.experiments import sweep_space
from src.lab.experiments.sweep_study import open_book
from src.system.params import load
params = load(Path(sys.argv[1]))
book = open_book(sys.argv[2], "study", sweep_space.of(params), params.sweep)
print("open", flush=True)
while True:
    claimed = book.claim()
    if claimed is None:
        if not book.unfinished():
            break
        time.sleep(0.05)
        continue
    claimed.trial.report(0.5, 1)
    time.sleep(random.random() / 10)
    book.answer(claimed, random.random(), {"accuracy": 0.5})
"""


def hammer(params: Path, address: str, kills: int) -> Book:
    """Let three workers work, kill one after the other at random and start another, and return the book afterwards."""
    command = [sys.executable, "-c", HAMMER, str(params), address]

    def start() -> "subprocess.Popen[str]":
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    workers = [start() for _ in range(3)]
    for _ in range(kills):
        victim = workers.pop(0)
        assert victim.stdout
        victim.stdout.readline()
        time.sleep(chance.random() / 2)
        victim.kill()
        victim.communicate()
        workers.append(start())
    for worker in workers:
        worker.communicate(timeout=PATIENCE)
        assert worker.returncode == 0
    found = load(params)
    return open_book(address, "study", sweep_space.of(found), found.sweep)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_several_workers_of_which_some_are_killed_answer_each_question_once(
    kind: str, tmp_path: Path, make: Callable[..., Params]
) -> None:
    make(sweep__trials=TRIALS, sweep__random=5)
    if kind == "sqlite":
        check_answered(hammer(tmp_path / "params.yaml", f"sqlite:///{tmp_path}/sweep.db", kills=4))
        return
    with postgres() as address:
        book = hammer(tmp_path / "params.yaml", address, kills=4)
        check_answered(book)
        book.study._storage.remove_session()
        book.study._storage._backend.engine.dispose()
        book._claims._connection.close()


def check_answered(book: Book) -> None:
    assert [trial.user_attrs["question"] for trial in book.finished()] == list(range(TRIALS))
    assert book.unfinished() == 0
    lost = [trial.number for trial in book.study.trials if trial.state == TrialState.FAIL and "question" in trial.user_attrs]
    retries = [trial.user_attrs["retry_of"] for trial in book.study.trials if "retry_of" in trial.user_attrs]
    assert sorted(retries) == lost, "each lost trial has one successor"


# ---------------------------------------------------------------------------------------------------------------------
# A trial
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def worker(tmp_path: Path, make: Callable[..., Params], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Return a function that lets one worker work with another `fit`, and returns the answers."""

    def go(fit: Callable[..., Any], log_loss: float = 0.5, **changes: Any) -> list[Any]:
        params = make(**{"sweep__trials": 4, "sweep__random": 3} | changes)
        validation = SimpleNamespace(labels=np.zeros(100, dtype=np.int64))
        monkeypatch.setattr(sweep_worker, "fit", fit)
        monkeypatch.setattr(sweep_worker, "of", lambda _: SimpleNamespace(validation=validation))
        monkeypatch.setattr(sweep_worker.arrays, "load", lambda _: None)
        monkeypatch.setattr(sweep_worker, "_log_loss", lambda *_: log_loss)
        address = f"sqlite:///{tmp_path}/sweep.db"
        job = sweep_worker.Job(tmp_path, tmp_path / "checkpoints", address, "study", params, None, None)
        sweep_worker.work(job)
        return open_book(address, "study", sweep_space.of(params), params.sweep).finished()

    return go


def fitted(accuracy: float, epochs: int = 3, on_epoch: Callable[[Any], None] | None = None) -> Any:
    rows = [{"epoch": epoch, "validation_accuracy": accuracy} for epoch in range(1, epochs + 1)]
    for row in rows if on_epoch else []:
        on_epoch(row)
    return SimpleNamespace(best=rows[-1], history=rows)


def test_the_value_ranks_by_accuracy_and_equal_ones_by_log_loss() -> None:
    task = SimpleNamespace(validation=SimpleNamespace(labels=np.zeros(100, dtype=np.int64)))

    def value(accuracy: float, log_loss: float, objective: str = "accuracy") -> float:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sweep_worker, "_log_loss", lambda *_: log_loss)
            return sweep_worker._judged(fitted(accuracy), task, None, objective)[0]

    assert value(0.98, 50.0) < value(0.97, 0.01)
    assert value(0.98, 0.2) < value(0.98, 0.3)
    assert value(0.97, 0.1, "log_loss") < value(0.98, 0.2, "log_loss")


@pytest.mark.parametrize(
    ("error", "words"), [(DivergedError("the loss is nan"), "diverged"), (torch.OutOfMemoryError(), "out of memory")]
)
def test_values_that_cannot_be_trained_are_an_answer_and_not_the_end(
    worker: Callable[..., list[Any]], error: Exception, words: str
) -> None:
    def fit(task: Any, params: Any, *_: Any, on_epoch: Any, **__: Any) -> Any:
        if params.learning_rate != 0.1:
            raise error
        return fitted(0.9, on_epoch=on_epoch)

    answers = worker(fit)
    assert [trial.state.name for trial in answers] == ["COMPLETE", "PRUNED", "PRUNED", "PRUNED"]
    assert words in answers[1].user_attrs["reason"]


def test_another_fault_stops_the_sweep_and_leaves_the_trial_to_the_next_run(worker: Callable[..., list[Any]]) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise UserError("MLflow does not answer")

    with pytest.raises(UserError, match="MLflow"):
        worker(refused)


def test_what_an_earlier_worker_trained_is_reported_for_the_median_of_others(worker: Callable[..., list[Any]]) -> None:
    def resumed(*_: Any, on_epoch: Any, **__: Any) -> Any:
        found = fitted(0.9)
        on_epoch(found.history[-1])
        return found

    assert all(set(trial.intermediate_values) == {1, 2, 3} for trial in worker(resumed))


def test_a_trial_under_the_median_is_pruned_and_the_first_one_never(worker: Callable[..., list[Any]]) -> None:
    count = iter(range(100))

    def worse_and_worse(task: Any, params: Any, *_: Any, on_epoch: Any, **__: Any) -> Any:
        return fitted(0.9 - 0.01 * next(count), epochs=params.epochs, on_epoch=on_epoch)

    answers = worker(worse_and_worse, sweep__trials=8, train__epochs=4, sweep__prune_after=0.5)
    assert [trial.state.name for trial in answers] == ["COMPLETE"] * 5 + ["PRUNED"] * 3
    assert answers[5].user_attrs["reason"] == "under the median after epoch 2"
    assert Halt not in {type(error) for error in answers}


def test_equal_values_are_not_trained_again(worker: Callable[..., list[Any]]) -> None:
    trained = []

    def fit(task: Any, params: Any, *_: Any, on_epoch: Any, **__: Any) -> Any:
        trained.append(params.batch_size)
        return fitted(0.9, on_epoch=on_epoch)

    answers = worker(fit, sweep__space={"batch_size": [32, 64]}, sweep__trials=8)
    assert len(answers) == 8
    assert sorted(trained) == [32, 64]


# ---------------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------------


def tried(question: int, accuracy: float | None, value: float | None, learning_rate: float = 0.1) -> Tried:
    values = {"learning_rate": learning_rate, "batch_size": 64, "augment.rotate": 10.0}
    return Tried(question, values, value, accuracy, None if value is None else 0.1, 3, 1.0, "" if value else "diverged")


def results(*all_tried: Tried) -> Results:
    ordered = sorted(all_tried, key=lambda one: one.rank)
    return Results("sweep-0123456789ab", "accuracy", 20, 200, ordered, {"learning_rate": 0.7, "batch_size": 0.3})


BETTER = results(tried(0, 0.95, 0.05), tried(1, None, None), tried(2, 0.98, 0.02, 0.523))


def test_the_results_tell_the_winner_beside_the_present_params_and_warn_of_its_luck(tmp_path: Path) -> None:
    sweep_results.write(tmp_path / "out", BETTER, "train: {}\n")
    text = (tmp_path / "out" / "sweep.md").read_text()
    assert "**Trial 2 is the best**" in text
    assert "+6 of 200 validation images" in text
    assert "| present params | 0 | 95.00% |" in text
    assert "winner's curse" in text
    assert "| learning_rate | 70% |" in text
    rows = list(csv.DictReader((tmp_path / "out" / "trials.csv").read_text().splitlines()))
    assert [row["question"] for row in rows] == ["0", "1", "2"]
    assert rows[1]["state"] == "pruned"
    for name in ("history.png", "importance.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_of_equal_trials_the_present_params_stay() -> None:
    found = results(tried(0, 0.95, 0.05), tried(1, 0.95, 0.05), tried(2, 0.9, 0.1))
    assert found.best is found.present
    assert "No trial beat the present params" in sweep_results.document(found)


def test_present_params_that_do_not_train_can_be_beaten() -> None:
    found = results(tried(0, None, None), tried(1, 0.95, 0.05))
    assert found.best.question == 1
    assert "nothing to compare with" in sweep_results.document(found)


# ---------------------------------------------------------------------------------------------------------------------
# The branch
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "repository"
    place.mkdir()
    shutil.copy(ROOT / "params.yaml", place)
    (place / "other.txt").write_text("one\n")
    monkeypatch.chdir(place)
    git("init", "--quiet", "--initial-branch=main")
    git("config", "user.name", "A Person")
    git("config", "user.email", "person@example.com")
    git("add", ".")
    git("commit", "--quiet", "--message=one")
    return place


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def test_the_branch_changes_values_alone_and_leaves_the_working_tree_as_it_is(repository: Path) -> None:
    (repository / "other.txt").write_text("two\n")
    (repository / "new.txt").write_text("new\n")
    before = git("status", "--porcelain"), git("rev-parse", "HEAD"), (repository / ".git" / "index").read_bytes()
    said = sweep_branch.make("sweep/x-3", Path("params.yaml"), BETTER)
    assert "branch sweep/x-3" in said
    assert "1 files have changes" in said
    assert (git("status", "--porcelain"), git("rev-parse", "HEAD"), (repository / ".git" / "index").read_bytes()) == before
    assert git("rev-parse", "sweep/x-3^") == before[1]
    assert git("diff", "--name-only", "main", "sweep/x-3") == "params.yaml"
    assert git("diff", "--numstat", "main", "sweep/x-3").split()[:2] == ["1", "1"]
    assert git("log", "-1", "--format=%an", "sweep/x-3") == "A Person"
    told = git("log", "-1", "--format=%B", "sweep/x-3")
    assert "learning_rate: 0.523 (was 0.1)" in told
    assert "98.00%" in told
    found = YAML(typ="safe").load(git("show", "sweep/x-3:params.yaml"))
    assert found["train"]["learning_rate"] == 0.523
    assert "is there already" in sweep_branch.make("sweep/x-3", Path("params.yaml"), BETTER)


def test_where_git_cannot_the_params_are_told(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no branch was made" in sweep_branch.make("a..b", Path("params.yaml"), BETTER)
    outside = tmp_path / "elsewhere.yaml"
    shutil.copy(ROOT / "params.yaml", outside)
    assert "lies outside" in sweep_branch.make("sweep/y", outside, BETTER)
    monkeypatch.setenv("PATH", str(tmp_path))
    said = sweep_branch.make("sweep/y", Path("params.yaml"), BETTER)
    assert "Git is not installed" in said
    assert "learning_rate: 0.523" in said


def test_values_are_put_into_a_file_that_lacks_them_and_null_stays_null() -> None:
    text = "train:\n  weights: null  # none\n  augment: {flip: true}\n"
    put = sweep_branch.changed(text, {"augment.rotate": 3.5, "batch_size": 32})
    assert YAML(typ="safe").load(put)["train"] == {
        "weights": None,
        "augment": {"flip": True, "rotate": 3.5},
        "batch_size": 32,
    }
    assert "weights: null  # none" in put


# ---------------------------------------------------------------------------------------------------------------------
# The pull request
# ---------------------------------------------------------------------------------------------------------------------


class Place:
    """A stand-in for GitHub with a checkout, and what the job that searched left."""

    def __init__(self, github: GitHub, folder: Path) -> None:
        self.github, self.folder, self.left = github, folder / "checkout", folder / "sweep"
        self.git = clone(github, self.folder)
        shutil.copy(ROOT / "params.yaml", self.folder)
        for name in ("report.yml", "ci.yml"):
            workflows = self.folder / ".github" / "workflows"
            workflows.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / ".github" / "workflows" / name, workflows)
        self.sha = commit(self.git, self.folder, "main")
        self.leave(BETTER)

    def leave(self, found: Results) -> None:
        sweep_results.write(self.left, found, sweep_branch.changed((ROOT / "params.yaml").read_text(), found.best.values))

    def publish(self, expect: int = 0) -> str:
        permissions = {"contents": "write", "pull-requests": "write", "actions": "write"}
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "GITHUB_TOKEN": self.github.token(permissions),
            "GITHUB_API_URL": self.github.url,
            "GITHUB_SERVER_URL": self.github.server_url,
            "GITHUB_REPOSITORY": "team/models",
            "GITHUB_SHA": self.sha,
            "GITHUB_REF_NAME": "main",
            "GITHUB_RUN_ID": "7",
        }
        command = [sys.executable, "-m", "src", "sweep-pull", str(self.left)]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with GitHub(tmp_path) as github:
        yield Place(github, tmp_path)


def test_the_best_params_become_a_pull_request_whose_report_is_started(place: Place) -> None:
    said = place.publish()
    (pull,) = place.github.pulls.values()
    assert (pull.branch, pull.base) == ("sweep/0123456789ab-3", "main")
    assert "| `learning_rate` | 0.1 | **0.523** |" in pull.body
    assert "| validation accuracy | 95.00% | 98.00% |" in pull.body
    assert "Pull request with the best params" in said
    assert {one["workflow"] for one in place.github.dispatches} == {"report.yml", "ci.yml"}
    assert {one["ref"] for one in place.github.dispatches} == {pull.branch}
    changed = place.github.repository.git("diff", "--numstat", "main", pull.branch)
    assert changed.split() == ["1", "1", "params.yaml"]
    place.publish()
    assert len(place.github.pulls) == 1, "a second run finds what the first one did"


def test_a_repository_that_lets_no_workflow_open_a_pull_request_gets_the_branch_and_an_address(place: Place) -> None:
    place.github.pulls_by_workflows = False
    said = place.publish()
    assert "compare/main...sweep/0123456789ab-3?expand=1" in said
    assert place.github.repository.sha("sweep/0123456789ab-3")
    assert not place.github.dispatches


def test_nothing_better_opens_nothing(place: Place) -> None:
    place.leave(results(tried(0, 0.95, 0.05)))
    assert "nothing better" in place.publish()
    assert not place.github.pulls


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("learning_rate: 0.523", "learning_rate: fast"),
        ("learning_rate: 0.523", "learning_rate: [0.5]"),
        ("learning_rate: 0.523", "learning_rate: .inf"),
        ("learning_rate: 0.523", "optimizer: 0.523"),
        ("learning_rate: 0.523", "learning_rate: 0.523 # mine"),
        ("min_accuracy: 0.8", "min_accuracy: 0.1"),
        ("train:\n", "train:\n  evil: 1\n"),
    ],
)
def test_what_is_more_than_a_value_of_train_is_refused(place: Place, old: str, new: str) -> None:
    text = (place.left / "params.yaml").read_text()
    assert old in text
    (place.left / "params.yaml").write_text(text.replace(old, new, 1))
    place.publish(expect=1)
    assert not place.github.repository.sha("sweep/0123456789ab-3")


def test_a_key_that_was_left_to_its_default_is_a_new_line() -> None:
    text = "train:\n  epochs: 3  # few\n\nevaluate:\n"
    put = sweep_branch.changed(text, {"augment.rotate": 3.5, "epochs": 4, "ema": 0.9})
    assert put == "train:\n  epochs: 4  # few\n  augment:\n    rotate: 3.5\n  ema: 0.9\n\nevaluate:\n"
    assert list(sweep_pull.changes(text, put)) == [
        ("epochs", "3", "4"), ("rotate", "default", "3.5"), ("ema", "default", "0.9")
    ]  # fmt: skip
    for line in ("  ema: 0.9  # and more", "  evil: 1", "  ema: [1]", "ema: 1"):
        with pytest.raises(UserError, match="refused"):
            list(sweep_pull.changes(text, put.replace("  ema: 0.9", line)))
    with pytest.raises(UserError, match="has no line `evaluate:`"):
        list(sweep_pull.changes(text, put.replace("evaluate:", "")))


def test_values_are_compared_as_a_person_wrote_them() -> None:
    text = "train:\n  weights:      # none\n  optimizer: 'sgd'\n  learning_rate: 1.0e-3  # slow\n"
    put = sweep_branch.changed(text, {"optimizer": "muon", "learning_rate": 0.02})
    assert list(sweep_pull.changes(text, put)) == [("optimizer", "'sgd'", "'muon'"), ("learning_rate", "1.0e-3", "0.02")]
    assert not list(sweep_pull.changes(text, sweep_branch.changed(text, {"optimizer": "sgd", "learning_rate": 0.001})))


@pytest.mark.parametrize(
    "change",
    [
        {"study": "sweep-../../main"},
        {"trials": "many"},
        {"trials": True},
        {"images": 0},
        {"best": {"trial": 2, "accuracy": 2.0, "log_loss": 0.1}},
        {"best": {"trial": 2, "accuracy": float("nan"), "log_loss": 0.1}},
        {"present": {"trial": 0}},
    ],
)
def test_numbers_that_are_none_are_refused(change: dict[str, Any]) -> None:
    facts = sweep_results.facts(BETTER)
    assert sweep_pull.checked(facts)["trials"] == 3
    with pytest.raises((ValueError, TypeError, KeyError)):
        sweep_pull.checked({**facts, **change})


# ---------------------------------------------------------------------------------------------------------------------
# The real command
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with arrays and a passed validation of three plain colours, and quick params."""
    folder = tmp_path_factory.mktemp("sweep")
    draw_colours(folder / "data", 40, np.random.default_rng(7))
    quick = {
        "train__epochs": 3,
        "train__width": 8,
        "train__warmup_epochs": 0.5,
        "prepare__image_size": 8,
        "train__batch_size": 32,
    }
    params = write_params(folder / "params.yaml", sweep__space=SMALL, sweep__random=6, **quick)
    prepare(folder / "data", folder / "arrays", folder / "manifest.parquet", params.prepare)
    card = json.loads((folder / "arrays" / "card.json").read_text())
    report = {"passed": True, "findings": [], "manifest_sha256": card["manifest_sha256"]}
    (folder / "validation.json").write_text(json.dumps(report))
    return folder


def start(colours: Path, folder: Path, *options: str, **environment: str) -> "subprocess.Popen[str]":
    """Start the command in `folder`, as the first of a process group of its own."""
    folder.mkdir(exist_ok=True)
    inputs = [str(colours / "arrays"), str(colours / "validation.json"), "out"]
    command = [
        sys.executable,
        "-m",
        "src",
        "sweep",
        *inputs,
        "--params",
        str(colours / "params.yaml"),
        *options,
    ]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_after(process: "subprocess.Popen[str]", trials: int) -> None:
    """Kill the whole group once so many trials were told, in the middle of the next one."""
    assert process.stdout
    told = 0
    while told < trials:
        line = process.stdout.readline()
        assert line, "it ended before it could be killed"
        told += line.startswith("trial ")
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def check_results(folder: Path, trials: int) -> None:
    rows = list(csv.DictReader((folder / "out" / "trials.csv").read_text().splitlines()))
    assert [int(row["question"]) for row in rows] == list(range(trials))
    best = json.loads((folder / "out" / "best.json").read_text())
    assert best["trials"] == trials
    assert best["best"]["accuracy"] >= best["present"]["accuracy"]
    assert best["best"]["accuracy"] == max(float(row["accuracy"]) for row in rows if row["state"] == "complete")
    assert {path.name for path in (folder / "out").iterdir()} >= {"sweep.md", "history.png", "importance.png", "params.yaml"}


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_sweep_that_is_killed_twice_ends_with_each_trial_once(colours: Path, tmp_path: Path, workers: str) -> None:
    options = ["--trials", str(TRIALS), "--workers", workers, "--branch", "none"]
    for told in (3, 5):
        kill_after(start(colours, tmp_path, *options), told)
    last = start(colours, tmp_path, *options)
    said = last.communicate(timeout=PATIENCE)[0]
    assert last.returncode == 0, said
    assert "goes on, 8 of 20" in said or re.search(r"goes on, \d+ of 20", said)
    check_results(tmp_path, TRIALS)
    again = start(colours, tmp_path, *options)
    assert "trial " not in again.communicate(timeout=PATIENCE)[0].partition("| trial")[0].replace("trials", "")
    check_results(tmp_path, TRIALS)


@pytest.mark.slow
def test_each_trial_is_a_run_below_the_sweeps_own_and_a_restart_keeps_that_one(
    colours: Path, tmp_path: Path, empty_database: Path
) -> None:
    from mlflow import MlflowClient

    shutil.copy(empty_database, tmp_path / "mlflow.db")
    address = f"sqlite:///{tmp_path}/mlflow.db"
    kill_after(start(colours, tmp_path, "--trials", "5", "--branch", "none", MLFLOW_TRACKING_URI=address), 2)
    last = start(colours, tmp_path, "--trials", "5", "--branch", "none", MLFLOW_TRACKING_URI=address)
    said = last.communicate(timeout=PATIENCE)[0]
    assert last.returncode == 0, said
    client = MlflowClient(address)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent and run.data.tags["sweep.state"] != "lost"]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs if run is not parent} == {parent.info.run_id}
    assert sorted(run.data.tags["sweep.trial"] for run in children) == ["0", "1", "2", "3", "4"]
    assert all(run.info.status == "FINISHED" for run in [parent, *children])
    assert "best.learning_rate" in parent.data.tags


@pytest.mark.slow
def test_a_sweep_stops_when_its_time_is_up_and_says_how_to_go_on(colours: Path, tmp_path: Path) -> None:
    process = start(colours, tmp_path, "--trials", "500", "--minutes", "0.1", "--branch", "none")
    said = process.communicate(timeout=PATIENCE)[0]
    assert "run the same command again" in said, said


@pytest.mark.slow
def test_ctrl_c_ends_with_one_sentence(colours: Path, tmp_path: Path) -> None:
    process = start(colours, tmp_path, "--trials", "500", "--workers", "2", "--branch", "none")
    assert process.stdout
    while "trial " not in process.stdout.readline():
        pass
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 130
    assert said.count("Run the same command again") == 1
    assert "Traceback" not in said
