"""Augmentation of whole batches, where the images lie: every function works on all images of a batch at once.

Random numbers come from the generator that is passed in, so a resumed run sees the same batches as an unbroken one.
Nothing here asks the device for a value, which would make the host wait for it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from src.images.augment_params import Augment

# ---------------------------------------------------------------------------------------------------------------------
# What gathers: uint8 (n, height, width, channels)
# ---------------------------------------------------------------------------------------------------------------------


def pad(images: Tensor, margin: int) -> Tensor:
    """Reflect the borders outwards by `margin` pixels: (n, height, width, channels), larger by two margins."""
    if margin == 0:
        return images
    n, height, width, channels = images.shape
    mirrored = []  # indices of each axis with its borders mirrored, for any margin
    for length in (height, width):
        period = max(1, 2 * (length - 1))
        positions = torch.arange(-margin, length + margin, device=images.device).abs() % period
        mirrored.append(torch.minimum(positions, period - positions))
    rows, columns = mirrored
    padded = images.new_empty(n, height + 2 * margin, width + 2 * margin, channels)
    inner = padded[:, :, margin:-margin]
    inner.copy_(images.index_select(1, rows))
    for border in (slice(margin), slice(-margin, None)):  # only borders by single pixels, which takes longer than lines
        padded[:, :, border] = inner.index_select(2, columns[border])
    return padded


def crop(padded: Tensor, rows: Tensor, params: Augment, both: bool, generator: torch.Generator) -> Tensor:
    """Gather `rows` of padded images, each from a random place and, with `flip`, mirrored with probability one half.

    Args:
        padded: uint8 (n, height, width, channels), reflected by the margin `crop`; with `both`, images and behind them the
            same ones mirrored, which makes flipping free.
        rows: int64 (m,), of the images that are not mirrored.
        params: whose `crop` and `flip` count here.
        both: whether `padded` has the mirrored images too.
        generator: of places and coins, on the device of the images.

    Returns:
        uint8 (m, height, width, channels) without the margin; equal with and without `both`.
    """
    margin, device = params.crop, padded.device
    top, left = (
        torch.randint(2 * margin + 1, (len(rows),), generator=generator, device=device) if margin else None for _ in range(2)
    )
    mirrored = _uniform(len(rows), generator, device) < 0.5 if params.flip else None
    if mirrored is not None and both:
        rows = rows + mirrored * (len(padded) // 2)
        left = None if left is None else torch.where(mirrored, 2 * margin - left, left)
    taken = padded.index_select(0, rows) if top is None or left is None else _windows(padded, rows, top, left, margin)
    return taken if mirrored is None or both else torch.where(mirrored[:, None, None, None], taken.flip(2), taken)


def _windows(padded: Tensor, rows: Tensor, top: Tensor, left: Tensor, margin: int) -> Tensor:
    """Gather once from a strided view of all windows, so that nothing is copied twice."""
    n, height, width, channels = padded.shape
    steps = padded.stride()
    shape = (n, 2 * margin + 1, 2 * margin + 1, height - 2 * margin, (width - 2 * margin) * channels)
    windows = padded.as_strided(shape, (steps[0], steps[1], steps[2], steps[1], steps[3]))
    if padded.device.type == "cpu":  # NumPy copies whole lines here, seven times as fast as torch's index
        taken = torch.from_numpy(windows.numpy()[rows.numpy(), top.numpy(), left.numpy()])
    else:
        taken = windows[rows, top, left]
    return taken.view(len(rows), height - 2 * margin, width - 2 * margin, channels)


# ---------------------------------------------------------------------------------------------------------------------
# What changes single images: (n, channels, height, width)
# ---------------------------------------------------------------------------------------------------------------------


def apply(images: Tensor, params: Augment, generator: torch.Generator) -> Tensor:
    """Apply every augmentation of single images that is on, but `crop` and `flip`, which gather.

    Args:
        images: uint8 or float in 0..255, (n, channels, height, width).
        params: how strong each is.
        generator: on the device of the images.

    Returns:
        Float images in 0..255, or the images themselves where nothing is on.
    """
    if not changes_pixels(params):
        return images
    images = images.float()
    if params.rotate or params.scale:
        images = turn(images, params.rotate, params.scale, generator)
    if params.brightness:
        images = brightness(images, params.brightness, generator)
    if params.contrast:
        images = contrast(images, params.contrast, generator)
    if params.cutout:
        images = cutout(images, params.cutout, generator)
    if params.erase:
        images = erase(images, params.erase, generator)
    return images


def changes_pixels(params: Augment) -> bool:
    """Tell whether `apply` has anything to do."""
    return any((params.rotate, params.scale, params.brightness, params.contrast, params.cutout, params.erase))


def turn(images: Tensor, degrees: float, scale: float, generator: torch.Generator) -> Tensor:
    """Rotate by up to `degrees` either way and zoom by up to the share `scale`, about the centre, borders reflected."""
    n, _, height, width = images.shape
    angle = (2 * _uniform(n, generator, images.device) - 1) * math.radians(degrees)
    zoom = 1 + (2 * _uniform(n, generator, images.device) - 1) * scale
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    # where each pixel comes from, either axis counted from -1 to 1: what affine_grid returns, whose product of matrices
    # took seven times as long for 32x32 on a CPU
    x, y = ((2 * torch.arange(length, device=cos.device) + 1) / length - 1 for length in (width, height))
    grid = torch.empty(n, height, width, 2, device=cos.device)
    aspect = height / width  # either axis has its own unit, so a rotation of an oblong image needs it
    torch.add((cos[:, None] * x)[:, None], (-sin[:, None] * aspect * y)[:, :, None], out=grid[..., 0])
    torch.add((sin[:, None] / aspect * x)[:, None], (cos[:, None] * y)[:, :, None], out=grid[..., 1])
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
    """Paint a square of `side` pixels, its centre at a random place, in the image's mean colour.

    Source: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout" (2017).
    """
    length = torch.full((len(images),), float(side), device=images.device)
    inside = _rectangle(images, length, length, True, generator)
    return torch.where(inside, images.mean(dim=(2, 3), keepdim=True), images)


def erase(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Fill a rectangle of 2 to 33 % of the image, sides from 0.3 to 3.3, wholly inside, with random noise.

    Source: Zhong et al., "Random Erasing Data Augmentation" (2017), algorithm 1; where it draws again what does not fit
    into the image, this draws among the aspects that do.
    """
    n, _, height, width = images.shape
    chosen = _uniform(n, generator, images.device) < probability
    share = 0.02 + 0.31 * _uniform(n, generator, images.device)
    least = (share * height / width).clamp(min=0.3)  # height to width of a rectangle as wide as the image
    most = torch.maximum((height / width / share).clamp(max=1 / 0.3), least)  # and of one as high
    aspect = least * (most / least) ** _uniform(n, generator, images.device)
    area = share * height * width
    high, wide = (area * aspect).sqrt().round().clamp(1, height), (area / aspect).sqrt().round().clamp(1, width)
    inside = _rectangle(images, high, wide, False, generator) & chosen[:, None, None, None]
    return torch.where(inside, 255 * torch.rand(images.shape, generator=generator, device=images.device), images)


