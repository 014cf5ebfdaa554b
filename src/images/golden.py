"""Golden examples: images as PNG at the model's own size, which a deployment must answer as the reviewed model did."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SUFFIX = ".png"


def write(path: Path, image: NDArray[np.uint8]) -> None:
    """Write one image of shape (height, width, channels)."""
    Image.fromarray(image.squeeze()).save(path)


def read(folder: Path, examples: Sequence[Mapping[str, Any]], channels: int) -> NDArray[np.uint8]:
    """Return the images that golden.json's `examples` name, uint8 of shape (n, height, width, channels)."""
    return np.stack([_image(folder / example["file"], channels) for example in examples])


def _image(path: Path, channels: int) -> Any:
    with Image.open(path) as image:
        pixels = np.asarray(image)
    return pixels[..., None] if channels == 1 else pixels
