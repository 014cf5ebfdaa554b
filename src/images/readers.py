"""Read data/: class folders, `data/<label>/<file>`, and Parquet shards, which may be mixed; or what src/data.py reads.

A shard has Hugging Face's image layout: `image` {bytes, path}, `label`, optional `group`, optional `split`.
"""

import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from src.core.command import UserError
from src.core.example import Example
from src.images.custom_reader import custom_examples

_SPLIT_WORDS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
                "val": "validation", "dev": "validation", "test": "test", "testing": "test"}  # fmt: skip
_LARGEST_FILE = 512 * 2**20  # bytes; nothing that is one picture is larger
_COLUMNS = ("image", "label", "group", "split")
_PIECE_FILES = 64
_PIECE_ROWS = 256
_PIECE_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Scan:
    """What lies under data/: files and Parquet shards by relative path in a fixed order, and how many images that makes.

    Where src/data.py reads data/, `digest` is of what it yields, in order, and there are no files and shards.
    """

    root: Path
    files: list[str]
    shards: list[str]
    images: int
    digest: str | None = None


def scan(root: Path) -> Scan:
    """List data/ without opening an image.

    Raises:
        UserError: there is no such folder, it holds nothing, a shard is no Parquet file with an image and a label, or
            src/data.py fails.
    """
    if not root.is_dir():
        raise UserError(f"{root} is no folder: run `dvc pull`, or put your images into {root}/<label>/")
    custom = custom_examples(root)
    if custom is not None:
        order = _Order()
        for example in custom:
            order.add(example)
        if not order.count:
            raise UserError(f"src/data.py yields no example of {root}: correct examples() there, or let it return None")
        return Scan(root, [], [], order.count, order.digest)
    paths = sorted(_walk(root, ""))
    shards = [path for path in paths if path.lower().endswith(".parquet")]
    files = [path for path in paths if not path.lower().endswith(".parquet")]
    images = len(files) + sum(_shard_rows(root, shard) for shard in shards)
    if images == 0:
        raise UserError(f"{root} holds no images: put them into {root}/<label>/, or Parquet shards into {root}/")
    return Scan(root, files, shards, images)


class _Order:
    """Counts examples, and digests what they are and in which order they come."""

    def __init__(self) -> None:
        self.count = 0
        self._state = blake2b(digest_size=16)

    def add(self, example: Example) -> None:
        self.count += 1
        facts = (*example[:4], len(example.content or b""), example.row, bool(example.fault))
        self._state.update(repr(facts).encode("utf-8", "backslashreplace"))

    @property
    def digest(self) -> str:
        return self._state.hexdigest()


