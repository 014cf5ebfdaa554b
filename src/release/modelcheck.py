"""Checks of a model file that need no code of the commit it comes from: what it may contain, and what it answers."""

import json
import multiprocessing
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from src.core.command import UserError
from src.core.files import read_json
from src.core.inference import Model

_DOMAINS = ("", "ai.onnx")
_LARGEST = 2 * 2**30  # bytes; what protobuf can hold
_EXPORT = "export it with src/training/export.py and have it reviewed"
_SECONDS = 300  # for all golden examples, on one core
_MEMORY = 8 * 2**30  # bytes of address space
_LONGEST = 4096  # bytes that the child may send
_PATIENCE = 10  # seconds until a child that has closed its pipe is gone
# What export writes of layers that PyTorch has, and quantize of these: nothing that repeats or branches by a value (Loop,
# If, Scan), draws random numbers, or holds sequences.
_OPERATORS = """
Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil
Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN
LeakyRelu Less LessOrEqual Log LogSoftmax Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu
Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Sub Sum Tan Tanh ThresholdedRelu Where Xor
AveragePool BatchNormalization Conv ConvTranspose DFT DequantizeLinear Dropout Einsum GRU Gemm GlobalAveragePool
GlobalLpPool GlobalMaxPool GroupNormalization InstanceNormalization LRN LSTM LayerNormalization LpNormalization LpPool
MatMul MaxPool QuantizeLinear RNN
ArgMax ArgMin CumSum ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
ReduceSum ReduceSumSquare TopK
AffineGrid Col2Im Concat Constant ConstantOfShape DepthToSpace Expand EyeLike Flatten Gather GatherElements GatherND
GridSample OneHot Pad Range Reshape Resize ScatterElements ScatterND Shape Size Slice SpaceToDepth Split Squeeze Tile
Transpose Trilu Unsqueeze
"""
OPERATORS = frozenset(_OPERATORS.split())


def unsafe(path: Path) -> str | None:
    """Say why an ONNX file must not be run and what to do, or None: other files' tensors, operators that are not allowed."""
    if path.stat().st_size > _LARGEST:
        return f"is larger than an ONNX file can be: {_EXPORT}"
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception:  # protobuf's own class for what it cannot parse
        return f"is no ONNX file: {_EXPORT}"
    return fault_of(model)


def fault_of(model: onnx.ModelProto) -> str | None:
    """Say what a model holds that is not allowed, and what to do, or None."""
    return next((fault for part in _parts(model) if (fault := _fault(part))), None)


def _fault(part: Any) -> str | None:
    """Say what one message of the file must not hold, and what to do; None where it is allowed."""
    kind = part.DESCRIPTOR.name
    if kind == "TensorProto" and part.data_location == onnx.TensorProto.EXTERNAL:
        return f"reads its weights from other files: {_EXPORT}"
    if kind == "FunctionProto":
        return f"defines a function of its own ({_shown(part.name)}): {_EXPORT}"
    if kind in ("NodeProto", "OperatorSetIdProto") and part.domain not in _DOMAINS:
        node = f", {_shown(part.op_type)} of node {_shown(part.name)}" if kind == "NodeProto" else ""
        return f"uses operators that are not ONNX's own ({_shown(part.domain)}{node}): {_EXPORT}"
    if kind == "NodeProto" and part.op_type not in OPERATORS:
        return (
            f"uses the operator {_shown(part.op_type)} (node {_shown(part.name)}), which is not allowed: write the network "
            "without it, or add it to OPERATORS of src/release/modelcheck.py in a pull request of its own, which is reviewed"
        )
    return None


def _shown(name: str) -> str:
    """Quote a name of the file, which may be long or hold line breaks."""
    return repr(name[:60])


def _parts(message: Any) -> Iterator[Any]:
    """Yield a protobuf message and every message inside it, also in the branches of `If` and `Loop`."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _parts(part)


def bounded_difference(folder: Path, golden: Path, seconds: int = _SECONDS, memory: int = _MEMORY) -> tuple[float, float]:
    """Return `golden_difference`, computed by a process that ends where it takes too long or too much memory.

    Raises:
        UserError: it did, or the model cannot be opened or run; the text says which.
    """
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(theirs, str(folder), str(golden), seconds, memory), daemon=True)
    child.start()
    theirs.close()
    try:
        if not mine.poll(seconds):
            raise UserError(f"{folder / 'model.onnx'} has not answered its golden examples after {seconds} seconds")
        # JSON, not an object: a process that ran an unknown file may have become anything
        answer = json.loads(mine.recv_bytes(_LONGEST))
    except (EOFError, OSError, ValueError):
        child.join(_PATIENCE)
        raise UserError(f"{folder / 'model.onnx'} ended the process that ran it (code {child.exitcode})") from None
    finally:
        child.kill()
        child.join()
        mine.close()
    if isinstance(answer, str):
        raise UserError(answer)
    return float(answer[0]), float(answer[1])


def _answer(pipe: Connection, folder: str, golden: str, seconds: int, memory: int) -> None:
    """Send the two numbers, or the reason why there are none; runs in the child."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # ONNX Runtime's own words, before the sentence
    for kind, limit in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory)):
        with suppress(ValueError, OSError):  # a lower limit stands, or macOS has none
            resource.setrlimit(kind, (limit, limit))
    answer: Any
    try:
        answer = golden_difference(Path(folder), Path(golden), threads=1)
    except Exception as error:  # ONNX Runtime raises classes of its own
        said = (str(error).splitlines() or [type(error).__name__])[0][:300]
        answer = said if isinstance(error, UserError) else f"{Path(folder, 'model.onnx')} cannot be run ({said})"
    pipe.send_bytes(json.dumps(answer).encode())


def golden_difference(folder: Path, golden: Path, threads: int = 0) -> tuple[float, float]:
    """Let the model in `folder` answer the golden examples; return the largest difference of a probability, and the limit.

    The difference is infinite where the classes or the number of answers are others.
    """
    model = Model(folder, threads)
    told = read_json(golden / "golden.json", made_by="evaluate", keys=("classes", "examples", "tolerance"))
    answers = model.probabilities(np.load(golden / "inputs.npy"))
    reviewed = np.array([example["probabilities"] for example in told["examples"]])
    if told["classes"] != model.classes or reviewed.shape != answers.shape:
        return float("inf"), told["tolerance"]
    return float(np.abs(answers - reviewed).max()), told["tolerance"]
