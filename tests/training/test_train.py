"""Training learns, resumes, repeats itself and refuses what it should: python -m pytest tests/training/test_train.py"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_colours, write_params
from safetensors.torch import load_file, save_file
from torch import nn

from src.core import arrays
from src.core.arrays import Split
from src.core.command import UserError
from src.core.files import sha256
from src.images.prepare import prepare
from src.model import NETWORKS, small_resnet
from src.system import tracking
from src.system.mlflow_client import connect
from src.system.params import Params
from src.training import loop, optimizer
from src.training.callbacks import NO_CALLBACKS, Callbacks
from src.training.checkpoint import Checkpoint
from src.training.loop import fit
from src.training.start import start
from src.training.task import Task, of
from src.training.train import train

QUICK = {
    "train__epochs": 2,
    "train__width": 8,
    "train__batch_size": 16,
    "prepare__image_size": 8,
    "train__warmup_epochs": 0.5,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with arrays and a passed validation of three plain colours."""
    folder = tmp_path_factory.mktemp("prepared")
    draw_colours(folder / "data", 40, np.random.default_rng(7))
    params = write_params(folder / "params.yaml", **QUICK)
    prepare(folder / "data", folder / "arrays", folder / "m.parquet", params.prepare)
    pass_validation(folder)
    return folder


def pass_validation(folder: Path) -> None:
    card = json.loads((folder / "arrays" / "card.json").read_text())
    report = {"passed": True, "findings": [], "manifest_sha256": card["manifest_sha256"]}
    (folder / "validation.json").write_text(json.dumps(report))


@pytest.fixture
def run(tmp_path: Path, prepared: Path) -> Callable[..., Path]:
    def go(name: str = "model", callbacks: Callbacks = NO_CALLBACKS, **changes: Any) -> Path:
        params = write_params(tmp_path / "params.yaml", **(QUICK | changes))
        out, history = tmp_path / name, tmp_path / f"{name}-history"
        train(
            prepared / "arrays",
            prepared / "validation.json",
            out,
            history,
            tmp_path / "ck",
            params.train,
            callbacks=callbacks,
        )
        return out

    return go


def accuracy(folder: Path) -> float:
    return float(json.loads((folder / "card.json").read_text())["validation"]["accuracy"])


@pytest.mark.parametrize(
    "changes",
    [
        {"train__network": "resnet18", "train__epochs": 4},
        {"train__optimizer": "adamw", "train__learning_rate": 0.01, "train__class_weights": "balanced"},
        {"train__precision": "bf16", "train__augment__flip": True, "train__gradient_clip": 0, "train__label_smoothing": 0},
        {"train__batch_size": 4096, "train__epochs": 20},
    ],
)
def test_every_recipe_learns_plain_colours(run: Callable[..., Path], changes: dict) -> None:
    folder = run(**({"train__epochs": 5} | changes))
    assert accuracy(folder) >= 0.9
    assert sorted(path.name for path in folder.iterdir()) == [
        "card.json",
        "history.csv",
        "model.onnx",
        "weights.safetensors",
    ]


def test_equal_seeds_give_equal_files_and_others_do_not(run: Callable[..., Path]) -> None:
    first, second, other = run("a"), run("b"), run("c", train__seed=2)
    for name in ("model.onnx", "weights.safetensors", "history.csv", "card.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert (first / "weights.safetensors").read_bytes() != (other / "weights.safetensors").read_bytes()


def every_time(self: Checkpoint, state: dict) -> None:
    self._path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, self._path)


@pytest.fixture
def task(prepared: Path) -> Task:
    return of(arrays.load(prepared / "arrays"))


