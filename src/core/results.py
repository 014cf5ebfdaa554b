"""What a model's answers on the test split amount to: the numbers of metrics.json, and the table of predictions.

`rows` are the manifest's rows of the test split in the order of its array; `labels` int64 of shape (n,), `probabilities`
float32 of shape (n, classes), both over the same list of class names.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from src.core import metrics, significance
from src.core.files import read_json, rounded
from src.core.manifest import read_manifest

_SPREAD = ("accuracy", "macro_f1", "log_loss", "ece")


def test_rows(manifest: Path) -> pa.Table:
    """Read the manifest's rows of the test split, in the order of its array."""
    rows = read_manifest(manifest)
    return rows.filter(pc.equal(rows.column("split"), "test")).sort_by("index")


def numbers(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    classes: Sequence[str],
    members: Mapping[str, NDArray[np.bool_]],
    confidence: float,
    calibration_bins: int,
) -> dict[str, Any]:
    """Return the metrics over all examples, by class and by slice (`members`: masks), with intervals of `confidence`."""
    right = probabilities.argmax(axis=1) == labels
    return {
        **metrics.overall(labels, probabilities, confidence, calibration_bins),
        "examples": len(labels),
        "per_class": metrics.per_class(labels, probabilities, classes),
        "slices": metrics.slices(right, members, confidence),
    }


def trainings(model: Path, confidence: float) -> dict[str, Any]:
    """Return what the folds and the seeds beside a model amount to: {} where none were trained.

    Each of `folds` and `repeats` has its `runs` by number, `overlap` (held-out over training examples, 0 for seeds), the
    digest of what was scored, and for each metric mean, deviation, low and high.
    """
    told = {}
    for kind in ("folds", "repeats"):
        path = model / f"{kind}.json"
        if path.is_file():
            made = read_json(path, made_by="train", keys=("runs", "split_sha256"))
            if all("examples" in run for run in made["runs"]):  # else an earlier version of this code trained them
                told[kind] = _spread(made, kind, confidence)
    return told


def _spread(made: dict[str, Any], kind: str, confidence: float) -> dict[str, Any]:
    runs = made["runs"]
    if kind == "folds":  # those of the model's own seed: further seeds are trained on the same folds
        runs = [run for run in runs if run["seed"] == runs[0]["seed"]]
    overlap = float(np.mean([run["examples"] / run["training_examples"] for run in runs])) if kind == "folds" else 0.0
    spreads = {name: significance.spread(np.array([run[name] for run in runs]), overlap, confidence) for name in _SPREAD}
    return {
        **{name: {key: rounded(value) for key, value in found._asdict().items()} for name, found in spreads.items()},
        "overlap": rounded(overlap),
        "runs": {str(number): run for number, run in enumerate(runs, start=1)},
        "split_sha256": made["split_sha256"],
    }


def predictions(
    labels: NDArray[np.int64], probabilities: NDArray[np.float32], classes: Sequence[str], rows: pa.Table
) -> pa.Table:
    """Return one row an example: where it is, its label, what was predicted, how surely, at what loss."""
    names = np.array(classes, dtype=object)
    table = rows.select(["path", "row", "digest", "label", "group"])
    for name, values in (
        ("prediction", pa.array(names[probabilities.argmax(axis=1)], type=pa.string())),
        ("confidence", pa.array(probabilities.max(axis=1).round(6))),
        ("log_loss", pa.array(metrics.log_losses(labels, probabilities).round(6))),
    ):
        table = table.append_column(name, values)
    return table


def memberships(members: Mapping[str, NDArray[np.bool_]], rows: pa.Table) -> pa.Table:
    """Return one row an example: its digest, and for each slice whether it belongs to it."""
    return pa.table({"digest": rows.column("digest"), **{name: pa.array(mask) for name, mask in members.items()}})
