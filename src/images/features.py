"""What a simple model sees of an image: its pixels, averaged down."""

import numpy as np
from numpy.typing import NDArray

from src.core.statistics import area_weights

_LONGEST_SIDE = 16  # larger images are averaged down: on CIFAR-10 more images of 16x16 beat fewer of 32x32, 40 % to 35 %
_PIECE = 1024  # images


def count(images: NDArray[np.uint8]) -> int:
    """Return how many features each of these images has."""
    height, width, channels = images.shape[1:]
    return int(min(_LONGEST_SIDE, height) * min(_LONGEST_SIDE, width) * channels)


def features(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Flatten the chosen images to float64 in 0..1, averaged down to the longest side, in bounded pieces."""
    pieces = []
    for start in range(0, len(rows), _PIECE):
        values = images[rows[start : start + _PIECE]].astype(np.float64) / 255
        if max(values.shape[1:3]) > _LONGEST_SIDE:
            down, across = (area_weights(length, min(length, _LONGEST_SIDE)) for length in values.shape[1:3])
            values = np.einsum("ih,nhwc,jw->nijc", down, values, across, optimize=True)
        pieces.append(values.reshape(len(values), -1))
    return np.concatenate(pieces)
