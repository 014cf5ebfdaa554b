"""YOURS. The network, its preprocessing, and how a model is saved and loaded.

To bring your own network: write an `nn.Module` that maps float images (n, channels, height, width), normalised to mean 0
and deviation 1, to logits (n, classes); add a line to NETWORKS; name it in `train.network` of params.yaml. It may have
two methods more: `initialise_from(images)` sees a sample of such images before training starts, and `rate_scales()`
returns {parameter's name: multiple of the learning rate} for what is to learn faster or slower than the rest.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor, nn

from src.training.airbench import Airbench
from src.core.command import UserError
from src.training.shortcut import Shortcut


class Shape(NamedTuple):
    """What a network is built for: images of `size` (height, width) with `channels`, and so many `classes`."""

    size: tuple[int, int]
    channels: int
    classes: int


# ---------------------------------------------------------------------------------------------------------------------
# The networks
# ---------------------------------------------------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut. Names follow torchvision's, so that its weights fit.

    Source: He et al., "Deep Residual Learning for Image Recognition" (2015), basic block.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(Shortcut(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, height, width) to (n, outputs, height / stride, width / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNet(nn.Module):
    """Residual network: a stem, stages that each double the channels and halve the side, the mean, one linear layer.

    Images up to 64 pixels get a 3x3 stem (as in the paper's CIFAR networks), larger ones the 7x7 stem with pooling.
    """

    def __init__(self, shape: Shape, width: int, blocks: Sequence[int]) -> None:
        super().__init__()
        large = min(shape.size) > 64
        kernel, stride = (7, 2) if large else (3, 1)
        self.conv1 = nn.Conv2d(shape.channels, width, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        self.stages = len(blocks)
        outputs = width
        for stage, count in enumerate(blocks):
            inputs, outputs = outputs, width * 2**stage
            layers = [
                ResidualBlock(inputs if i == 0 else outputs, outputs, 2 if i == 0 < stage else 1) for i in range(count)
            ]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(outputs, shape.classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (n, channels, height, width) to logits (n, classes)."""
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.bn2.weight)  # each block starts as its shortcut: Goyal et al. (2017), section 5.1


def small_resnet(shape: Shape, width: int) -> nn.Module:
    """Three stages of one block: 0.17 M parameters at width 24. Trains in seconds on a CPU."""
    return ResNet(shape, width, blocks=(1, 1, 1))


def resnet18(shape: Shape, width: int) -> nn.Module:
    """ResNet-18: 11 M parameters at its own width, 64. Weights with torchvision's names fit it."""
    return ResNet(shape, width, blocks=(2, 2, 2, 2))


def airbench(shape: Shape, width: int) -> nn.Module:
    """The network of the speed record on CIFAR-10: 2.0 M parameters at its own width, 64."""
    return Airbench(*shape, widths=(width, 4 * width, 4 * width))


def airbench_narrow(shape: Shape, width: int) -> nn.Module:
    """The same with half the channels in the middle: for a CPU, where it learns more in the same time."""
    return Airbench(*shape, widths=(width, 2 * width, 4 * width))


NETWORKS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "small_resnet": small_resnet,
    "resnet18": resnet18,
    "airbench": airbench,
    "airbench_narrow": airbench_narrow,
}


# ---------------------------------------------------------------------------------------------------------------------
# The classifier: a network with its preprocessing inside
# ---------------------------------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """A network that normalises for itself, so that training and serving cannot disagree.

    `mean` and `deviation` are those of the training split, one a channel, in grey levels 0..255. `temperature` divides
    the logits; it is fitted after training, so that the probabilities are honest.

    `tta`, test-time augmentation, is the choice of `train.tta`: in evaluation mode the logits are the mean over several
    views of each image, at as many times the cost. In training mode it does nothing.
    """

    mean: Tensor
    deviation: Tensor
    temperature: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], deviation: Sequence[float], tta: str = "none") -> None:
        super().__init__()
        self.network = network
        self.tta = tta
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """Map images in 0..255, (n, channels, height, width) of any type, to logits (n, classes)."""
        if self.training or self.tta == "none":
            return self.plain(images)
        weights, views = zip(*_views(images, self.tta), strict=True)
        logits = self.plain(torch.cat(views))  # one large batch is faster than several small ones
        share = torch.tensor(weights, device=logits.device).view(-1, 1, 1)
        # by its shape, not by chunk(), which would fix the size of the exported model's batch
        return (logits.view(len(views), images.shape[0], -1) * share).sum(dim=0)

    def plain(self, images: Tensor) -> Tensor:
        """Map images in 0..255 to logits (n, classes) without test-time augmentation."""
        logits: Tensor = self.network(self.normalised(images))
        return logits / self.temperature

    def normalised(self, images: Tensor) -> Tensor:
        """Map images in 0..255 of any type to floats of mean 0 and deviation 1 over the training split."""
        return (images.float() - self.mean) / self.deviation


def _views(images: Tensor, tta: str) -> list[tuple[float, Tensor]]:
    """Return what test-time augmentation looks at, each with its weight: (n, channels, height, width).

    flip: the image and its mirror image. flip_shift: as often these two moved by a pixel to the upper left or the lower
    right, borders reflected. Source: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024), section 3.5.
    """
    if tta == "flip":
        return [(1 / 2, images), (1 / 2, images.flip(3))]
    height, width = images.shape[2:]
    padded = F.pad(images.float(), (1, 1, 1, 1), "reflect")
    moved = [padded[:, :, by : by + height, by : by + width] for by in (0, 2)]
    weighted = [(1 / 4, images.float()), *((1 / 8, one) for one in moved)]
    return [*weighted, *((weight, one.flip(3)) for weight, one in weighted)]


class Served(nn.Module):
    """What the ONNX file computes: uint8 images (n, height, width, channels) to probabilities (n, classes)."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 NHWC images to probabilities."""
        return F.softmax(self.classifier(images.permute(0, 3, 1, 2)).float(), dim=1)


def build(
    name: str, shape: Shape, width: int, mean: Sequence[float], deviation: Sequence[float], tta: str = "none"
) -> Classifier:
    """Build a classifier with fresh weights.

    Raises:
        UserError: there is no such network.
    """
    if name not in NETWORKS:
        raise UserError(f"train.network is {name!r}, expected one of {', '.join(NETWORKS)} (see src/model.py)")
    return Classifier(NETWORKS[name](shape, width), mean, deviation, tta)


def save(classifier: Classifier, path: Path) -> None:
    """Write all weights and buffers as safetensors, which hold no code."""
    weights = {name: value.detach().cpu().contiguous() for name, value in classifier.state_dict().items()}
    path.write_bytes(serialize(weights))  # its own way of writing hides a full disk behind an error of its own


def load(card: dict[str, Any], weights: Path) -> Classifier:
    """Rebuild the classifier that a card.json describes, with its weights.

    Raises:
        UserError: the weights are missing, damaged or of another network.
    """
    shape = Shape(tuple(card["size"]), card["channels"], len(card["classes"]))
    blank = [0.0] * shape.channels, [1.0] * shape.channels
    classifier = build(card["network"], shape, card["width"], *blank, card.get("tta", "none"))
    try:
        classifier.load_state_dict(read_weights(weights, "run `dvc repro -f train`, which makes it"))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{weights} does not fit network {card['network']} of src/model.py ({reason}); train again"
        ) from None
    return classifier.eval()


def read_weights(path: Path, advice: str = "correct train.weights in params.yaml") -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: the file is missing or is not safetensors; the text ends with the advice.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: {advice}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no safetensors file ({error}): {advice}") from None
