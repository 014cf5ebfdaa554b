"""A sweep loses no trial, whatever is killed: python -m pytest tests/lab/test_sweep.py

Units use Optuna's real storage and train nothing; the slow tests kill the real command on three plain colours.
"""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from conftest import PATIENCE, ROOT, draw_colours, write_params
from optuna.trial import TrialState
from standin import GitHub, clone, commit
from test_register import postgres

from src.core.command import UserError
from src.github import sweep_pull
from src.images.prepare import prepare
from src.lab.experiments import sweep_results, sweep_space, sweep_worker
from src.lab.experiments.sweep_results import Results, Tried
from src.lab.experiments.sweep_worker import FINISHED, open_study, to_minimise
from src.system.params import Params, load
from src.system.params_text import put

TRIALS = 10
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


# The space


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, "sweep.space"),
        ({"lerning_rate": [0.1]}, "space.lerning_rate is no key of train"),
        ({"augment.tilt": [1]}, "space.augment.tilt is no key of train"),
        ({"learning_rate": {"low": 2, "high": 1}}, "low must be under high"),
        ({"learning_rate": {"low": 0, "high": 1, "log": True}}, "log must have a low over 0"),
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
        ({"optimizer": {"low": 0, "high": 1}}, "sweep.space.optimizer should have a list of choices"),
        ({"batch_size": {"low": 1.5, "high": 64}}, "sweep.space.batch_size should have whole numbers"),
        (
            {"learning_rate": {"low": 0.2, "high": 1}},
            "train.learning_rate is 0.1, which sweep.space.learning_rate leaves out",
        ),
    ],
)
def test_a_space_that_does_not_fit_train_is_refused_by_name(make: Callable[..., Params], space: Any, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        sweep_space.of(make(sweep__space=space))


def test_the_space_of_the_repository_can_be_searched() -> None:
    space = sweep_space.of(load(ROOT / "params.yaml"))
    assert space.train(space.present) == space.base


# A trial


@pytest.fixture
def worker(tmp_path: Path, make: Callable[..., Params], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Return a function that lets one worker work with another `fit`, and returns the finished trials."""

    def go(
        fit: Callable[..., Any], address: str = f"sqlite:///{tmp_path}/sweep.db", until: float | None = None, **changes: Any
    ) -> list[Any]:
        params = make(**{"sweep__trials": 4, "sweep__random": 3} | changes)
        validation = SimpleNamespace(labels=np.zeros(100, dtype=np.int64))
        monkeypatch.setattr(sweep_worker, "fit", fit)
        monkeypatch.setattr(sweep_worker, "of", lambda _: SimpleNamespace(validation=validation))
        monkeypatch.setattr(sweep_worker.arrays, "load", lambda _: None)
        monkeypatch.setattr(sweep_worker, "_log_loss", lambda *_: 0.5)
        sweep_worker.work(sweep_worker.Job(tmp_path, tmp_path / "checkpoints", address, "study", params, None, until))
        return open_study(address, "study", sweep_space.of(params), params).get_trials(states=FINISHED)

    return go


def fitted(accuracy: float, on_epoch: Callable[[Any], None], epochs: int = 3) -> Any:
    rows = [{"epoch": epoch, "validation_accuracy": accuracy} for epoch in range(1, epochs + 1)]
    for row in rows:
        on_epoch(row)
    return SimpleNamespace(best=rows[-1], history=rows)


def good(*_: Any, on_epoch: Any, **__: Any) -> Any:
    return fitted(0.9, on_epoch)


def test_the_value_ranks_by_accuracy_and_equal_ones_by_log_loss() -> None:
    assert to_minimise("accuracy", 0.98, 50.0, 100) < to_minimise("accuracy", 0.97, 0.01, 100)
    assert to_minimise("accuracy", 0.98, 0.2, 100) < to_minimise("accuracy", 0.98, 0.3, 100)
    assert to_minimise("log_loss", 0.97, 0.1, 100) < to_minimise("log_loss", 0.98, 0.2, 100)


def test_the_first_trial_is_the_params_as_they_are_and_more_trials_go_on_with_other_values(
    worker: Callable[..., list[Any]],
) -> None:
    assert not worker(good, until=0.0), "the time is up"
    first = worker(good, sweep__trials=4)
    assert first[0].user_attrs["values"] == {"learning_rate": 0.1, "batch_size": 64, "augment.rotate": 10.0}
    more = worker(good, sweep__trials=6)
    assert [trial.user_attrs["question"] for trial in more] == list(range(6))
    assert len({json.dumps(trial.user_attrs["values"]) for trial in more}) == 6
    assert len(worker(good, sweep__trials=6)) == 6


def test_another_fault_or_ctrl_c_stops_the_sweep_and_leaves_the_trial_to_be_retried(
    worker: Callable[..., list[Any]], tmp_path: Path, make: Callable[..., Params]
) -> None:
    for error in (UserError("MLflow does not answer"), KeyboardInterrupt()):

        def refuse(*_: Any, error: BaseException = error, **__: Any) -> Any:
            raise error

        with pytest.raises(type(error)):
            worker(refuse)
    params = make()
    study = open_study(f"sqlite:///{tmp_path}/sweep.db", "study", sweep_space.of(params), params)
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING] * 2, "without a heartbeat, so it becomes stale"


def test_a_trial_under_the_median_is_pruned_and_the_first_one_never(worker: Callable[..., list[Any]]) -> None:
    count = iter(range(100))

    def worse_and_worse(task: Any, params: Any, *_: Any, on_epoch: Any, **__: Any) -> Any:
        return fitted(0.9 - 0.01 * next(count), on_epoch, params.epochs)

    trials = worker(worse_and_worse, sweep__trials=8, train__epochs=4, sweep__prune_after=0.5)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 5 + ["PRUNED"] * 3
    assert trials[5].user_attrs["reason"] == "under the median after epoch 2"


def test_lists_of_choices_are_a_grid_and_equal_values_are_not_trained_again(worker: Callable[..., list[Any]]) -> None:
    trained = []

    def fit(task: Any, params: Any, *_: Any, on_epoch: Any, **__: Any) -> Any:
        trained.append((params.batch_size, params.optimizer))
        return fitted(0.9, on_epoch)

    grid = {"batch_size": [32, 64], "optimizer": ["sgd", "muon"]}
    assert len(worker(fit, sweep__space=grid, sweep__trials=8)) == 4
    assert len(set(trained)) == len(trained) == 4
    assert len(worker(fit, sweep__space=grid, sweep__trials=3)) == 4, "more than three are there already"


# Results


def tried(question: int, accuracy: float | None, value: float | None, learning_rate: float = 0.1) -> Tried:
    values = {"learning_rate": learning_rate, "batch_size": 64, "augment.rotate": 10.0}
    return Tried(question, values, value, accuracy, None if value is None else 0.1, 3, 1.0, "" if value else "diverged")


def results(*all_tried: Tried) -> Results:
    ordered = sorted(all_tried, key=lambda one: one.rank)
    return Results("sweep-0123456789ab", "accuracy", 20, 200, ordered, {"learning_rate": 0.7, "batch_size": 0.3})


def write(folder: Path, found: Results) -> None:
    study = optuna.create_study()
    study.add_trial(
        optuna.create_trial(value=0.1, params={"x": 1}, distributions={"x": optuna.distributions.IntDistribution(0, 1)})
    )
    values = {("train", *key.split(".")): value for key, value in found.best.values.items()}
    sweep_results.write(folder, found, put((ROOT / "params.yaml").read_text(), values), study)


BETTER = results(tried(0, 0.95, 0.05), tried(1, None, None), tried(2, 0.98, 0.02, 0.523))


def test_the_results_tell_the_winner_beside_the_present_params_and_warn_of_its_luck(tmp_path: Path) -> None:
    write(tmp_path / "out", BETTER)
    text = (tmp_path / "out" / "sweep.md").read_text()
    assert "**Trial 2 is the best**" in text
    assert "+6 of 200 validation examples" in text
    assert "| present params | 0 | 95.00% |" in text
    assert "winner's curse" in text
    page = (tmp_path / "out" / "sweep.html").read_text()
    assert page.count("<img") == 2
    assert "<strong>Trial 2 is the best</strong>" in page
    assert "| learning_rate | 70% |" in text
    rows = list(csv.DictReader((tmp_path / "out" / "trials.csv").read_text().splitlines()))
    assert [row["question"] for row in rows] == ["0", "1", "2"]
    assert rows[1]["state"] == "pruned"
    for name in ("history.png", "importance.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


# The pull request


class Place:
    """A stand-in for GitHub with a checkout, and what the job that searched left."""

    def __init__(self, github: GitHub, folder: Path) -> None:
        self.github, self.folder, self.left = github, folder / "checkout", folder / "sweep"
        self.git = clone(github, self.folder)
        shutil.copy(ROOT / "params.yaml", self.folder)
        workflows = self.folder / ".github" / "workflows"
        workflows.mkdir(parents=True)
        for name in ("report.yml", "ci.yml"):
            shutil.copy(ROOT / ".github" / "workflows" / name, workflows)
        self.sha = commit(self.git, self.folder, "main")
        write(self.left, BETTER)

    def publish(self) -> str:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "GITHUB_TOKEN": self.github.token({"contents": "write", "pull-requests": "write", "actions": "write"}),
            "GITHUB_SERVER_URL": self.github.server_url,
            "GITHUB_REPOSITORY": "team/models",
            "GITHUB_SHA": self.sha,
            "GITHUB_REF_NAME": "main",
            "GITHUB_RUN_ID": "7",
        }
        command = [sys.executable, "-m", "src", "sweep-pull", str(self.left)]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with GitHub(tmp_path) as github:
        yield Place(github, tmp_path)


@pytest.mark.journey
def test_the_best_params_become_one_pull_request_or_a_branch_and_an_address_or_nothing(place: Place) -> None:
    place.github.pulls_by_workflows = False
    assert "compare/main...sweep/0123456789ab-3?expand=1" in place.publish()
    assert place.github.repository.sha("sweep/0123456789ab-3")
    assert not place.github.dispatches
    place.github.pulls_by_workflows = True
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
    write(place.left, results(tried(0, 0.95, 0.05)))
    assert "nothing better" in place.publish()
    assert len(place.github.pulls) == 1


@pytest.mark.parametrize(
    "values", [{"learning_rate": [0.5]}, {"learning_rate": float("inf")}, {"network": "a: b"}, {"network": "true"},
               {"min_accuracy": 0.1}, {"evil": 1}, {"gates.learning_rate": 1}]
)  # fmt: skip
def test_what_is_no_value_of_train_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="refused"):
        sweep_pull.edited((ROOT / "params.yaml").read_text(), values)


@pytest.mark.parametrize(
    "change",
    [
        {"study": "sweep-../../main"},
        {"trials": "many"},
        {"trials": True},
        {"best": {"trial": 2, "accuracy": float("nan"), "log_loss": 0.1}},
        {"present": {"trial": 0}},
    ],
)
def test_numbers_that_are_none_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    facts = sweep_results.facts(BETTER)
    (tmp_path / "best.json").write_text(json.dumps(facts))
    assert sweep_pull._read(tmp_path).trials == 3
    (tmp_path / "best.json").write_text(json.dumps({**facts, **change}))
    with pytest.raises(UserError, match="is not what a sweep leaves"):
        sweep_pull._read(tmp_path)


# The real command


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


def start(colours: Path, folder: Path, *options: str, heartbeat: int = 20, **environment: str) -> "subprocess.Popen[str]":
    """Start the command in `folder`, as the first of a process group of its own."""
    folder.mkdir(exist_ok=True)
    inputs = [str(colours / "arrays"), str(colours / "validation.json"), "out"]
    code = f"from src.lab.experiments import sweep, sweep_worker; sweep_worker.HEARTBEAT = {heartbeat}; "
    code += "from src.system.command_line import run; run('sweep', sweep.main)"
    return subprocess.Popen(
        [sys.executable, "-c", code, *inputs, "--params", str(colours / "params.yaml"), *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_trials(process: "subprocess.Popen[str]", trials: int) -> None:
    assert process.stdout
    seen = 0
    while seen < trials:
        line = process.stdout.readline()
        assert line, "it ended too early"
        seen += line.startswith("trial ")


@pytest.mark.journey
def test_of_two_workers_one_is_killed_and_no_trial_is_lost_and_the_same_command_goes_on(
    colours: Path, tmp_path: Path, empty_database: Path
) -> None:
    from mlflow import MlflowClient

    shutil.copy(empty_database, tmp_path / "mlflow.db")
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    storage = f"sqlite:///{tmp_path}/sweep.db"
    optuna.storages.RDBStorage(storage)
    first, second = (start(colours, tmp_path, "--trials", str(TRIALS), heartbeat=1, **environment) for _ in range(2))
    wait_for_trials(first, 1)
    wait_for_trials(second, 1)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    output = second.communicate(timeout=PATIENCE)[0]
    assert second.returncode == 0, output
    lost = optuna.load_study(study_name=None, storage=storage).get_trials(states=(TrialState.FAIL,))
    again = start(colours, tmp_path, "--trials", str(TRIALS), heartbeat=1, **environment)
    output = again.communicate(timeout=PATIENCE)[0]
    assert re.search(rf"goes on, \d+ of {TRIALS} trials are done", output)
    assert "\ntrial " not in output, "there is nothing left to train"
    rows = list(csv.DictReader((tmp_path / "out" / "trials.csv").read_text().splitlines()))
    numbers = [int(row["question"]) for row in rows]
    assert TRIALS <= len(rows) <= TRIALS + 1
    assert len(set(numbers)) == len(numbers)
    assert {0, *(trial.user_attrs["question"] for trial in lost if trial.user_attrs)} <= set(numbers)
    best = json.loads((tmp_path / "out" / "best.json").read_text())
    assert best["best"]["accuracy"] == max(float(row["accuracy"]) for row in rows if row["state"] == "complete")
    client = MlflowClient(environment["MLFLOW_TRACKING_URI"])
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    parents = {run.info.run_id for run in runs if "mlflow.parentRunId" not in run.data.tags}
    tracked = {run.data.tags["sweep.trial"] for run in runs if run.data.tags.get("mlflow.parentRunId") in parents}
    assert tracked <= {row["question"] for row in rows}
    assert len(tracked) >= TRIALS - 1, "each but the params as they are, where both workers asked for these"


@pytest.mark.journey
def test_ctrl_c_ends_with_one_sentence(colours: Path, tmp_path: Path) -> None:
    process = start(colours, tmp_path, "--trials", "500")
    wait_for_trials(process, 1)
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 130
    assert output.count("Run the same command again") == 1
    assert "Traceback" not in output


@pytest.mark.journey
def test_a_sweep_is_kept_in_postgresql(worker: Callable[..., list[Any]]) -> None:
    with postgres() as address:
        assert len(worker(good, address)) == 4
