"""A model folder with a network that was never trained: it takes as long as a trained one, and needs no data."""

from pathlib import Path

import torch

from src.core.card import Card
from src.core.command import UserError
from src.core.files import sha256, write_json
from src.core.shape import Shape
from src.images.prepare_params import image_spec
from src.training import export
from src.training.classifier import build, networks

_CLASSES = [f"class {number}" for number in range(10)]
_WIDTHS = {"small_resnet": 24}  # that of params.yaml; others get the 64 of the paper


def write(network: str, side: int, width: int | None, folder: Path) -> None:
    """Write `model.onnx` and `card.json`.

    Args:
        network: of src/model.py.
        side: of the square colour images that it takes, in pixels.
        width: of the network; None: its own.
        folder: to write.

    Raises:
        UserError: there is no such network, or ONNX cannot express it.
    """
    if network not in networks():
        raise UserError(f"there is no network {network!r}: expected one of {', '.join(networks())}")
    torch.manual_seed(0)
    spec, width = image_spec((side, side)), width or _WIDTHS.get(network, 64)
    classifier = build(network, Shape.of(spec, len(_CLASSES)), width, [127.0] * 3, [64.0] * 3).eval()
    classifier.get_buffer("temperature").fill_(0.02)  # sharp answers: one image is told from another
    folder.mkdir(parents=True, exist_ok=True)
    export.write(export.to_onnx(classifier, spec, _CLASSES), folder / "model.onnx")
    card = Card(
        classes=_CLASSES,
        flops=export.flops(classifier, spec),
        model_sha256=sha256(folder / "model.onnx"),
        network=network,
        parameters=sum(weights.numel() for weights in classifier.parameters()),
        spec=spec,
        width=width,
    )
    write_json(folder / "card.json", card.to_json())
