"""Stage 3, train. Reads the arrays and the passed validation; writes the model, and how fast it was trained.

    python -m src.stages.train out/arrays out/validation.json out/model out/history --checkpoints out/checkpoints

The decoded split lies on the device as uint8 and is augmented there in batches. The weights that are kept are those of
the epoch with the lowest validation loss. A killed run goes on from its last checkpoint when the same command is run.
"""

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from src import arrays, export, model
from src.arrays import Arrays
from src.command import UserError, run
from src.files import check_outputs, read_json, replacing, rounded, sha256, write_json
from src.params import Train, load
from src.training import loop
from src.training.loop import Fitted, fit
from src.training.task import of


def train(folder: Path, validation: Path, out: Path, history: Path, checkpoints: Path, params: Train) -> None:
    """Train on the arrays in `folder`; write the model into `out` and speed, memory and energy into `history`.

    Raises:
        UserError: the data did not pass validation, params ask for what is not there, or the loss is not finite.
    """
    data = arrays.load(folder)
    require_passed(validation, data)
    started = time.monotonic()
    fitted = fit(of(data), params, checkpoints, tags={})
    _write(fitted, data, out, history, params)
    seconds, best = time.monotonic() - started, fitted.best
    print(f"trained in {seconds:.1f} s; best epoch {best['epoch']} of {params.epochs}: {loop.result(best)}")


def require_passed(validation: Path, data: Arrays) -> None:
    """Refuse data that `validate` has not passed, or arrays that are not those it looked at."""
    report = read_json(validation, made_by="validate", keys=("passed", "findings", "manifest_sha256"))
    if not report["passed"]:
        failed = ", ".join(finding["check"] for finding in report["findings"] if finding["level"] == "error")
        raise UserError(f"the data did not pass validation ({failed}; see {validation}): mend it, then run `dvc repro`")
    if report["manifest_sha256"] != data.manifest_sha256:
        raise UserError(f"{validation} speaks of other data than {data.folder} holds: run `dvc repro validate`")


def _write(fitted: Fitted, data: Arrays, out: Path, history: Path, params: Train) -> None:
    classifier = fitted.classifier
    with replacing(out) as fresh, replacing(history) as speeds:
        fresh.mkdir()
        export.write(export.to_onnx(classifier, data.size, data.channels, data.classes), fresh / "model.onnx")
        model.save(classifier, fresh / "weights.safetensors")
        _write_csv(fresh / "history.csv", fitted.history)
        write_json(fresh / "card.json", _card(fitted, data, fresh, params))
        speeds.mkdir()
        _write_csv(speeds / "throughput.csv", fitted.throughput)
        write_json(speeds / "throughput.json", fitted.summary)


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys() if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _card(fitted: Fitted, data: Arrays, folder: Path, params: Train) -> dict[str, Any]:
    """What the model is, for whoever loads it; nothing in it differs between equal runs."""
    classifier, best = fitted.classifier, fitted.best
    return {
        "channels": data.channels,
        "classes": data.classes,
        "epoch": best["epoch"],
        "epochs": params.epochs,
        "fit": data.fit,
        "flops": export.flops(classifier, data.size, data.channels),
        "input": {"name": export.INPUT, "dtype": "uint8", "shape": ["batch", *data.size, data.channels]},
        "manifest_sha256": data.manifest_sha256,
        "model_sha256": sha256(folder / "model.onnx"),
        "network": params.network,
        "output": {"name": export.OUTPUT, "dtype": "float32", "shape": ["batch", len(data.classes)]},
        "parameters": sum(parameter.numel() for parameter in classifier.parameters()),
        "seed": params.seed,
        "size": list(data.size),
        "start_weights_sha256": params.weights_sha256 if params.weights else None,
        "temperature": rounded(float(classifier.temperature)),
        "torch": torch.__version__,
        "validation": {name: rounded(best[f"validation_{name}"]) for name in ("accuracy", "loss")},
        "weights_sha256": sha256(folder / "weights.safetensors"),
        "width": params.width,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the network of params.yaml; write ONNX, weights, card, history.")
    parser.add_argument("arrays", type=Path, help="folder that prepare wrote")
    parser.add_argument("validation", type=Path, help="validation.json that validate wrote")
    parser.add_argument("out", type=Path, help="folder to write the model into")
    parser.add_argument("history", type=Path, help="folder to write speed, memory and energy of each epoch into")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder for the state of a run that is stopped")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    args = parser.parse_args()
    check_outputs([args.arrays, args.validation, args.checkpoints], folders=[args.out, args.history])
    train(args.arrays, args.validation, args.out, args.history, args.checkpoints, load(args.params).train)


if __name__ == "__main__":
    run("train", main)
