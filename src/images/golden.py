"""Golden examples: images that a deployment must answer as the reviewed model did."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def write(folder: Path, images: NDArray[np.uint8], rows: Sequence[int]) -> list[str]:
    """Write some of the images, as PNG files that a client sends and, in inputs.npy, as the model takes them.

    Returns:
        The names of the PNG files.
    """
    chosen = np.array(images[list(rows)])
    np.save(folder / "inputs.npy", chosen)
    names = [f"{row:06d}.png" for row in rows]
    for name, image in zip(names, chosen, strict=True):
        Image.fromarray(image.squeeze()).save(folder / name)
    return names
