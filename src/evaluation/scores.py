"""What the answers of an ONNX model on the test split amount to: metrics.json, and a table row for each example."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from src.core import metrics, results
from src.core.arrays import Arrays
from src.core.files import rounded
from src.core.inference import Model
from src.evaluation import baseline
from src.evaluation.evaluate_params import Evaluate


def numbers(
    data: Arrays,
    model: Model,
    probabilities: NDArray[np.float32],
    classes: Sequence[str],
    members: Mapping[str, NDArray[np.bool_]],
    params: Evaluate,
    *,
    with_baseline: bool,
) -> dict[str, Any]:
    """Return the numbers of metrics.json for a model's probabilities over `classes`, those of the data first."""
    test = data.split("test")
    told = results.numbers(test.labels, probabilities, classes, members, params.confidence, params.calibration_bins)
    told["per_class"] = {name: row for name, row in told["per_class"].items() if row["examples"] or name in model.classes}
    told["model_bytes"] = model.path.stat().st_size
    if with_baseline:
        simple = baseline.probabilities(data.split("train"), test, len(data.classes))
        plain = metrics.overall(test.labels, simple, params.confidence, params.calibration_bins)
        told["baseline"] = {**plain, "margin": rounded(told["accuracy"] - plain["accuracy"])}
    return told | results.trainings(model.path.parent, params.confidence)


def write_tables(
    folder: Path,
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    classes: Sequence[str],
    rows: pa.Table,
    members: Mapping[str, NDArray[np.bool_]],
) -> None:
    """Write what judging reads of each test example: predictions.parquet, and in slices.parquet which slices hold it."""
    predictions = results.predictions(labels, probabilities, classes, rows)
    pq.write_table(predictions, folder / "predictions.parquet", compression="zstd")
    pq.write_table(results.memberships(members, rows), folder / "slices.parquet", compression="zstd")
