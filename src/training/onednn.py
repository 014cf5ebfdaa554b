"""Strided 1x1 convolutions of few channels, whose gradient oneDNN gets wrong on a CPU: replace them, or refuse them.

PyTorch computes convolutions on a CPU with oneDNN, which writes past its memory in this gradient (its issue 6035): training
crashes, hangs or learns nonsense, depending on the number of threads and images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.core.command import UserError

_SOUND_CHANNELS = 16  # input channels from which on the gradient is right


class StridedConv1x1(nn.Conv2d):
    """A strided 1x1 convolution without padding. While it learns on a CPU, a slice and a convolution without stride."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, height, width) to (n, outputs, height / stride, width / stride)."""
        learns = torch.is_grad_enabled() and not torch.compiler.is_exporting()
        if learns and x.device.type == "cpu":
            down, across = self.stride
            return F.conv2d(x[:, :, ::down, ::across], self.weight, self.bias)
        return super().forward(x)


def replace(network: nn.Module) -> None:
    """Turn each faulty `nn.Conv2d` into a StridedConv1x1 in place: parameters, names and random numbers stay as they are."""
    for layer in network.modules():
        if type(layer) is nn.Conv2d and _is_faulty(layer) and layer.padding in ((0, 0), "valid"):
            layer.__class__ = StridedConv1x1


def require_sound(network: nn.Module, device: torch.device) -> None:
    """Refuse a layer that learns, whose gradient is wrong there, and which `replace` could not replace.

    Raises:
        UserError: names the layer.
    """
    if device.type != "cpu":
        return
    for name, layer in network.named_modules():
        if (
            isinstance(layer, nn.Conv2d)
            and not isinstance(layer, StridedConv1x1)
            and _is_faulty(layer)
            and layer.weight.requires_grad
        ):
            raise UserError(
                f"layer {name} is a strided 1x1 convolution of {layer.in_channels} input channels: PyTorch crashes in its "
                "gradient on a CPU, or gets it wrong (oneDNN's issue 6035): make it a plain nn.Conv2d without padding, "
                f"which the engine replaces by a sound layer, or give it {_SOUND_CHANNELS} input channels or more"
            )


def _is_faulty(layer: nn.Conv2d) -> bool:
    shape = layer.kernel_size, layer.groups
    return shape == ((1, 1), 1) and layer.stride != (1, 1) and layer.in_channels < _SOUND_CHANNELS
