"""The nouns of batch inference: what is listed, what is read of it, and what the model says of each image."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from src.images.images import UndecodableError

Content = bytes | UndecodableError  # of an image file; or why there is none
Ranked = list[tuple[str, float]]  # labels with probabilities, falling; empty where there is an error


class Entry(NamedTuple):
    """A file: its path below the root, its bytes (-1: it cannot be looked at), when it was changed, and its images."""

    path: str
    size: int
    changed: int  # nanoseconds since 1970
    images: int


@dataclass(frozen=True)
class Listing:
    """All that is to be read. `file` holds one Entry a line, `left_out` counts what lies beside Parquet shards."""

    root: Path
    file: Path
    parquet: bool
    images: int
    sha256: str
    left_out: int

    def entries(self) -> Iterator[Entry]:
        """Yield the files in their order."""
        with self.file.open("rb") as lines:
            for line in lines:
                yield Entry(*json.loads(line))


@dataclass(frozen=True)
class Piece:
    """Images in a row before decoding. `columns` say where each is; `carried` are other columns of a shard's rows."""

    columns: dict[str, list[Any]]
    contents: Callable[[], Iterator[Content]]
    carried: Any = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


class Signature(NamedTuple):
    """Which model it was; every row repeats it."""

    version: str
    manifest: str | None


class Scored(NamedTuple):
    """A piece with what the model says of each image, or why it says nothing."""

    piece: Piece
    ranked: list[Ranked]
    errors: list[str | None]


def check_size(size: int, most: int) -> UndecodableError | None:
    """Say why a file of so many bytes is not looked at: the service would refuse it, too."""
    if size > most:
        return UndecodableError(f"too large: {size / 1e6:.1f} MB is over SERVE_MAX_BODY_MB {most / 1e6:g}")
    return None if size else UndecodableError("empty file: 0 bytes")


def show(name: str) -> str:
    """Return a file name as text that can be stored; it need not be valid Unicode."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
