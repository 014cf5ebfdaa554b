"""The served file is judged, told in full, and told the same each time.

python -m pytest tests/evaluation/test_evaluate.py
"""

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import draw_colours, write_params
from PIL import Image
from safetensors.torch import load_file, save_file
from test_train import QUICK, pass_validation
from threadpoolctl import threadpool_limits

from src.core.arrays import Split
from src.core.command import UserError
from src.core.inference import Model
from src.evaluation import baseline
from src.evaluation.evaluate import evaluate
from src.images.prepare import prepare
from src.training.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    draw_colours(folder / "data", 40, np.random.default_rng(7))
    params = write_params(folder / "params.yaml", **(QUICK | {"train__epochs": 5}))
    prepare(folder / "data", folder / "arrays", folder / "m.parquet", params.prepare)
    pass_validation(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        train(
            folder / "arrays", folder / "validation.json", folder / "model", folder / "history", folder / "ck", params.train
        )
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Evaluate a copy, so that a test may damage it."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)

    def go(out: str = "details", **changes: Any) -> dict[str, Any]:
        params = write_params(tmp_path / "params.yaml", **(QUICK | changes)).evaluate
        inputs = (tmp_path / name for name in ("arrays", "m.parquet", "model"))
        evaluate(*inputs, tmp_path / f"{out}.json", tmp_path / out, params)
        return json.loads((tmp_path / f"{out}.json").read_text())

    return go


def test_everything_asked_for_is_there(run: Callable[..., Any], tmp_path: Path) -> None:
    results = run()
    assert results["accuracy"] >= 0.9
    assert results["accuracy_low"] < results["accuracy"] <= results["accuracy_high"]
    assert results["parity"] < 1e-4
    assert results["model_bytes"] == (tmp_path / "model" / "model.onnx").stat().st_size
    assert set(results["per_class"]) == {"red", "green", "blue"}
    assert any(name.startswith("brightness: ") for name in results["slices"])
    assert {"accuracy", "margin", "macro_f1", "log_loss", "ece"} <= set(results["baseline"])
    for name in ("confusion", "curves", "calibration", "errors", "activation"):
        with Image.open(tmp_path / "details" / f"{name}.png") as picture:
            assert min(picture.size) > 50
    predictions = pq.read_table(tmp_path / "details" / "predictions.parquet").to_pandas()
    assert len(predictions) == results["examples"]
    assert (predictions["label"] == predictions["prediction"]).mean() == pytest.approx(results["accuracy"], abs=1e-6)


def test_a_model_that_learnt_nothing_is_named(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    assert "Try `make suggest`" not in capsys.readouterr().out
    one_hot = np.eye(3, dtype=np.float32)
    monkeypatch.setattr("src.evaluation.baseline.probabilities", lambda _, test, __: one_hot[test.labels])
    monkeypatch.setattr("src.evaluation.evaluate._parity", lambda *_: 0.0)
    monkeypatch.setattr(Model, "probabilities", lambda _, images: one_hot[np.arange(len(images)) % 3])
    run("guesses")
    assert "less accurate than the logistic regression on the same pixels. Try `make suggest`" in capsys.readouterr().out
    monkeypatch.setattr(Model, "probabilities", lambda _, images: one_hot[np.zeros(len(images), dtype=int)])
    results = run("one")
    assert f"gives all {results['examples']} test images to the class blue. Try `make suggest`" in capsys.readouterr().out


def test_equal_runs_give_equal_files(run: Callable[..., Any], tmp_path: Path) -> None:
    run("a")
    run("b")
    first = {path.relative_to(tmp_path / "a"): path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    second = {path.relative_to(tmp_path / "b"): path.read_bytes() for path in (tmp_path / "b").rglob("*") if path.is_file()}
    assert first == second
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_golden_examples_are_reproduced_by_the_file_alone(run: Callable[..., Any], tmp_path: Path) -> None:
    run(evaluate__golden=6)
    golden = json.loads((tmp_path / "details" / "golden" / "golden.json").read_text())
    model = Model(tmp_path / "model")
    assert [example["label"] for example in golden["examples"][:3]] == ["blue", "green", "red"]
    for example in golden["examples"]:
        with Image.open(tmp_path / "details" / "golden" / example["file"]) as picture:
            probabilities = model.probabilities(np.asarray(picture)[None])[0]
        np.testing.assert_allclose(probabilities, example["probabilities"], atol=golden["tolerance"])


def other_weights(folder: Path) -> None:
    path = folder / "model" / "weights.safetensors"
    weights = load_file(path)
    weights["network.fc.weight"] = weights["network.fc.weight"].roll(1, 0).contiguous()
    save_file(weights, path)


def rewrite_card(folder: Path, **changes: Any) -> None:
    path = folder / "model" / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "model" / "model.onnx").unlink(), "model.onnx is missing: run `dvc repro train`"),
        (lambda f: (f / "model" / "model.onnx").write_bytes(b"x"), "is not the model that card.json beside it describes"),
        (lambda f: (f / "model" / "weights.safetensors").write_bytes(b"x"), "is no safetensors file"),
        (other_weights, "ONNX and PyTorch differ by"),
        (lambda f: rewrite_card(f, classes=["a", "b", "c"]), "has other classes than card.json"),
        (lambda f: (f / "arrays" / "test.examples.npy").write_bytes(b"\x93NUMPY"), "split test cannot be read"),
        (lambda f: (f / "model" / "history.csv").write_text("a,b\nx,y\n"), "history.csv is missing or damaged"),
        (lambda f: np.save(f / "arrays" / "test.labels.npy", np.full(30, 99)), "split test|other labels|shape"),
    ],
)
def test_what_is_damaged_is_named_and_nothing_is_written(
    run: Callable[..., Any], tmp_path: Path, damage: Callable[[Path], Any], words: str
) -> None:
    damage(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        run()
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("details")]


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("src.training.train", "arrays validation.json out history --checkpoints ck"),
        ("src.evaluation.evaluate", "arrays m.parquet model out.json out"),
        ("src.judging.quantize", "arrays model out"),
    ],
)
def test_arrays_that_were_prepared_by_other_params_are_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, arguments: str
) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path / "params.yaml", **(QUICK | {"prepare__image_size": [16, 12], "prepare__fit": "pad"}))
    monkeypatch.setattr(sys, "argv", [module, *arguments.split()])
    with pytest.raises(UserError, match="arrays holds images of 8 x 8 x 3 uint8, fit crop") as caught:
        importlib.import_module(module).main()
    assert "fit crop, params.yaml asks for images of 16 x 12 x 3 uint8, fit pad: run `dvc repro -f prepare`" in str(
        caught.value
    )
    assert not (tmp_path / "out").exists()


def test_the_baseline_is_bounded_and_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(baseline, "_NUMBERS", 1)
    monkeypatch.setattr(baseline, "_PRODUCTS", 1)
    split = Split(np.arange(1500 * 12, dtype=np.uint8).reshape(1500, 2, 2, 3), np.arange(1500) % 3)
    baseline.probabilities(split, split, 3)
    assert "1,000 of 1,500 training images, at most 20 iterations" in capsys.readouterr().out


def test_the_baseline_does_not_depend_on_the_number_of_threads(random: np.random.Generator) -> None:
    labels = np.arange(400) % 10
    images = np.clip(random.normal(100 + 5 * labels[:, None, None, None], 60, (400, 8, 8, 3)), 0, 255).astype(np.uint8)
    answers = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            answers.append(baseline.probabilities(Split(images, labels), Split(images, labels), 10))
    assert np.array_equal(*answers)
