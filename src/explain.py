"""Where the network looked: class-activation maps for any network that has feature maps.

Source: Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations" (2020): gradient times activation,
place by place. Where a network ends in a mean and a linear layer it is the classic class-activation map.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from src.model import Classifier

_FINE_ENOUGH = 4  # cells of a side: a coarser map says nothing of where


def activation_maps(classifier: Classifier, images: NDArray[np.uint8], targets: NDArray[Any]) -> NDArray[np.float32] | None:
    """Return how much each pixel spoke for the target class.

    Args:
        classifier: in eval mode, on the CPU.
        images: uint8 of shape (n, height, width, channels).
        targets: class number of each image, shape (n,).

    Returns:
        float32 of shape (n, height, width) in 0..1, or None where the network has no feature maps.
    """
    inputs = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().requires_grad_()
    maps: list[Tensor] = []
    hooks = [module.register_forward_hook(_recorder(maps)) for module in classifier.network.modules()]
    try:
        logits = classifier.plain(inputs)  # mirrored or shifted views would put the map in the wrong place
    finally:
        for hook in hooks:
            hook.remove()
    chosen = _last_fine(maps)
    if chosen is None:
        return None
    score = logits.gather(1, torch.from_numpy(np.asarray(targets))[:, None]).sum()
    gradient = torch.autograd.grad(score, chosen, materialize_grads=True)[0]
    heat = F.relu((gradient * chosen).sum(dim=1, keepdim=True)).detach()
    heat = F.interpolate(heat, size=images.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
    peak = heat.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    return (heat / peak).numpy()


def _recorder(maps: list[Tensor]) -> Any:
    def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.requires_grad:
            maps.append(output)

    return record


def _last_fine(maps: list[Tensor]) -> Tensor | None:
    """Return the deepest map that is still fine enough, else the deepest that has any extent."""
    for least in (_FINE_ENOUGH, 2):
        fine = [found for found in maps if min(found.shape[2:]) >= least]
        if fine:
            return fine[-1]
    return None