def _walk(root: Path, folder: str, seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield relative paths of all that is no folder; a link back to a folder above is not followed for ever."""
    here = os.path.realpath(root / folder)
    if here in seen:
        return
    with os.scandir(root / folder) as entries:
        for entry in entries:
            relative = f"{folder}/{entry.name}" if folder else entry.name
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link to itself; as a file it becomes a fault
                is_folder = False
            if is_folder:
                yield from _walk(root, relative, seen | {here})
            else:
                yield relative


def _shard_rows(root: Path, shard: str) -> int:
    """Count the rows of a Parquet shard, after checking that it can be read and has the columns it needs."""
    fault = _file_fault(os.path.join(root, shard), largest=None)
    if fault:
        raise UserError(f"{root / shard} cannot be read as Parquet ({fault}): restore or remove it")
    with _parquet(root / shard) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    found = ", ".join(schema.names) or "none"
    for column in ("image", "label"):
        if column not in schema.names:
            raise UserError(f"{root / shard} has no column `{column}` (found: {found}): rename or add it")
    for column in _COLUMNS:
        if schema.names.count(column) > 1:
            raise UserError(f"{root / shard} has more than one column `{column}` (found: {found}): remove the others")
    kind = schema.field("image").type
    inner = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
    if not (_is_bytes(kind) or (inner >= 0 and _is_bytes(kind.field(inner).type))):
        raise UserError(f"{root / shard}: column `image` is {kind}, expected a struct of bytes and path, or binary")
    return int(rows)


@contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a shard; damage found now or while it is read is a UserError."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read as Parquet ({reason}): restore or remove it") from None


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


class Piece(NamedTuple):
    """A run of examples that is read and decoded together: some files, some rows of a shard, or some of src/data.py.

    `start` is the place of its first example in the scan's order.
    """

    start: int
    root: str
    files: list[str]
    split_folders: bool
    shard: str = ""
    first_row: int = 0
    rows: pa.RecordBatch | None = None
    custom: tuple[Example, ...] = ()

    def __len__(self) -> int:
        return len(self.files) + len(self.custom) if self.rows is None else len(self.rows)


def read(found: Scan) -> Iterator[Piece]:
    """Cut all examples into pieces, in the scan's order; a piece holds few bytes, whatever the size of a shard.

    Raises:
        UserError: a shard is damaged, or src/data.py fails or yields other examples than to `scan`.
    """
    if found.digest is not None:
        yield from _custom_pieces(found)
        return
    # `data/<split>/<label>/<file>`: every top folder is a split's name, `train` among them
    below = [path for path in found.files if "/" in path]
    tops = {path.split("/")[0].lower() for path in below}
    split_folders = (
        tops <= set(_SPLIT_WORDS)
        and "train" in {_SPLIT_WORDS[top] for top in tops}
        and all(path.count("/") >= 2 for path in below)
    )
    root = str(found.root)
    for first in range(0, len(found.files), _PIECE_FILES):
        yield Piece(first, root, found.files[first : first + _PIECE_FILES], split_folders)
    start = len(found.files)
    for shard in found.shards:
        first_row = 0
        with _parquet(found.root / shard) as file:
            columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=0)
            # a piece stays small even when each row is a photograph
            rows = int(min(_PIECE_ROWS, max(1, _PIECE_BYTES // max(1, largest))))
            for batch in file.iter_batches(rows, columns=columns):
                yield Piece(start, root, [], False, shard, first_row, batch)
                start, first_row = start + len(batch), first_row + len(batch)


def _custom_pieces(found: Scan) -> Iterator[Piece]:
    order, examples_read, size = _Order(), list[Example](), 0
    for example in custom_examples(found.root) or ():
        order.add(example)
        if order.count > found.images:
            break
        examples_read.append(example)
        size += len(example.content or b"")
        if len(examples_read) == _PIECE_FILES or size >= _PIECE_BYTES:
            yield Piece(order.count - len(examples_read), str(found.root), [], False, custom=tuple(examples_read))
            examples_read, size = [], 0
    if order.digest != found.digest:
        raise UserError(
            f"src/data.py yields other examples of {found.root} when it is called again ({found.images} at first): yield "
            "the same ones in the same order each time; sort what you list, and draw nothing at random"
        )
    if examples_read:
        yield Piece(order.count - len(examples_read), str(found.root), [], False, custom=tuple(examples_read))


def examples(piece: Piece) -> Iterator[Example]:
    """Yield the examples of a piece."""
    if piece.rows is not None:
        yield from _shard_examples(piece.shard, piece.first_row, piece.rows)
    for path in piece.files:
        folders = path.split("/")[:-1]
        split = _SPLIT_WORDS[folders.pop(0).lower()] if piece.split_folders and folders else None
        label, full = _text(folders[0]) if folders else None, os.path.join(piece.root, path)
        fault = _file_fault(full)
        if not fault and not label:
            fault = "outside a class folder: move it to data/<label>/, or remove it"
        yield Example(path, label, split=split, content=None if fault else full, fault=fault)
    for example in piece.custom:
        yield _custom_example(piece.root, example)


def content(example: Example) -> bytes:
    """Read the bytes of an example that has no fault.

    Raises:
        OSError: its file cannot be read.
    """
    return Path(example.content).read_bytes() if isinstance(example.content, str) else example.content or b""


def _custom_example(root: str, example: Example) -> Example:
    label, (split, fault) = _text(example.label), _given_split(example.split, None)
    fault = example.fault or fault or (None if label else "no label: src/data.py yields none")
    content = example.content
    if content is None and not fault:
        content = os.path.join(root, example.path)
        fault = _file_fault(content)
        if not os.path.exists(content):
            fault = "no such file below data/: src/data.py yields paths relative to it"
    if content == b"":
        fault = fault or "empty image"
    content = None if fault else content
    return Example(example.path, label, _text(example.group), split, content, example.row, fault)


def _file_fault(path: str, largest: int | None = _LARGEST_FILE) -> str | None:
    """Say why a directory entry is not worth opening: opening a pipe would wait for ever."""
    try:
        status = os.stat(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if largest and status.st_size > largest:
        return f"too large: {status.st_size / 2**20:.0f} MiB in one file"
    return None if status.st_size else "empty file"


def _shard_examples(shard: str, first_row: int, batch: pa.RecordBatch) -> Iterator[Example]:
    try:  # the names behind integer labels, which Hugging Face keeps in the schema's metadata
        features = json.loads((batch.schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = [str(name) for name in features["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        names = None
    name_split = _split_of_file_name(shard)
    image = batch.column("image")
    contents = (image if _is_bytes(image.type) else image.field("bytes")).to_pylist()
    present = image.is_valid().to_pylist()  # a null struct hides its children: ask the parent too
    group, split = (
        _values(batch.column(column)) if column in batch.schema.names else [None] * len(batch)
        for column in ("group", "split")
    )
    rows = zip(contents, present, _values(batch.column("label")), group, split, strict=True)
    for row, (content, there, label, group_value, split_value) in enumerate(rows, start=first_row):
        text = _label_text(label, names)
        given, fault = _given_split(split_value, name_split)
        if not fault and text is None:
            fault = "no label"
        elif not fault and (content is None or not there):
            fault = "no image bytes: this row only names a file; store the bytes in the shard"
        elif not fault and not content:
            fault = "empty image"
        yield Example(shard, text, _text(group_value), given, None if fault else content, row, fault)


def _values(column: pa.Array) -> list[Any]:
    """Return Python values; text that is not valid UTF-8, which Parquet does not prevent, keeps its bytes as escapes."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return [value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value for value in column.to_pylist()]


def _label_text(label: object, names: list[str] | None) -> str | None:
    if label is None:
        return None
    if names and isinstance(label, int) and 0 <= label < len(names):
        return names[label]
    if isinstance(label, float) and label.is_integer():
        return str(int(label))  # pandas turns integers with a gap into floats
    return _text(label)


def _text(value: object) -> str | None:
    """Return a name in one form: `Ä` may be one character or, from a Mac, two."""
    return None if value is None else unicodedata.normalize("NFC", str(value))


def _given_split(value: object, name_split: str | None) -> tuple[str | None, str | None]:
    """Return the split that a row was given, and a fault for a word that names none."""
    if value is None:
        return name_split, None
    word = str(value).strip().lower()
    if word in _SPLIT_WORDS:
        return _SPLIT_WORDS[word], None
    return None, f"unknown split {value!r}: expected train, validation or test"


def _split_of_file_name(shard: str) -> str | None:
    """Read Hugging Face's file names: `test.parquet`, `train-00000-of-00002.parquet`, `validation/0000.parquet`."""
    words = re.split(r"[^a-z]+", shard.lower().removesuffix(".parquet"))
    splits = {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}
    return splits.pop() if len(splits) == 1 else None
