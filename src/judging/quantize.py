"""Make an INT8 model of the last one, and the table that says whether it may be served: `make quantize`.

    python -m src quantize out/arrays out/model out/quantized

Reads the training split (calibration), the test split and model.onnx; no torch. Writes a folder that can be served as it is
(SERVE_MODEL=out/quantized SERVE_PRECISION=int8): the float model with its card, model.int8.onnx, quantization.json and
quantization.md. A verdict `fail` is an answer and no error.
"""

import argparse
import hashlib
import platform
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from src.core import arrays
from src.core.arrays import Split
from src.core.command import UserError, cores, table
from src.core.files import check_outputs, replacing, rounded, write_json
from src.core.inference import Model
from src.judging import precision, quantization, speed
from src.system import hardware
from src.system.params import Params, load

INT8, TABLE, WORDS = "model.int8.onnx", "quantization.json", "quantization.md"
_BATCHES = (1, 32)  # images at once: an idle server's, and a busy one's


def quantize(folder: Path, model_folder: Path, out: Path, params: Params) -> dict[str, Any]:
    """Write the folder `out`; return what quantization.json holds.

    Raises:
        UserError: an input is missing or damaged, model and data do not belong together, or the network has no layer to
            quantise.
    """
    data, plain = arrays.load(folder, params.prepare.spec), Model(model_folder)
    if (plain.spec, plain.classes) != (data.spec, data.classes):
        raise UserError(f"{plain.path} was made for other classes or other examples than {data.folder}: train again")
    for name in ("train", "test"):
        if not len(data.split(name).examples):
            raise UserError(f"{data.folder} has no image in the split {name}: add images, then run dvc repro")
    with replacing(out) as fresh:
        fresh.mkdir()
        for name in ("model.onnx", "card.json"):
            shutil.copyfile(model_folder / name, fresh / name)
        told = _make(fresh, data.split("train"), plain, params)
        write_json(fresh / TABLE, told)  # without it INT8 is not opened
        told |= _measure(fresh, data.split("test"), plain, params)
        write_json(fresh / TABLE, told)
        (fresh / WORDS).write_text(markdown(told))
    return told


def _make(out: Path, train: Split, model: Model, params: Params) -> dict[str, Any]:
    """Write the INT8 model; return what it was made of."""
    rows = quantization.choose(train.labels, params.quantize.calibration_examples)
    started = time.monotonic()
    content = quantization.quantize((out / "model.onnx").read_bytes(), train.examples[rows])
    (out / INT8).write_bytes(content)
    before, after = (out / "model.onnx").stat().st_size, len(content)
    return {
        "model_sha256": model.sha256,
        "int8_sha256": hashlib.sha256(content).hexdigest(),
        "size": {"float_bytes": before, "int8_bytes": after, "ratio": rounded(before / after, 3)},
        "calibration": {
            "activations": "uint8",
            "examples": len(rows),
            "method": quantization.METHOD,
            "seconds": rounded(time.monotonic() - started, 2),
            "split": "train",
            "weight_bits": quantization.WEIGHT_BITS,
        },
        "onnxruntime": onnxruntime.__version__,
    }


def _measure(out: Path, test: Split, plain: Model, params: Params) -> dict[str, Any]:
    """Compare both models on the test split and on this machine; return numbers and verdict."""
    int8 = Model(out, precision="int8")
    answers = [model.probabilities(test.examples) for model in (plain, int8)]
    accuracy = precision.compare(test.labels, answers[0], answers[1], params.gates, params.evaluate.calibration_bins)
    rows = _speed(out, test.examples, params)
    verdict, reasons = precision.judge(accuracy, rows, params.quantize, params.gates)
    return {
        "accuracy": accuracy,
        "speed": {"rows": rows, "slowest": min(rows, key=lambda row: float(row["low"]))},
        "processor": hardware.describe()["processor"] or platform.machine(),
        "limits": params.quantize.model_dump(include={"max_accuracy_drop", "min_speedup"}),
        "verdict": verdict,
        "reasons": reasons,
    }


