"""Checks of a model file that need no code of the commit it comes from: what it may contain, and what it answers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from src.core.files import read_json
from src.core.inference import Model

_DOMAINS = {"", "ai.onnx", "ai.onnx.ml"}
_LARGEST = 2 * 2**30  # bytes; what protobuf can hold


def unsafe(path: Path) -> str | None:
    """Say why an ONNX file must not be served (tensors kept in other files, operators not of ONNX), or None."""
    if path.stat().st_size > _LARGEST:
        return "is larger than an ONNX file can be"
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception:  # protobuf's own class for what it cannot parse
        return "is no ONNX file"
    tensors = (part for part in _parts(model) if part.DESCRIPTOR.name == "TensorProto")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        return "reads its weights from other files"
    foreign = sorted({entry.domain for entry in model.opset_import} - _DOMAINS)
    return f"uses operators that are not ONNX's own ({', '.join(foreign)})" if foreign else None


def _parts(message: Any) -> Iterator[Any]:
    """Yield a protobuf message and every message inside it, also in the branches of `If` and `Loop`."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _parts(part)


def golden_difference(folder: Path, golden: Path) -> tuple[float, float]:
    """Let the model in `folder` answer the golden examples; return the largest difference of a probability, and the limit.

    The difference is infinite where the classes or the number of answers are others.
    """
    model = Model(folder)
    told = read_json(golden / "golden.json", made_by="evaluate", keys=("classes", "examples", "tolerance"))
    answers = model.probabilities(np.load(golden / "inputs.npy"))
    reviewed = np.array([example["probabilities"] for example in told["examples"]])
    if told["classes"] != model.classes or reviewed.shape != answers.shape:
        return float("inf"), told["tolerance"]
    return float(np.abs(answers - reviewed).max()), told["tolerance"]
