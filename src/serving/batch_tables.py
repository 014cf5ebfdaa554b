"""Parquet that batch inference reads: rows of shards in the Hugging Face image layout.

The image of the service has no pyarrow, so this module is imported only where Parquet is read.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from src.core.command import UserError
from src.images.images import UndecodableError
from src.serving.batch_rows import Content, Listing, Piece, check_size, show

_PIECE_BYTES = 8 * 2**20
_BUFFER = 2**20  # bytes of a column that are read at once
_TAKEN = {"path", "shard", "row", "label", "probability", "probabilities", "model_version", "manifest", "error"}


def count(shards: Sequence[Path]) -> list[int]:
    """Return how many rows each shard has, after a look at their columns.

    Raises:
        UserError: a shard cannot be read, has no images, or has other columns than the first.
    """
    rows, first = [], None
    for path in shards:
        with _opened(path) as file:
            schema = file.schema_arrow.remove_metadata()
            _check(path, schema)
            first = first or schema
            if not schema.equals(first):
                raise UserError(
                    f"{path} has other columns than {shards[0]} ({_told(schema)}, not {_told(first)}): read it apart"
                )
            rows.append(int(file.metadata.num_rows))
    return rows


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a shard; damage found now or while it is read is a UserError."""
    if not path.is_file():
        raise UserError(f"{path} is no regular file: restore or remove it")
    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:  # else a whole row group is in memory
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read as Parquet ({reason}): restore or remove it") from None


def _check(path: Path, schema: Any) -> None:
    names = schema.names
    if names.count("image") != 1:
        raise UserError(f"{path} has {names.count('image')} columns `image` (found: {', '.join(names)}): one is needed")
    kind = schema.field("image").type
    if not (_is_bytes(kind) or (pa.types.is_struct(kind) and _is_bytes(_child(kind)))):
        raise UserError(f"{path}: column `image` is {kind}, expected a struct of bytes and path, or binary")
    given = [name for name in renamed(names) if name != "image"]
    if len(set(given)) < len(given):
        raise UserError(f"{path} has columns that would have equal names in the output ({', '.join(given)}): rename them")


def _child(kind: Any) -> Any:
    place = kind.get_field_index("bytes")
    return kind.field(place).type if place >= 0 else pa.null()


def _is_bytes(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _told(schema: Any) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def renamed(names: Sequence[str]) -> list[str]:
    """Return what columns of a shard are called in the output, where `label` is what the model says."""
    return [f"given_{name}" if name in _TAKEN else name for name in names]


def carried(listing: Listing) -> Any:
    """Return the schema of the columns that the rows of the shards have besides the image."""
    with _opened(listing.root / next(listing.entries()).path) as file:
        return pa.schema([field for field in file.schema_arrow.remove_metadata() if field.name != "image"])


def left_out(schema: Any) -> list[str]:
    """Return the columns that only Parquet can hold: those with bytes in them."""
    return [field.name for field in schema if "binary" in str(field.type)]


def pieces(listing: Listing, skip: int, size: int, most: int, names: Sequence[str]) -> Iterator[Piece]:
    """Yield rows of shards in pieces of at most `size`, without the first `skip`; `names` are the columns to carry."""
    passed = 0
    for entry in listing.entries():
        if passed + entry.images > skip:
            with _opened(listing.root / entry.path) as file:
                for row, rows in _rows(file, max(0, skip - passed), size, ["image", *names]):
                    yield _piece(show(entry.path), row, rows, most, names)
        passed += entry.images


def _rows(file: Any, skip: int, size: int, columns: list[str]) -> Iterator[tuple[int, Any]]:
    """Yield the number of the first row, and rows: never over the end of a row group, so that any start cuts alike."""
    row = 0
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        if row + group.num_rows > skip:
            mean = group.total_byte_size / max(1, group.num_rows)
            at_once = int(min(size, max(1, _PIECE_BYTES // max(1, mean))))
            start = row
            for rows in file.iter_batches(at_once, row_groups=[number], columns=columns):
                before = max(0, skip - start)
                if before < len(rows):
                    yield start + before, rows.slice(before)
                start += len(rows)
        row += group.num_rows


def _piece(shard: str, row: int, rows: Any, most: int, names: Sequence[str]) -> Piece:
    where: dict[str, list[Any]] = {"shard": [shard] * len(rows), "row": list(range(row, row + len(rows)))}
    return Piece(where, partial(_contents, rows.column("image"), most), rows.select(names))


def _contents(image: Any, most: int) -> Iterator[Content]:
    contents = image if _is_bytes(image.type) else image.field("bytes")
    for content, there in zip(contents, image.is_valid().to_pylist(), strict=True):  # a null struct hides its children
        known = content.as_py() if there else None
        if known is None:
            yield UndecodableError("no image bytes: this row only names a file; store the bytes in the shard")
        else:
            yield check_size(len(known), most) or known


def to_python(carried: Any) -> dict[str, list[Any]]:
    """Return columns as Python values, under their names in the output."""
    names = renamed(carried.schema.names)
    return {name: _values(column) for name, column in zip(names, carried.columns, strict=True)}


def _values(column: Any) -> list[Any]:
    """Return Python values; text that is not valid UTF-8, which Parquet does not prevent, keeps its bytes as escapes."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return [value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value for value in column.to_pylist()]
