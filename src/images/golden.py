"""Golden examples: images that a deployment must answer as the reviewed model did."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.core.shape import Spec
from src.images.images import encode


def write(folder: Path, examples: NDArray[np.uint8], rows: Sequence[int], spec: Spec) -> list[str]:
    """Write some of the images, as PNG files that a client sends and, in inputs.npy, as `encode` makes of these files.

    Returns:
        The names of the PNG files.
    """
    names = [f"{row:06d}.png" for row in rows]
    for name, row in zip(names, rows, strict=True):
        Image.fromarray(np.squeeze(examples[row])).save(folder / name)
    encoded = [encode((folder / name).read_bytes(), spec, math.prod(spec.shape))[0] for name in names]
    np.save(folder / "inputs.npy", np.array(encoded))
    return names
