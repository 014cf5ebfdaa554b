"""Make an INT8 model of a float one, by ONNX Runtime: static, calibrated on training images. Bytes in, bytes out; no torch.

What is chosen, and why, is in docs/quantization.md. The same model and images give the same bytes.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from src.core.command import UserError

METHOD = "MinMax"  # of onnxruntime.quantization.CalibrationMethod
WEIGHT_BITS = 7  # with 8 a processor without VNNI saturates, and the same file answers otherwise there than elsewhere
_BATCH = 16  # calibration images computed at once
_SEED = 0
_WEIGHTED = ("Conv", "Gemm", "MatMul")
# what takes and gives 8 bits in one kernel; anything else (preprocessing, softmax) stays float
_QUANTIZED = (*_WEIGHTED, "Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Relu")


def choose(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return sorted rows of at most `count` images, drawn class by class in turn: the same ones for the same labels."""
    shuffled = np.random.default_rng(_SEED).permutation(len(labels))
    ranks = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        mine = shuffled[labels[shuffled] == label]
        ranks[mine] = np.arange(len(mine))
    return np.sort(np.lexsort((shuffled, labels, ranks))[:count])


def quantize(model: bytes, images: NDArray[Any]) -> bytes:
    """Return the INT8 model of a float one, with the same input, output and metadata.

    Activations become uint8 a tensor, weights int8 a channel, between QuantizeLinear and DequantizeLinear of ONNX itself
    (QDQ), which ONNX Runtime joins into integer kernels. The last layer, softmax and preprocessing stay float.

    Args:
        model: an ONNX file whose input is examples of shape (n, *spec.shape).
        images: for calibration, in that shape.

    Raises:
        UserError: the network has no layer to quantise, or ONNX Runtime cannot quantise it.
    """
    with tempfile.TemporaryDirectory(prefix="quantize-") as name, _quiet():
        folder = Path(name)
        (folder / "float.onnx").write_bytes(model)
        try:
            prepared = _prepared(folder)
            kept = last_layer(prepared)
            _run(folder, prepared, kept, images)
        except UserError:
            raise
        except Exception as error:  # ONNX Runtime's tools raise whatever they meet
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"ONNX Runtime cannot quantise this network ({reason}): serve it as float (quantize.release: false)"
            ) from None
        return _cleaned(onnx.load(folder / "int8.onnx"), onnx.load_from_string(model))


def _prepared(folder: Path) -> Any:
    """Fold constants, join layers and infer shapes, as the quantiser wants it; every node gets a name."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(folder / "float.onnx", folder / "prepared.onnx", skip_symbolic_shape=True)
    prepared = onnx.load(folder / "prepared.onnx")
    for place, node in enumerate(prepared.graph.node):
        node.name = f"{node.op_type}_{place}"
    onnx.save(prepared, folder / "prepared.onnx")
    return prepared


def last_layer(model: Any) -> list[str]:
    """Return the names of the nodes from the last layer with weights on: they cost nothing, and their 256 steps would show.

    Raises:
        UserError: there is no other layer with weights.
    """
    nodes = list(model.graph.node)
    weighted = [place for place, node in enumerate(nodes) if node.op_type in _WEIGHTED]
    if len(weighted) < 2:
        raise UserError(
            "the network has no convolution or matrix product before its last layer: there is nothing to quantise, serve it "
            "as float (quantize.release: false)"
        )
    return [node.name for node in nodes[weighted[-1] :]]


def _run(folder: Path, prepared: Any, kept: list[str], images: NDArray[Any]) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    quantize_static(
        folder / "prepared.onnx",
        folder / "int8.onnx",
        _Reader(prepared.graph.input[0].name, images),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(_QUANTIZED),
        nodes_to_exclude=kept,
        per_channel=True,
        reduce_range=WEIGHT_BITS == 7,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[METHOD],
    )


class _Reader:
    """Calibration images as onnxruntime.quantization.CalibrationDataReader gives them."""

    def __init__(self, name: str, images: NDArray[Any]) -> None:
        self._batches = ({name: np.ascontiguousarray(images[at : at + _BATCH])} for at in range(0, len(images), _BATCH))

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next batch by the input's name, None after the last."""
        return next(self._batches, None)


def _cleaned(made: Any, source: Any) -> bytes:
    """Keep the domains that are used and the metadata of the float model, and nothing of the tools' own."""
    used = {node.domain for node in made.graph.node}
    kept = [entry for entry in made.opset_import if entry.domain in used]
    del made.opset_import[:]
    made.opset_import.extend(kept)
    del made.metadata_props[:]
    made.metadata_props.extend(source.metadata_props)
    content: bytes = made.SerializeToString(deterministic=True)
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the advice that the tools log about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
