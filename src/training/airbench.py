"""Airbench: the network that learns CIFAR-10 fastest, for any image size, channels and classes.

Source of the idea: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024). A fixed first layer whitens 2x2
patches, three blocks of two convolutions follow, the largest value of each map goes to one linear layer.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.core.shape import Shape

_PATCH = 2  # side of what the first layer whitens
_SMALLEST = 5e-4  # added to a variance: a direction without any would be blown up to noise
_LOGITS = 1 / 9  # keeps the first steps, at high rates, from being sure of anything
_BIAS_RATE = 64.0  # biases of the norms learn at so many times the rate: the norms have no scale to move with
_FORGET = 0.4  # share of the newest batch in a norm's statistics: a short run moves too fast for the usual 0.1


class Whitening(nn.Module):
    """A fixed convolution whose outputs over natural patches are uncorrelated, of variance 1, and come with both signs.

    Until `initialise_from` has seen images it passes the single pixels of a patch on.
    """

    weight: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        inputs = channels * _PATCH**2
        plain = torch.eye(inputs).view(inputs, channels, _PATCH, _PATCH)
        self.register_buffer("weight", torch.cat([plain, -plain]))

    @torch.no_grad()
    def initialise_from(self, images: Tensor) -> None:
        """Take the eigenvectors of the patches' second moments, each divided by the root of its eigenvalue.

        Args:
            images: normalised floats (n, channels, height, width) with at least 2 pixels a side.
        """
        patches = F.unfold(images.float(), _PATCH).transpose(1, 2).flatten(0, 1)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values.clamp(min=0) + _SMALLEST).sqrt()).T
        for filter_ in filters:  # an eigenvector's sign is arbitrary: let no library decide it
            filter_.mul_(filter_[filter_.abs().argmax()].sign())
        filters = filters.view(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, height, width) to (n, 8 * channels, height - 1, width - 1), always in float32.

        The filters take small differences of large neighbours: bf16 would round most of them away.
        """
        if not torch.is_autocast_enabled(x.device.type):
            return F.conv2d(x, self.weight)
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.float(), self.weight).to(torch.get_autocast_dtype(x.device.type))


class Norm(nn.BatchNorm2d):
    """Batch norm that only shifts: the scale of a map is left to the filters of the next layer."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=_FORGET)
        self.register_parameter("weight", None)


class Block(nn.Module):
    """Convolution, pooling, norm, activation; convolution, norm, activation. Small sides are not pooled further."""

    def __init__(self, inputs: int, outputs: int, pool: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(pool)
        self.norm1 = Norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = Norm(outputs)
        for layer in (self.conv1, self.conv2):
            nn.init.dirac_(layer.weight.data[: layer.in_channels])  # passes its input on, before it has learnt anything
            layer.weight.data /= layer.weight.data.flatten(1).norm(dim=1).view(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, height, width) to (n, outputs, height // pool, width // pool)."""
        x = F.gelu(self.norm1(self.pool(self.conv1(x))), approximate="tanh")
        return F.gelu(self.norm2(self.conv2(x)), approximate="tanh")


class Airbench(nn.Module):
    """Whitening, one block for each of `widths`, the largest value of each map, one linear layer."""

    def __init__(self, size: tuple[int, int], channels: int, classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.whiten = Whitening(channels)
        height, width = (side - _PATCH + 1 for side in size)
        self.blocks = len(widths)
        inputs = len(self.whiten.weight)
        for i, outputs in enumerate(widths):
            pool = (min(2, height), min(2, width))
            self.add_module(f"block{i + 1}", Block(inputs, outputs, pool))
            inputs, height, width = outputs, height // pool[0], width // pool[1]
        self.pool = nn.MaxPool2d((height, width))
        self.fc = nn.Linear(inputs, classes, bias=False)

    def initialise_from(self, images: Tensor) -> None:
        """Whiten for images like these: normalised floats (n, channels, height, width) of the training split."""
        self.whiten.initialise_from(images)

    def rate_scales(self) -> dict[str, float]:
        """Return the parameters that learn at another rate than the rest, each with its multiple of it."""
        return {name: _BIAS_RATE for name, _ in self.named_parameters() if name.endswith(".bias")}

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (n, channels, height, width) to logits (n, classes)."""
        x = F.gelu(self.whiten(x), approximate="tanh")
        for i in range(self.blocks):
            x = self.get_submodule(f"block{i + 1}")(x)
        logits: Tensor = self.fc(self.pool(x).flatten(1)) * _LOGITS
        return logits


def airbench(shape: Shape, width: int) -> nn.Module:
    """Build the network of the speed record on CIFAR-10: 2.0 M parameters at its own width, 64."""
    return Airbench(*shape, widths=(width, 4 * width, 4 * width))


def airbench_narrow(shape: Shape, width: int) -> nn.Module:
    """Build it with half the channels in the middle: on a CPU it learns more in the same time."""
    return Airbench(*shape, widths=(width, 2 * width, 4 * width))


NETWORKS: dict[str, Callable[[Shape, int], nn.Module]] = {"airbench": airbench, "airbench_narrow": airbench_narrow}
