"""Augmentation of whole batches, where the images lie: every function takes and returns (n, channels, height, width).

Random numbers come from the generator that is passed in, so a resumed run sees the same batches as an unbroken one.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from src.params import Augment


def pad(images: Tensor, margin: int) -> Tensor:
    """Reflect the borders outwards by `margin` pixels, once for the whole split; uint8 (n, height, width, channels)."""
    if margin == 0:
        return images
    rows, columns = (_reflected(length, margin) for length in images.shape[1:3])
    return images[:, rows][:, :, columns]


def _reflected(length: int, margin: int) -> Tensor:
    """Indices of a line with its borders mirrored, for any margin."""
    period = max(1, 2 * (length - 1))
    positions = torch.arange(-margin, length + margin).abs() % period
    return torch.minimum(positions, period - positions)


def crop(padded: Tensor, rows: Tensor, margin: int, generator: torch.Generator) -> Tensor:
    """Gather `rows` of a padded split, each at a random place: uint8 (n, height, width, channels) without its margin.

    One gather from a strided view of all windows, so that nothing is copied twice.
    """
    if margin == 0:
        return padded[rows]
    n, height, width, channels = padded.shape
    steps = padded.stride()
    shape = (n, 2 * margin + 1, 2 * margin + 1, height - 2 * margin, (width - 2 * margin) * channels)
    windows = padded.as_strided(shape, (steps[0], steps[1], steps[2], steps[1], steps[3]))
    top, left = (_integers(len(rows), 2 * margin + 1, generator, padded.device) for _ in range(2))
    if padded.device.type == "cpu":  # NumPy copies whole lines here, seven times as fast as torch's index
        taken = torch.from_numpy(windows.numpy()[rows.numpy(), top.numpy(), left.numpy()])
    else:
        taken = windows[rows, top, left]
    return taken.view(len(rows), height - 2 * margin, width - 2 * margin, channels)


def apply(images: Tensor, params: Augment, generator: torch.Generator) -> Tensor:
    """Apply every augmentation that is on (but `crop`, which gathers) to float images in 0..255."""
    if params.flip:
        images = flip(images, generator)
    if params.rotate or params.scale:
        images = turn(images, params.rotate, params.scale, generator)
    if params.brightness:
        images = brightness(images, params.brightness, generator)
    if params.contrast:
        images = contrast(images, params.contrast, generator)
    if params.cutout:
        images = cutout(images, params.cutout, generator)
    return images


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half."""
    mirrored = _uniform(len(images), generator, images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def turn(images: Tensor, degrees: float, scale: float, generator: torch.Generator) -> Tensor:
    """Rotate by up to `degrees` either way and zoom by up to the share `scale`, about the centre, borders reflected."""
    n, _, height, width = images.shape
    angle = (2 * _uniform(n, generator, images.device) - 1) * math.radians(degrees)
    zoom = 1 + (2 * _uniform(n, generator, images.device) - 1) * scale
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    zero = torch.zeros_like(cos)
    # grid_sample counts both axes from -1 to 1, so a rotation of an oblong image needs its aspect
    maps = torch.stack([cos, -sin * height / width, zero, sin * width / height, cos, zero], dim=1).view(n, 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def brightness(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Multiply each image by 1 plus or minus up to `share`."""
    factor = 1 + (2 * _uniform(len(images), generator, images.device) - 1) * share
    return (images * factor[:, None, None, None]).clamp(0, 255)


def contrast(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Stretch each image about its own mean by 1 plus or minus up to `share`."""
    factor = 1 + (2 * _uniform(len(images), generator, images.device) - 1) * share
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (mean + (images - mean) * factor[:, None, None, None]).clamp(0, 255)


def cutout(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Paint a square of `side` pixels at a random place in the image's mean colour.

    Source: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout" (2017).
    """
    n, _, height, width = images.shape
    inside = []
    for axis, length in ((2, height), (3, width)):
        centre = _integers(n, length, generator, images.device)[:, None]
        offset = torch.arange(length, device=images.device)[None] - centre + side // 2
        shape = [n, 1, 1, 1]
        shape[axis] = length
        inside.append(((offset >= 0) & (offset < side)).view(shape))
    return torch.where(inside[0] & inside[1], images.mean(dim=(2, 3), keepdim=True), images)


def _uniform(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.rand(count, generator=generator, device=device)


def _integers(count: int, below: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randint(below, (count,), generator=generator, device=device)
