"""Stage 4, evaluate. Runs the ONNX file on the test split; writes metrics.json and details with pictures.

    python -m src evaluate out/arrays out/manifest.parquet out/model metrics.json out/evaluation

It judges the very file that is served, through ONNX Runtime. It measures no time: equal runs write equal files.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from src.core import arrays, metrics, results
from src.core.arrays import Arrays, Split
from src.core.command import UserError, table
from src.core.files import check_outputs, replacing, rounded, write_json
from src.core.inference import Model
from src.core.params import section
from src.evaluation import figures
from src.evaluation.evaluate_params import Evaluate
from src.evaluation.scores import numbers, write_tables
from src.images import golden, slices
from src.images.prepare_params import Prepare
from src.training.classifier import Classifier
from src.training.classifier import load as load_classifier

_PARITY_IMAGES = 1024


def evaluate(folder: Path, manifest: Path, model_folder: Path, metrics_path: Path, details: Path, params: Evaluate) -> None:
    """Evaluate the model in `model_folder` on the test split of `folder`.

    Raises:
        UserError: an input is missing or damaged, model and data do not belong together, or ONNX and PyTorch differ.
    """
    data = arrays.load(folder)
    model = Model(model_folder)
    test = data.split("test")
    if (model.spec, model.classes) != (data.spec, data.classes):
        raise UserError(f"{model.path} was made for other classes or other examples than {data.folder}: train again")
    if not len(test.examples):
        raise UserError("there is no test image: raise prepare.test_share, or add images")
    probabilities = model.probabilities(test.examples)
    classifier = load_classifier(model.card, model_folder / "weights.safetensors")
    parity = _parity(classifier, test, probabilities, params.parity_tolerance)
    rows = results.test_rows(manifest)
    members = slices.members(rows)
    told = numbers(data, model, probabilities, data.classes, members, params, with_baseline=True)
    told["parity"] = rounded(parity)  # its last bits hang on the number of threads
    with replacing(metrics_path) as fresh_metrics, replacing(details) as fresh:
        fresh.mkdir()
        write_tables(fresh, test.labels, probabilities, data.classes, rows, members)
        names = np.array(data.classes, dtype=object)
        pairs = zip(names[test.labels], names[probabilities.argmax(axis=1)], strict=True)
        curve = metrics.calibration(test.labels, probabilities, params.calibration_bins)
        _write_csv(fresh / "confusion.csv", [{"actual": actual, "predicted": predicted} for actual, predicted in pairs])
        _write_csv(fresh / "calibration.csv", curve)
        _write_csv(fresh / "classes.csv", [{"class": name, **row} for name, row in told["per_class"].items()])
        header = [{"slice": name, **row} for name, row in told["slices"].items()]
        _write_csv(fresh / "slices.csv", header or [{"slice": "all", "accuracy": told["accuracy"]}])
        _write_golden(fresh / "golden", test, probabilities, data, params)
        figures.confusion(fresh / "confusion.png", metrics.confusion(test.labels, probabilities), data.classes)
        figures.curves(fresh / "curves.png", model_folder / "history.csv")
        figures.calibration(fresh / "calibration.png", curve, told)
        losses = metrics.log_losses(test.labels, probabilities)
        wrong = np.flatnonzero(probabilities.argmax(axis=1) != test.labels)
        worst = wrong[np.argsort(-losses[wrong], kind="stable")][: params.worst]
        figures.errors(fresh / "errors.png", test, probabilities, worst, data.classes)
        shown = np.concatenate([worst[:8], np.array(_spread(test.labels, 8), dtype=np.int64)])
        figures.activation(fresh / "activation.png", test, probabilities.argmax(axis=1), shown, data.classes, model)
        write_json(fresh_metrics, told)
    summary = [[name, f"{told[name]:.4f}", f"{told['baseline'][name]:.4f}"] for name in ("accuracy", "macro_f1", "log_loss")]
    print(table(["test", "model", "logistic regression"], summary))
    predicted = np.bincount(probabilities.argmax(axis=1), minlength=len(data.classes)).tolist()
    if warning := metrics.one_class_warning(predicted, data.classes, "test images"):
        print(warning)
    elif told["baseline"]["margin"] < 0:
        print(f"the model is less accurate than the logistic regression on the same pixels. {metrics.WHAT_TO_TRY}")


def _parity(classifier: Classifier, test: Split, probabilities: NDArray[np.float32], tolerance: float) -> float:
    """Return the largest difference of a probability between PyTorch and ONNX; over the tolerance it is an error."""
    images = torch.from_numpy(np.array(test.examples[:_PARITY_IMAGES])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        own = torch.cat([classifier(part).softmax(dim=1) for part in torch.split(images, 256)]).numpy()
    difference = float(np.abs(own - probabilities[:_PARITY_IMAGES]).max())
    if not difference <= tolerance:
        raise UserError(
            f"ONNX and PyTorch differ by {difference:.2g} in a probability, over evaluate.parity_tolerance {tolerance:g}: "
            "an operation of src/model.py is not exported faithfully; do not ship this model"
        )
    return difference


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_golden(folder: Path, test: Split, probabilities: NDArray[np.float32], data: Arrays, params: Evaluate) -> None:
    """Write test examples with the probabilities that a deployment must reproduce."""
    folder.mkdir()
    examples = []
    rows = _spread(test.labels, params.golden)
    for row, name in zip(rows, golden.write(folder, test.examples, rows, data.spec), strict=True):
        values = [rounded(value) for value in probabilities[row]]
        prediction = data.classes[int(probabilities[row].argmax())]
        label = data.classes[int(test.labels[row])]
        examples.append({"file": name, "label": label, "prediction": prediction, "probabilities": values})
    write_json(folder / "golden.json", {"classes": data.classes, "examples": examples, "tolerance": params.parity_tolerance})


def _spread(labels: NDArray[np.int64], count: int) -> list[int]:
    """Choose rows class by class in turn, so that few examples still show every class."""
    ranks = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        ranks[mine] = np.arange(len(mine))
    return [int(row) for row in np.lexsort((labels, ranks))[:count]]


def main() -> None:
    """Parse the command line and evaluate."""
    parser = argparse.ArgumentParser(description="Judge the ONNX model on the test split; write metrics and pictures.")
    parser.add_argument("arrays", type=Path, help="folder that prepare wrote")
    parser.add_argument("manifest", type=Path, help="manifest that prepare wrote")
    parser.add_argument("model", type=Path, help="folder that train wrote")
    parser.add_argument("metrics", type=Path, help="metrics.json to write")
    parser.add_argument("details", type=Path, help="folder to write tables, golden examples and pictures into")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    args = parser.parse_args()
    inputs = [args.arrays, args.manifest, args.model]
    check_outputs(inputs, folders=[args.details], files=[args.metrics])
    arrays.load(args.arrays, section(args.params, "prepare", Prepare).spec)
    params = section(args.params, "evaluate", Evaluate)
    evaluate(args.arrays, args.manifest, args.model, args.metrics, args.details, params)
