"""A strided 1x1 convolution whose gradient is right on a CPU too: networks of src/model.py use it in their shortcuts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Shortcut(nn.Conv2d):
    """A 1x1 convolution with a stride. While it learns on a CPU from few channels, a slice and a convolution without one.

    oneDNN, with which PyTorch computes there, writes past its memory in the other's gradient (its issue 6035): training
    crashes, hangs or learns nonsense, by the number of threads and images.
    """

    FEWEST = 16  # channels from which on it is right

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, height, width) to (n, outputs, height / stride, width / stride)."""
        learns = torch.is_grad_enabled() and not torch.compiler.is_exporting()
        if learns and self.in_channels < self.FEWEST and x.device.type == "cpu":
            down, across = self.stride
            return F.conv2d(x[:, :, ::down, ::across], self.weight, self.bias)
        return super().forward(x)
