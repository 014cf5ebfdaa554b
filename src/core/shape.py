"""What an example is, and what a network is built for."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from src.core.records import Record


@dataclass(frozen=True)
class Spec(Record):
    """What a model takes: examples that are arrays of one shape and type.

    `kind` names the folder of src/ that encodes them, `encoding` what that encoder alone reads (how images are fitted).
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]  # of one example; of images: height, width, channels
    encoding: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        how = "".join(f", {name} {value}" for name, value in self.encoding.items())
        return f"{self.kind} of {' x '.join(map(str, self.shape))} {self.dtype}{how}"


class Shape(NamedTuple):
    """What a network is built for: images of `size` (height, width) with `channels`, and so many `classes`."""

    size: tuple[int, int]
    channels: int
    classes: int

    @classmethod
    def of(cls, spec: Spec, classes: int) -> "Shape":
        """Return what a network of images is built for."""
        height, width, channels = spec.shape
        return cls((height, width), channels, classes)
