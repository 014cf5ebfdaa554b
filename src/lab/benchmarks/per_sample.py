"""The textbook data set, which the benchmarks measure against: one Pillow image a call, transformed on its own."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset


class PerSample(Dataset[tuple[Tensor, int]]):
    """Uint8 images (n, height, width, 3), each padded, cropped, flipped and sent as float32 (3, height, width)."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], margin: int, scaled: bool) -> None:
        """Take the images, the pixels they are moved by, and whether a sample is normalised or stays in 0..255."""
        self._images, self._labels, self._margin, self._scaled = images, labels, margin, scaled

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        height, width = self._images.shape[1:3]
        image = ImageOps.expand(Image.fromarray(self._images[row]), border=self._margin)
        left, top = (int(torch.randint(2 * self._margin + 1, ())) for _ in range(2))
        image = image.crop((left, top, left + width, top + height))
        if torch.rand(()) < 0.5:
            image = ImageOps.mirror(image)
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float()
        return (values / 255 - 0.5) / 0.25 if self._scaled else values, int(self._labels[row])
