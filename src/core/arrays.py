"""The decoded splits that `prepare` wrote, as later stages see them: memory-mapped uint8 images with their labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from src.core.command import UserError
from src.core.files import read_json


class Rows:
    """Some rows of a memory-mapped array: answers shape, length and indexing as the array would, and copies nothing."""

    dtype = np.dtype(np.uint8)

    def __init__(self, base: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
        self.base, self.rows = base, rows
        self.shape = (len(rows), *base.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Any:
        return self.base[self.rows[key]]


@dataclass(frozen=True)
class Split:
    """`images`: uint8, shape (n, height, width, channels), memory-mapped. `labels`: int64, shape (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def subset(self, rows: NDArray[np.int64]) -> "Split":
        """Return a split of some rows, in their order, that copies no pixel."""
        images: Any = self.images
        chosen: Any = Rows(images.base, images.rows[rows]) if isinstance(images, Rows) else Rows(images, rows)
        return Split(chosen, self.labels[rows])


@dataclass(frozen=True)
class Arrays:
    """What `prepare` says of the arrays: class names in label order, how images were fitted, the manifest's digest."""

    folder: Path
    classes: list[str]
    size: tuple[int, int]
    channels: int
    fit: str
    manifest_sha256: str

    def split(self, name: str) -> Split:
        """Open one split.

        Raises:
            UserError: a file is missing, damaged or of another shape than the card says.
        """
        paths = [self.folder / f"{name}.{part}.npy" for part in ("images", "labels")]
        try:
            images, labels = (np.load(path, mmap_mode="r") for path in paths)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{self.folder}: split {name} cannot be read ({error}); run `dvc repro -f prepare`") from None
        if images.shape[1:] != (*self.size, self.channels) or len(images) != len(labels):
            raise UserError(f"{paths[0]} has shape {images.shape}, not what card.json says; run `dvc repro -f prepare`")
        if labels.dtype != np.int64 or not np.all((labels >= 0) & (labels < len(self.classes))):
            raise UserError(f"{paths[1]} holds other labels than card.json says; run `dvc repro -f prepare`")
        return Split(images, np.asarray(labels))

    def thumbnails(self) -> NDArray[np.uint8]:
        """Open the small grey copies of all images, a manifest row each: uint8 (rows, height, width), memory-mapped.

        Raises:
            UserError: the file is missing or damaged.
        """
        path = self.folder / "thumbnails.npy"
        try:
            return np.asarray(np.load(path, mmap_mode="r"))
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} cannot be read ({error}); run `dvc repro -f prepare`") from None


class Fitted(Protocol):
    """What params ask of the arrays; their section `prepare` has it."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width."""

    @property
    def channels(self) -> int:
        """3 or 1."""

    @property
    def fit(self) -> str:
        """How an image gets that shape."""


def load(folder: Path, params: Fitted | None = None) -> Arrays:
    """Read the card of the arrays in `folder`.

    Args:
        folder: that prepare wrote.
        params: the section `prepare` that the arrays must have been made by; None compares nothing.

    Raises:
        UserError: the card is missing or damaged, or the arrays have another size, channels or fit than `params`.
    """
    card = read_json(folder / "card.json", made_by="prepare", keys=("classes", "size", "channels", "fit", "manifest_sha256"))
    data = Arrays(folder, card["classes"], tuple(card["size"]), card["channels"], card["fit"], card["manifest_sha256"])
    if params:
        pairs = {
            "image_size": (list(data.size), list(params.image_size)),
            "channels": (data.channels, params.channels),
            "fit": (data.fit, params.fit),
        }
        unequal = [f"prepare.{key} {one}, params.yaml says {other}" for key, (one, other) in pairs.items() if one != other]
        if unequal:
            raise UserError(f"{folder} was prepared with {'; '.join(unequal)}: run `dvc repro -f prepare`, then `dvc repro`")
    return data