# ---------------------------------------------------------------------------------------------------------------------
# What mixes the images of a batch, and their labels likewise
# ---------------------------------------------------------------------------------------------------------------------


def mix(images: Tensor, labels: Tensor, classes: int, params: Augment, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mix each image of a batch with the one before it where `mixup` or `cutmix` is on; a batch is in random order.

    Where both are on, each batch draws one of them.

    Args:
        images: uint8 or float in 0..255, (n, channels, height, width).
        labels: int64 (n,).
        classes: how many there are.
        params: whose `mixup` and `cutmix` are the alphas of the Beta distributions that the shares come from.
        generator: on the device of the images.

    Returns:
        Float images, and float targets (n, classes) whose rows sum to 1; images and labels as they came where both are off.
    """
    if not (params.mixup or params.cutmix):
        return images, labels
    if not params.cutmix:
        kept = mixup(images, params.mixup, generator)
    elif not params.mixup:
        kept = cutmix(images, params.cutmix, generator)
    else:  # the coin is tossed on the device, where both are made: neither costs much
        coin = _uniform(1, generator, images.device) < 0.5
        kept = torch.where(coin, mixup(images, params.mixup, generator), cutmix(images, params.cutmix, generator))
    own = kept.mean(dim=(1, 2, 3))[:, None]
    images, targets = images.float(), F.one_hot(labels, classes).float()
    return torch.lerp(images.roll(1, 0), images, kept), torch.lerp(targets.roll(1, 0), targets, own)


def mixup(images: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """Draw how much of itself each image keeps, alike in all its pixels: float (n, 1, 1, 1).

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018), equation 1.
    """
    return _beta(len(images), alpha, generator, images.device)[:, None, None, None]


def cutmix(images: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """Draw which pixels each image keeps: float (n, 1, height, width), 0 in a rectangle of the image's aspect, else 1.

    Its centre is anywhere and its area the drawn share, less where it reaches over the border: labels go by what is left.
    Source: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers" (2019), equation 2.
    """
    n, _, height, width = images.shape
    side = (1 - _beta(n, alpha, generator, images.device)).sqrt()
    return (~_rectangle(images, (height * side).round(), (width * side).round(), True, generator)).float()


def _rectangle(images: Tensor, high: Tensor, wide: Tensor, over: bool, generator: torch.Generator) -> Tensor:
    """Place a rectangle of `high` x `wide` whole pixels, float (n,) each, in every image: bool (n, 1, height, width).

    It lies anywhere inside, or, if it may reach `over` the border, has its centre anywhere.
    """
    n, _, *lengths = images.shape
    inside = []
    for axis, length, extent in zip((2, 3), lengths, (high, wide), strict=True):
        place = _uniform(n, generator, images.device)
        first = (place * length).floor() - (extent / 2).floor() if over else (place * (length - extent + 1)).floor()
        offset = torch.arange(length, device=images.device) - first[:, None]
        shape = [n, 1, 1, 1]
        shape[axis] = length
        inside.append(((offset >= 0) & (offset < extent[:, None])).view(shape))
    return inside[0] & inside[1]


def _beta(count: int, alpha: float, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw from Beta(alpha, alpha) as one of two gamma variables' share of their sum: float32 (count,).

    By logarithms, as both are zero in any floating point for small alphas: gamma(a) = gamma(a + 1) * u ** (1 / a), of
    Marsaglia and Tsang, "A Simple Method for Generating Gamma Variables" (2000), section 6.
    """
    shapes = torch.full((2, count), alpha + 1, dtype=torch.float64, device=device)
    larger = torch._standard_gamma(shapes, generator=generator)  # noqa: SLF001 - torch.distributions takes no generator
    power = torch.rand(2, count, dtype=torch.float64, generator=generator, device=device).log() / alpha
    first, second = larger.log() + power
    return torch.sigmoid(first - second).float()


def _uniform(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.rand(count, generator=generator, device=device)
