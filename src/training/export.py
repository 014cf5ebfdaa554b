"""Write a classifier as one ONNX file: examples in, probabilities out, the preprocessing inside."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import onnx
import torch
from torch.utils.flop_counter import FlopCounterMode

from src.core.command import UserError
from src.core.shape import Spec
from src.training.classifier import Classifier, Served

OPSET = 20
INPUT, OUTPUT = "images", "probabilities"


def to_onnx(classifier: Classifier, spec: Spec, classes: list[str]) -> onnx.ModelProto:
    """Export with a free batch size; the class names travel in the model's metadata.

    Raises:
        UserError: the network uses something that ONNX cannot express.
    """
    served = Served(classifier).cpu().eval()
    example = _blank(2, spec)
    try:
        with _quiet():
            program = torch.onnx.export(
                served,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
        assert program is not None
    except Exception as error:  # the exporter raises many classes, each with pages of text
        cause: BaseException = error
        while root := cause.__cause__ or cause.__context__:
            cause = root
        reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)[:200]
        raise UserError(
            f"the network of src/model.py cannot be exported to ONNX ({reason}); rewrite that operation"
        ) from None
    return _without_traces(program.model_proto, classes)


def flops(classifier: Classifier, spec: Spec) -> int:
    """Count the floating-point operations of one image, a multiplication and an addition as two, as PyTorch counts them.

    The service decides by it how many processes and threads it takes; test-time augmentation counts.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        Served(classifier).cpu().eval()(_blank(1, spec))
    return int(counter.get_total_flops())


def training_flops(classifier: Classifier, spec: Spec) -> int:
    """Count the operations of one image in a training step, without test-time augmentation.

    Backwards is taken for twice what forwards takes: gradients of weights and of inputs.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        classifier.cpu().eval().plain(_blank(1, spec).permute(0, 3, 1, 2).float())
    return 3 * int(counter.get_total_flops())


def _blank(count: int, spec: Spec) -> torch.Tensor:
    return torch.zeros(count, *spec.shape, dtype=getattr(torch, spec.dtype))


def write(model: onnx.ModelProto, path: Path) -> None:
    """Write the model as a single file."""
    path.write_bytes(model.SerializeToString(deterministic=True))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back torch's own words: deprecations inside its exporter, and pages of tracing where it gives up."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _without_traces(model: onnx.ModelProto, classes: list[str]) -> onnx.ModelProto:
    """Drop the exporter's stack traces: they name this machine's folders and would make equal models differ."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    model.doc_string = ""
    onnx.helper.set_model_props(model, {"classes": json.dumps(classes)})
    return model
