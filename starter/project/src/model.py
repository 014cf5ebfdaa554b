"""YOURS. The networks and their names.

To bring your own network: write an `nn.Module` that maps float images (n, channels, height, width), normalised to mean 0
and deviation 1, to logits (n, classes); add a line to NETWORKS; name it in `train.network` of params.yaml. It may have
two methods more: `initialise_from(images)` sees a sample of such images before training starts, and `rate_scales()`
returns {parameter's name: multiple of the learning rate} for what is to learn faster or slower than the rest.
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from src.core.shape import Shape


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
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

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


NETWORKS: dict[str, Callable[[Shape, int], nn.Module]] = {"small_resnet": small_resnet, "resnet18": resnet18}
