"""What batch inference writes: one row an image, as JSON lines or CSV (Parquet is in batch_parquet.py)."""

import csv
import io
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from src.serving.batch_inputs import load_tables
from src.serving.batch_rows import Piece, Ranked, Scored, Signature


class Form(Protocol):
    """A kind of output file."""

    ending: str

    def encode(self, scored: Scored) -> Any:
        """Return rows as `save` takes them."""

    def save(self, encoded: list[Any], path: Path) -> None:
        """Write some rows as a file of their own."""

    def join(self, parts: Sequence[Path], target: Path) -> None:
        """Write the rows of all parts as one file."""


class _Text:
    """Lines of text, with a header or without."""

    header = b""

    def save(self, encoded: list[bytes], path: Path) -> None:
        """Write some rows as a file of their own."""
        path.write_bytes(b"".join(encoded))

    def join(self, parts: Sequence[Path], target: Path) -> None:
        """Write the rows of all parts as one file."""
        with target.open("wb") as file:
            file.write(self.header)
            for path in parts:
                with path.open("rb") as part:
                    shutil.copyfileobj(part, file, 2**20)


class JsonLines(_Text):
    """Each row an object; label and probabilities are as the service tells them."""

    ending = ".jsonl"

    def __init__(self, signature: Signature) -> None:
        self._end = f'"model_version":{_json(signature.version)},"manifest":{_json(signature.manifest)},"error":'

    def encode(self, scored: Scored) -> bytes:
        """Return rows as lines."""
        columns = _columns(scored.piece)
        lines = []
        for values, ranked, error in zip(zip(*columns.values(), strict=True), scored.ranked, scored.errors, strict=True):
            where = _json(dict(zip(columns, values, strict=True)))[:-1]
            lines.append(f"{where},{_prediction(ranked)},{self._end}{_json(error)}}}\n")
        return "".join(lines).encode()


def _prediction(ranked: Ranked) -> str:
    if not ranked:
        return '"label":null,"probability":null,"probabilities":null'
    listed = [{"label": label, "probability": probability} for label, probability in ranked]
    return _json({"label": ranked[0][0], "probability": ranked[0][1], "probabilities": listed})[1:-1]


class Csv(_Text):
    """Each row a line; the second most probable label is in column label_2, and so on."""

    ending = ".csv"

    def __init__(self, signature: Signature, top: int, where: Sequence[str]) -> None:
        """Take what signs each row, how many labels each has, and the names of the columns before them."""
        more = [name for place in range(2, top + 1) for name in (f"label_{place}", f"probability_{place}")]
        self._top, self._signature = top, signature
        names = [*where, "label", "probability", *more, *("model_version", "manifest", "error")]
        self.header = _csv([names])

    def encode(self, scored: Scored) -> bytes:
        """Return rows as lines."""
        return _csv(self._rows(scored))

    def _rows(self, scored: Scored) -> Iterator[list[Any]]:
        columns = [[_cell(value) for value in column] for column in _columns(scored.piece).values()]
        for values, ranked, error in zip(zip(*columns, strict=True), scored.ranked, scored.errors, strict=True):
            pairs: list[str | float | None] = [value for pair in ranked for value in pair]
            pairs = pairs or [None] * (2 * self._top)
            yield [*values, *pairs, *self._signature, error]


def _csv(rows: Any) -> bytes:
    target = io.StringIO()
    csv.writer(target, lineterminator="\n").writerows(rows)
    return target.getvalue().encode()


def _cell(value: Any) -> Any:
    return _json(value) if isinstance(value, dict | list) else value


def _columns(piece: Piece) -> dict[str, list[Any]]:
    if piece.carried is None:
        return piece.columns
    given = load_tables().to_python(piece.carried)
    return {**piece.columns, **{name: [_plain(value) for value in column] for name, column in given.items()}}


def _plain(value: Any) -> Any:
    """Return a value that JSON has: it knows no infinity and no time."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value)


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
