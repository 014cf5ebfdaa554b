"""What a model's answers on the test split amount to: the numbers of metrics.json, and the table of predictions.

`rows` are the manifest's rows of the test split in the order of its array; `labels` int64 of shape (n,), `probabilities`
float32 of shape (n, classes), both over the same list of class names.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from src import metrics, slices
from src.data import read_manifest
from src.params import Evaluate


def test_rows(manifest: Path) -> pa.Table:
    """Read the manifest's rows of the test split, in the order of its array."""
    rows = read_manifest(manifest)
    return rows.filter(pc.equal(rows.column("split"), "test")).sort_by("index")


def numbers(
    labels: NDArray[np.int64], probabilities: NDArray[np.float32], classes: Sequence[str], rows: pa.Table, params: Evaluate
) -> dict[str, Any]:
    """Return the metrics over all images, by class and by slice."""
    right = probabilities.argmax(axis=1) == labels
    return {
        **metrics.overall(labels, probabilities, params.confidence, params.calibration_bins),
        "images": len(labels),
        "per_class": metrics.per_class(labels, probabilities, classes),
        "slices": metrics.slices(right, slices.members(rows), params.confidence),
    }


def predictions(
    labels: NDArray[np.int64], probabilities: NDArray[np.float32], classes: Sequence[str], rows: pa.Table
) -> pa.Table:
    """Return one row an image: where it is, its label, what was predicted, how surely, at what loss."""
    names = np.array(classes, dtype=object)
    table = rows.select(["path", "row", "digest", "label", "group"])
    for name, values in (
        ("prediction", pa.array(names[probabilities.argmax(axis=1)], type=pa.string())),
        ("confidence", pa.array(probabilities.max(axis=1).round(6))),
        ("log_loss", pa.array(metrics.log_losses(labels, probabilities).round(6))),
    ):
        table = table.append_column(name, values)
    return table
