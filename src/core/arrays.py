"""The decoded splits that `prepare` wrote, as later stages see them: memory-mapped examples with their labels."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.core.command import UserError
from src.core.records import Record
from src.core.shape import Spec


class Rows:
    """Some rows of a memory-mapped array: answers shape, length and indexing as the array would, and copies nothing."""

    def __init__(self, base: NDArray[Any], rows: NDArray[np.int64]) -> None:
        self.base, self.rows, self.dtype = base, rows, base.dtype
        self.shape = (len(rows), *base.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Any:
        return self.base[self.rows[key]]


@dataclass(frozen=True)
class Split:
    """`examples`: shape (n, *spec.shape), memory-mapped. `labels`: int64, shape (n,)."""

    examples: NDArray[Any]
    labels: NDArray[np.int64]

    def subset(self, rows: NDArray[np.int64]) -> "Split":
        """Return a split of some rows, in their order, that copies no example."""
        own: Any = self.examples
        chosen: Any = Rows(own.base, own.rows[rows]) if isinstance(own, Rows) else Rows(own, rows)
        return Split(chosen, self.labels[rows])


@dataclass(frozen=True, kw_only=True)
class ArraysCard(Record):
    """card.json beside the arrays: class names in label order, what an example is, and of which manifest they are."""

    classes: list[str]
    spec: Spec
    manifest_sha256: str
    examples: dict[str, int] = field(default_factory=dict)  # of each split


@dataclass(frozen=True, kw_only=True)
class Arrays(ArraysCard):
    """The arrays in `folder`."""

    folder: Path

    def split(self, name: str) -> Split:
        """Open one split.

        Raises:
            UserError: a file is missing, damaged or of another shape than the card says.
        """
        paths = [self.folder / f"{name}.{part}.npy" for part in ("examples", "labels")]
        try:
            examples, labels = (np.load(path, mmap_mode="r") for path in paths)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{self.folder}: split {name} cannot be read ({error}); run `dvc repro -f prepare`") from None
        if (examples.shape[1:], str(examples.dtype)) != (self.spec.shape, self.spec.dtype) or len(examples) != len(labels):
            raise UserError(
                f"{paths[0]} holds {examples.dtype} of shape {examples.shape}, not what card.json says: "
                "run `dvc repro -f prepare`"
            )
        if labels.dtype != np.int64 or not np.all((labels >= 0) & (labels < len(self.classes))):
            raise UserError(f"{paths[1]} holds other labels than card.json says; run `dvc repro -f prepare`")
        return Split(examples, np.asarray(labels))

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


def load(folder: Path, spec: Spec | None = None) -> Arrays:
    """Read the card of the arrays in `folder`.

    Args:
        folder: that prepare wrote.
        spec: that params ask for, and that the arrays must have been made by; None compares nothing.

    Raises:
        UserError: the card is missing or damaged, or the arrays are of another spec.
    """
    card = ArraysCard.read(folder / "card.json", made_by="prepare")
    if spec not in (None, card.spec):
        raise UserError(
            f"{folder} holds {card.spec}, params.yaml asks for {spec}: run `dvc repro -f prepare`, then `dvc repro`"
        )
    return Arrays(folder=folder, **vars(card))
