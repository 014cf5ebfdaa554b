"""The ruler: a few numbers an image, and the distance between two sets of images. Training, service and monitor share it.

Everything here is a pure function of uint8 arrays of shape (n, height, width, channels), channels 1 or 3.
"""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

Images = NDArray[np.uint8]
Floats = NDArray[np.float32]

NAMES = ("brightness", "contrast", "sharpness", "saturation")
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow's mode L
_BINS = 10  # deciles: the usual choice for a population stability index


def luma(images: Images) -> Floats:
    """Return grey values in 0..255, float32 of shape (n, height, width)."""
    if images.shape[-1] == 1:
        return images[..., 0].astype(np.float32)
    # channel by channel: a matrix product rounds as the processor's BLAS does, and the manifest would differ by machine
    red, green, blue = (images[..., channel] * weight for channel, weight in enumerate(_LUMA))
    return np.asarray(red + green + blue, dtype=np.float32)


def measure(images: Images) -> dict[str, Floats]:
    """Measure each image: one float32 array of shape (n,) for each of NAMES, all in 0..1.

    brightness is the mean grey value, contrast its standard deviation, sharpness the mean absolute step between
    neighbouring pixels, saturation the mean spread between an image's colour channels.
    """
    light = luma(images) / np.float32(255)
    steps = [np.abs(np.diff(light, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)]
    # channel by channel: numpy's reduction over an axis of three is ten times as slow
    channels = [images[..., channel] for channel in range(images.shape[-1])]
    spread = reduce(np.maximum, channels) - reduce(np.minimum, channels)
    values = {
        "brightness": light.mean(axis=(1, 2)),
        "contrast": light.std(axis=(1, 2)),
        "sharpness": (steps[0] + steps[1]) / 2,
        "saturation": spread.mean(axis=(1, 2), dtype=np.float32) / 255,
    }
    return {name: value.astype(np.float32) for name, value in values.items()}


def difference_hash(grey: Floats) -> NDArray[np.uint64]:
    """Return a 64-bit perceptual hash of each image of `luma`, shape (n,): near-equal images differ in few bits.

    Source: N. Krawetz, "Kind of Like That" (2013): is each of 8x8 cells brighter than its right neighbour? A step of
    under one grey level counts as none, so that compression noise in flat areas does not flip bits.
    """
    small = area_weights(grey.shape[1], 8) @ grey @ area_weights(grey.shape[2], 9).T
    bits = small[:, :, :-1] > small[:, :, 1:] + 1
    return np.packbits(bits.reshape(len(grey), 64), axis=1).view(">u8").astype(np.uint64).ravel()


def area_weights(pixels: int, cells: int) -> Floats:
    """Weights of shape (cells, pixels) that average a line of pixels into cells, each by its share of overlap."""
    edges = np.linspace(0, pixels, cells + 1)
    left = np.maximum(edges[:-1, None], np.arange(pixels)[None])
    right = np.minimum(edges[1:, None], np.arange(1, pixels + 1)[None])
    overlap = np.clip(right - left, 0, None)
    return np.asarray(overlap / overlap.sum(axis=1, keepdims=True), dtype=np.float32)


class Distribution(BaseModel):
    """What a later comparison needs of one statistic: how many images, decile edges, the share in each bin between them."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    images: int
    mean: float
    deviation: float
    edges: list[float]
    shares: list[float]

    @model_validator(mode="after")
    def _shares_fit_the_edges(self) -> "Distribution":
        if len(self.shares) != len(self.edges) + 1 or self.edges != sorted(self.edges):
            raise ValueError("expected rising edges, and one share more than edges")
        return self


def summarize(values: Mapping[str, NDArray[Any]]) -> dict[str, Distribution]:
    """Reduce each statistic to its distribution."""
    return {name: _summary(np.asarray(column, dtype=np.float64)) for name, column in values.items()}


def _summary(column: NDArray[np.float64]) -> Distribution:
    edges = np.unique(np.round(np.quantile(column, np.linspace(0, 1, _BINS + 1)[1:-1]), 6))
    return Distribution(
        images=len(column),
        mean=round(float(column.mean()), 6),
        deviation=round(float(column.std()), 6),
        edges=edges.tolist(),
        shares=np.round(_shares(column, edges), 6).tolist(),
    )


def _shares(column: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    # the recorded edges are rounded, so the values are too: else a value on an edge falls on either side of it
    bins = np.searchsorted(edges, np.round(column, 6), side="left")
    return np.bincount(bins, minlength=len(edges) + 1) / len(column)


def drift(reference: Mapping[str, Distribution], values: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Return the stability index of each statistic that both sides have: 0 no change, over 0.25 a major shift."""
    distances = {}
    for name in sorted(set(reference) & set(values)):
        then = reference[name]
        now = _shares(np.asarray(values[name], dtype=np.float64), np.asarray(then.edges))
        distances[name] = stability_index(np.asarray(then.shares), now, (then.images, len(values[name])))
    return distances


def stability_index(expected: NDArray[np.float64], actual: NDArray[np.float64], images: tuple[int, int]) -> float:
    """Return the population stability index of two histograms over the same bins, less what chance alone gives.

    It is the sum over the bins of (actual - expected) ln(actual / expected), each bin holding half an image more than it
    does. Between samples of n and m of one population it is (bins - 1) (1/n + 1/m) on average, which is taken off.
    Sources: Siddiqi, Credit Risk Scorecards (2006); Yurdakul, Statistical Properties of Population Stability Index (2018).
    """
    e, a = ((shares * n + 0.5) / (n + 0.5 * len(shares)) for shares, n in zip((expected, actual), images, strict=True))
    index = float(((a - e) * np.log(a / e)).sum())
    chance = (len(a) - 1) * sum(1 / max(1, n) for n in images)
    return max(0.0, index - chance)