def test_a_stopped_run_with_a_moving_average_and_dropout_ends_as_an_unbroken_one(
    task: Task, params: Callable[..., Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        NETWORKS, "forgetful", lambda shape, width: nn.Sequential(small_resnet(shape, width), nn.Dropout(0.3))
    )
    monkeypatch.setattr(Checkpoint, "save", every_time)
    recipe = params(**(QUICK | {"train__epochs": 5, "train__ema": 0.9, "train__network": "forgetful"})).train
    whole = fit(task, recipe, None, quiet=True)

    def halt(row: dict) -> None:
        if row["epoch"] == 2:
            raise loop.Halt

    with pytest.raises(loop.Halt):
        fit(task, recipe, tmp_path / "ck", on_epoch=halt, quiet=True)
    resumed = fit(task, recipe, tmp_path / "ck", quiet=True)
    assert resumed.history == whole.history
    assert [row["epoch"] for row in resumed.throughput] == [3, 4, 5]
    for name, value in whole.classifier.state_dict().items():
        assert torch.equal(value, resumed.classifier.state_dict()[name]), name


def test_a_moving_average_is_what_its_formula_says(task: Task, params: Callable[..., Params]) -> None:
    """The weights that are kept are decay * average + (1 - decay) * weights, step by step, from the first step's on."""
    recipe = params(**(QUICK | {"train__ema": 0.5, "train__epochs": 1, "train__batch_size": 32})).train
    averaged, classifier, expected = optimizer.averaged(start(task, recipe)[0], recipe), start(task, recipe)[0], 0.0
    assert averaged is not None
    for step in range(4):
        for parameter in classifier.parameters():
            parameter.data.fill_(float(step))
        averaged.update_parameters(classifier)
        expected = 0.0 if step == 0 else 0.5 * expected + 0.5 * step
        assert all(torch.all(parameter == expected) for parameter in averaged.module.parameters())


def test_patience_ends_a_run_that_no_longer_gets_better_and_keeps_its_best_epoch(
    task: Task, params: Callable[..., Params], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = params(**(QUICK | {"train__epochs": 60, "train__patience": 2, "train__learning_rate": 0.3})).train
    fitted = fit(task, recipe, None)
    losses = [row["validation_loss"] for row in fitted.history]
    assert len(losses) == fitted.best["epoch"] + 2 < 60
    assert losses[fitted.best["epoch"] - 1] == min(losses)
    assert f"stopped after epoch {len(losses)}: the validation loss has not fallen for 2 epochs" in capsys.readouterr().out


def test_given_weights_are_named_and_a_loss_that_is_not_finite_stops_with_advice(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    weights = run("first") / "weights.safetensors"
    second = run("second", train__weights=str(weights), train__weights_sha256=sha256(weights))
    assert json.loads((second / "card.json").read_text())["start_weights_sha256"] == sha256(weights)
    broken = load_file(weights)
    broken["network.conv1.weight"][0] = torch.nan
    save_file(broken, tmp_path / "broken.safetensors")
    digest = sha256(tmp_path / "broken.safetensors")
    with pytest.raises(UserError, match=r"the loss is nan in epoch 1, by step \d+: lower train.learning_rate \(0.1\)"):
        run(train__weights=str(tmp_path / "broken.safetensors"), train__weights_sha256=digest)
    assert not (tmp_path / "model").exists()


def test_data_that_failed_validation_cannot_be_trained_on(prepared: Path, run: Callable[..., Path]) -> None:
    good = (prepared / "validation.json").read_text()
    try:
        failed = json.loads(good) | {"passed": False, "findings": [{"check": "corrupt", "level": "error"}]}
        (prepared / "validation.json").write_text(json.dumps(failed))
        with pytest.raises(UserError, match=r"did not pass validation \(corrupt"):
            run()
        (prepared / "validation.json").write_text(json.dumps(json.loads(good) | {"manifest_sha256": "0"}))
        with pytest.raises(UserError, match="speaks of other data"):
            run()
        (prepared / "validation.json").unlink()
        with pytest.raises(UserError, match="is missing: run `dvc repro validate`"):
            run()
    finally:
        (prepared / "validation.json").write_text(good)


def test_the_learning_rate_warms_up_and_comes_down(params: Callable[..., Params]) -> None:
    recipe = params(train__epochs=10, train__warmup_epochs=2, train__learning_rate=0.5).train
    rates = [optimizer.learning_rate(step, 20, recipe) for step in range(200)]
    assert rates[0] < 0.02
    assert max(rates) == pytest.approx(0.5, rel=0.01)
    assert rates.index(max(rates)) == 40
    assert rates[-1] < 1e-4
    assert rates[40:] == sorted(rates[40:], reverse=True)


def test_balanced_weights_average_to_one_over_the_images(params: Callable[..., Params]) -> None:
    split = Split(np.zeros((100, 2, 2, 3), np.uint8), np.array([0] * 90 + [1] * 10))
    weights = loop.class_weights(split, 3, params(train__class_weights="balanced").train)
    assert weights[split.labels[:100]].mean() == pytest.approx(2 / 3)
    assert weights[1] / weights[0] == pytest.approx(9)
    halfway = loop.class_weights(split, 2, params(train__class_weights="sqrt").train)
    assert halfway[split.labels].mean() == pytest.approx(1)
    assert halfway[1] / halfway[0] == pytest.approx(3)


@pytest.mark.filterwarnings("ignore")  # deprecations inside MLflow
class TestTracking:
    """MLflow, for real, in a file."""

    def test_a_dead_server_costs_a_warning_and_the_run_is_kept_in_the_file(
        self,
        run: Callable[..., Path],
        empty_database: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        shutil.copy(empty_database, "mlflow.db")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")  # put back afterwards: a password in an address is moved there
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
        assert (run(callbacks=Callbacks(tracking.start)) / "model.onnx").exists()
        (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
        assert "MLflow at http://127.0.0.1:9 does not answer (Connection refused): start it, or correct" in warning
        assert warning.endswith("Training goes on, tracked in sqlite:///mlflow.db")
        assert "secret" not in warning
        client = connect("sqlite:///mlflow.db")[0]
        experiment = client.get_experiment_by_name("image-classifier")
        (kept,) = client.search_runs([experiment.experiment_id])
        assert kept.info.status == "FINISHED"
        assert kept.data.params["epochs"] == "2"
        assert kept.data.params["augment.crop"] == "1"
        assert [point.step for point in client.get_metric_history(kept.info.run_id, "validation_loss")] == [1, 2]

    def test_a_run_that_the_server_does_not_know_is_begun_anew(
        self, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copy(empty_database, tmp_path / "mlflow.db")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
        begun = tracking.start({"epochs": 2}, {}, "0" * 32)
        assert begun is not None
        resumed = tracking.start({}, {}, begun.id)
        assert resumed is not None
        assert resumed.id == begun.id != "0" * 32

    def test_a_server_lost_on_the_way_does_not_cost_the_model(
        self,
        run: Callable[..., Path],
        empty_database: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        def lost(*_: Any, **given: Any) -> None:
            if "metrics" in given:
                raise MlflowException("Connection refused")

        uri = f"sqlite:///{tmp_path}/mlflow.db"
        shutil.copy(empty_database, tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setattr(MlflowClient, "log_batch", lost)
        assert (run(callbacks=Callbacks(tracking.start)) / "model.onnx").exists()
        (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
        assert f"MLflow at {uri} does not answer (Connection refused)" in warning
        assert warning.endswith("Training goes on, history.csv has all epochs, MLflow those until now")