def _speed(folder: Path, images: NDArray[Any], params: Params) -> list[dict[str, Any]]:
    """Time each way to serve: one image and many, one thread and all."""
    found: list[dict[str, Any]] = []
    for threads in sorted({1, cores()}):
        plain, int8 = (Model(folder, threads, precision=name) for name in ("fp32", "int8"))
        for size in _BATCHES:
            batch = np.resize(np.array(images[:size]), (size, *images.shape[1:]))
            numbers = speed.side_by_side(plain, int8, batch, params.gates.confidence, params.gates.resamples)
            found.append({"batch": size, "threads": threads, **numbers})
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------------------------------

_HEADER = ["measure", "float", "INT8", "difference"]


def measures(told: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of one quantization.json, as rows of text."""
    accuracy, size = told["accuracy"], told["size"]
    plain, int8 = accuracy["float"], accuracy["int8"]
    interval = f"({accuracy['low']:+.2%} to {accuracy['high']:+.2%})"
    changed = f"{accuracy['changed_predictions']:.2%}"
    moved = f"{accuracy['largest_probability_difference']:.3f}"
    return [
        ["accuracy", f"{plain['accuracy']:.2%}", f"{int8['accuracy']:.2%}", f"{accuracy['difference']:+.2%} {interval}"],
        ["log loss", f"{plain['log_loss']:.4f}", f"{int8['log_loss']:.4f}", f"{accuracy['log_loss_rise']:+.4f}"],
        ["calibration error", f"{plain['ece']:.2%}", f"{int8['ece']:.2%}", f"{accuracy['ece_rise']:+.2%}"],
        ["changed predictions", "", "", changed],
        ["largest difference of a probability", "", "", moved],
        *(_speed_row(row) for row in told["speed"]["rows"]),
        ["size, MB", f"{size['float_bytes'] / 1e6:.2f}", f"{size['int8_bytes'] / 1e6:.2f}", f"1/{size['ratio']:.1f}"],
    ]


def _speed_row(row: Mapping[str, Any]) -> list[str]:
    threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
    gain = f"x {row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
    return [f"images/s, batch {row['batch']}, {threads}", f"{row['slow']:,.0f}", f"{row['fast']:,.0f}", gain]


def markdown(told: Mapping[str, Any]) -> str:
    """Return quantization.md."""
    rows = [_HEADER, ["---"] * len(_HEADER), *measures(told)]
    lines = ["# INT8 against float", "", f"Verdict: **{told['verdict']}**", ""]
    lines += [f"- {reason}" for reason in told["reasons"]]
    lines += ["", *(f"| {' | '.join(row)} |" for row in rows), "", machine(told), ""]
    return "\n".join(lines)


def machine(told: Mapping[str, Any]) -> str:
    """Say where and with what it was measured."""
    made = told["calibration"]
    return (
        f"{told['accuracy']['examples']} test images; {made['method']} calibration on {made['examples']} training images, "
        f"{made['weight_bits']}-bit weights. Measured side by side on {told['processor']}, "
        f"ONNX Runtime {told['onnxruntime']}."
    )


def main() -> None:
    """Parse the command line and quantize."""
    parser = argparse.ArgumentParser(description="Make an INT8 model, and compare it with the float one.")
    parser.add_argument("arrays", type=Path, help="folder that prepare wrote")
    parser.add_argument("model", type=Path, help="folder that train wrote")
    parser.add_argument("out", type=Path, help="folder to write, such as out/quantized")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    args = parser.parse_args()
    check_outputs([args.arrays, args.model], folders=[args.out])
    told = quantize(args.arrays, args.model, args.out, load(args.params))
    print(table(_HEADER, measures(told)))
    print(machine(told))
    print(f"verdict {told['verdict']}: {'; '.join(told['reasons'])}")
