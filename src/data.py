"""YOURS. What one example is: where it lies under data/, how its bytes become pixels, and what the manifest says of it.

Two forms are read and may be mixed: class folders (`data/<label>/<file>`) and Parquet shards in the Hugging Face image
layout (`image` {bytes, path}, `label`, optional `group`, optional `split`). For another form change `scan`, `read` and
`examples`; all else, the service included, only calls `decode` and `fit`.
"""

import io
import json
import os
import re
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from src.command import UserError

Pixels = NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
SPLITS = ("train", "validation", "test")
_SPLIT_WORDS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
                "val": "validation", "dev": "validation", "test": "test", "testing": "test"}  # fmt: skip
_LARGEST_FILE = 512 * 2**20  # bytes; nothing that is one picture is larger
_PIECE_FILES = 64
_PIECE_ROWS = 256
_PIECE_BYTES = 8 * 2**20

# One row an image, the faulty ones too. `split` and `index` say where its pixels are; both are null when it is left out.
MANIFEST = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),  # relative to data/
        pa.field("row", pa.int64(), nullable=False),  # in the Parquet shard; -1 for a file
        pa.field("label", pa.string()),
        pa.field("group", pa.string()),
        pa.field("given_split", pa.string()),
        pa.field("width", pa.int32()),  # of the original, upright
        pa.field("height", pa.int32()),
        pa.field("mode", pa.string()),
        pa.field("format", pa.string()),
        pa.field("digest", pa.string()),  # of the upright pixels at full size: the same image in another file has the same
        pa.field("perceptual_hash", pa.uint64()),
        pa.field("brightness", pa.float32()),
        pa.field("contrast", pa.float32()),
        pa.field("sharpness", pa.float32()),
        pa.field("saturation", pa.float32()),
        pa.field("fault", pa.string()),
        pa.field("duplicate_of", pa.string()),
        pa.field("split", pa.string()),
        pa.field("index", pa.int64()),
    ]
)


class UndecodableError(Exception):
    """An image that cannot become pixels; the text says why, without a path."""


class Example(NamedTuple):
    """One image before decoding. `content` is its bytes, or a path to read them from; `fault` says why there is none."""

    path: str
    row: int
    label: str | None
    group: str | None
    given_split: str | None
    content: bytes | str | None
    fault: str | None


class Decoded(NamedTuple):
    """An upright RGB image, uint8 of shape (height, width, 3), and what its file was."""

    pixels: Pixels
    mode: str
    format: str


# ---------------------------------------------------------------------------------------------------------------------
# Reading data/
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """What lies under data/: files and Parquet shards by relative path in a fixed order, and how many images that makes."""

    root: Path
    files: list[str]
    shards: list[str]
    images: int


def scan(root: Path) -> Scan:
    """List data/ without opening an image.

    Raises:
        UserError: there is no such folder, it holds nothing, or a shard is no Parquet file with an image and a label.
    """
    if not root.is_dir():
        raise UserError(f"{root} is no folder: run `dvc pull`, or put your images into {root}/<label>/")
    paths = sorted(_walk(root, ""))
    shards = [path for path in paths if path.lower().endswith(".parquet")]
    files = [path for path in paths if not path.lower().endswith(".parquet")]
    images = len(files) + sum(_shard_rows(root, shard) for shard in shards)
    if images == 0:
        raise UserError(f"{root} holds no images: put them into {root}/<label>/, or Parquet shards into {root}/")
    return Scan(root, files, shards, images)


def _walk(root: Path, folder: str, seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield relative paths of all that is no folder; a link back to a folder above is not followed for ever."""
    here = os.path.realpath(root / folder)
    if here in seen:
        return
    with os.scandir(root / folder) as entries:
        for entry in entries:
            relative = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                yield from _walk(root, relative, seen | {here})
            else:
                yield relative


def _shard_rows(root: Path, shard: str) -> int:
    """Count the rows of a Parquet shard, after checking that it can be read and has the columns it needs."""
    try:
        with pq.ParquetFile(root / shard) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{root / shard} cannot be read as Parquet ({reason}): restore or remove it") from None
    names = schema.names
    for column in ("image", "label"):
        if column not in names:
            found = ", ".join(names) or "none"
            raise UserError(f"{root / shard} has no column `{column}` (found: {found}): rename or add it")
    kind = schema.field("image").type
    if not (_is_bytes(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)):
        raise UserError(f"{root / shard}: column `image` is {kind}, expected a struct of bytes and path, or binary")
    return int(rows)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


class Piece(NamedTuple):
    """A run of examples that is read and decoded together: some files, or some rows of a shard.

    `start` is the place of its first example in the scan's order.
    """

    start: int
    root: str
    files: list[str]
    split_folders: bool
    shard: str = ""
    first_row: int = 0
    rows: pa.RecordBatch | None = None

    def __len__(self) -> int:
        return len(self.files) if self.rows is None else len(self.rows)


def read(found: Scan) -> Iterator[Piece]:
    """Cut all examples into pieces, in the scan's order; a piece of a shard holds few bytes, whatever the shard's size."""
    split_folders = _has_split_folders(found.files)
    root = str(found.root)
    for first in range(0, len(found.files), _PIECE_FILES):
        yield Piece(first, root, found.files[first : first + _PIECE_FILES], split_folders)
    start = len(found.files)
    for shard in found.shards:
        first_row = 0
        with pq.ParquetFile(found.root / shard) as file:
            columns = [name for name in ("image", "label", "group", "split") if name in file.schema_arrow.names]
            for batch in file.iter_batches(_rows_of_a_piece(file), columns=columns):
                yield Piece(start, root, [], False, shard, first_row, batch)
                start, first_row = start + len(batch), first_row + len(batch)


def _rows_of_a_piece(file: pq.ParquetFile) -> int:
    """So many rows that a piece stays small even when each is a photograph."""
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=0)
    return int(min(_PIECE_ROWS, max(1, _PIECE_BYTES // max(1, largest))))


def examples(piece: Piece) -> Iterator[Example]:
    """Yield the examples of a piece."""
    if piece.rows is not None:
        yield from _shard_examples(piece.shard, piece.first_row, piece.rows)
    for path in piece.files:
        yield _file_example(Path(piece.root), path, piece.split_folders)


def _has_split_folders(files: list[str]) -> bool:
    """True for `data/<split>/<label>/<file>`: every top folder is a split's name, `test` among them."""
    tops = {path.split("/")[0].lower() for path in files if "/" in path}
    deep = all(path.count("/") >= 2 for path in files if "/" in path)
    return bool(tops) and deep and tops <= set(_SPLIT_WORDS) and "train" in {_SPLIT_WORDS[top] for top in tops}


def _file_example(root: Path, path: str, split_folders: bool) -> Example:
    folders = path.split("/")[:-1]
    split = _SPLIT_WORDS[folders.pop(0).lower()] if split_folders and folders else None
    label = folders[0] if folders else None
    full = os.path.join(root, path)
    fault = _file_fault(full) or (None if label else "outside a class folder: move it to data/<label>/, or remove it")
    return Example(path, -1, label, None, split, None if fault else full, fault)


def _file_fault(path: str) -> str | None:
    """Say why a directory entry is not worth opening: opening a pipe would wait for ever."""
    try:
        status = os.stat(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_size > _LARGEST_FILE:
        return f"too large: {status.st_size / 2**20:.0f} MiB in one file"
    return None if status.st_size else "empty file"


def _shard_examples(shard: str, first_row: int, batch: pa.RecordBatch) -> Iterator[Example]:
    names = _class_names(batch.schema)
    name_split = _split_of_file_name(shard)
    image = batch.column("image")
    contents = (image if _is_bytes(image.type) else image.field("bytes")).to_pylist()
    present = image.is_valid().to_pylist()  # a null struct hides its children: ask the parent too
    group, split = (_optional(batch, column) for column in ("group", "split"))
    rows = zip(contents, present, batch.column("label").to_pylist(), group, split, strict=True)
    for row, (content, there, label, group_value, split_value) in enumerate(rows, start=first_row):
        text = _label_text(label, names)
        given, fault = _given_split(split_value, name_split)
        fault = fault or _row_fault(content if there else None, text)
        yield Example(shard, row, text, _text(group_value), given, None if fault else content, fault)


def _optional(batch: pa.RecordBatch, column: str) -> list[Any]:
    return batch.column(column).to_pylist() if column in batch.schema.names else [None] * len(batch)


def _row_fault(content: bytes | None, label: str | None) -> str | None:
    if label is None:
        return "no label"
    if content is None:
        return "no image bytes: this row only names a file; store the bytes in the shard"
    return None if content else "empty image"


def _class_names(schema: pa.Schema) -> list[str] | None:
    """Read the names behind integer labels, which Hugging Face keeps in the schema's metadata."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        names = info["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _label_text(label: object, names: list[str] | None) -> str | None:
    if label is None:
        return None
    if names and isinstance(label, int) and 0 <= label < len(names):
        return names[label]
    if isinstance(label, float) and label.is_integer():
        return str(int(label))  # pandas turns integers with a gap into floats
    return _text(label)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


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


# ---------------------------------------------------------------------------------------------------------------------
# From bytes to pixels. Training and serving both come through here, so they cannot differ.
# ---------------------------------------------------------------------------------------------------------------------


def decode(content: bytes, max_pixels: int) -> Decoded:
    """Decode an image file to upright RGB, uint8 of shape (height, width, 3); of an animation, the first frame.

    Transparent pixels are laid on white. 16-bit values keep their high byte. Colour profiles are not applied.

    Raises:
        UndecodableError: no image, a format outside FORMATS, a damaged file, or over `max_pixels` (then nothing was
            decoded).
    """
    quick = _decode_plain_jpeg(content, max_pixels)
    if quick is not None:
        return quick
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; what matters here is whether pixels come out
            return _decode_any(content, max_pixels)
    except UndecodableError:
        raise
    except Exception as error:  # Pillow's readers raise almost any class on a damaged file
        raise UndecodableError(_reason(content, error)) from None


def _decode_plain_jpeg(content: bytes, max_pixels: int) -> Decoded | None:
    """Decode a JPEG that needs no rotation and no colour conversion, three times as fast as Pillow and equal to it.

    Both use libjpeg-turbo; a test holds them equal bit for bit. None: leave it to Pillow.
    """
    if content[:2] != b"\xff\xd8" or b"\xff\xe1" in content[:65536]:  # APP1: EXIF or XMP, perhaps a rotation
        return None
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(content)
        if colour not in ("YCbCr", "Gray") or width * height > max_pixels:
            return None
        return Decoded(simplejpeg.decode_jpeg(content), "L" if colour == "Gray" else "RGB", "JPEG")
    except ValueError:
        return None


def _decode_any(content: bytes, max_pixels: int) -> Decoded:
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the check below is stricter and has our message
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise UndecodableError(_too_large(width, height, max_pixels))
            image.load()
            kind, mode = image.format or "", image.mode
            upright = _upright(image)
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return Decoded(np.asarray(_to_rgb(upright)), mode, "JPEG" if kind == "MPO" else kind)


def _too_large(width: int, height: int, max_pixels: int) -> str:
    return f"too large: {width}x{height} pixels is over prepare.max_megapixels {max_pixels / 1e6:g}"


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing of the pixels, which are whole
        return image.copy()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_8_bit(np.asarray(image), image.mode))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        solid = image.convert("RGBA")
        white = Image.new("RGBA", solid.size, "white")
        return Image.alpha_composite(white, solid).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(values: NDArray[Any], mode: str) -> Pixels:
    """Scale 16-bit integers (which Pillow may hold in 32) and floats in 0..1 to uint8; Pillow itself would clip them."""
    low, high = values.min(), values.max()
    if mode == "F":
        if not (low >= 0 and high <= 1):  # false for NaN as well
            raise UndecodableError(f"floating-point pixels from {low:g} to {high:g}: expected 0 to 1; convert to 8 or 16 bit")
        return np.round(values * 255).astype(np.uint8)
    if mode == "I" and 0 <= low and high <= 255:
        return values.astype(np.uint8)  # 8-bit values in a 32-bit file
    if low < 0 or high > 65535:
        raise UndecodableError(f"32-bit pixels from {low} to {high}: expected 16 bits; convert to 8 or 16 bit")
    return (values >> 8).astype(np.uint8)


def _reason(content: bytes, error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        if _looks_like_an_image(content):
            return "corrupt image: its header cannot be read"
        return f"not an image of {', '.join(FORMATS)}"
    if isinstance(error, MemoryError):
        return "corrupt image: it asks for more memory than there is"
    text = " ".join(str(error).split())[:120]
    return f"corrupt image: {text or type(error).__name__}"


def _looks_like_an_image(content: bytes) -> bool:
    magic = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"GIF8")
    return content.startswith(magic) or content[8:12] == b"WEBP"


def fit(pixels: Pixels, size: tuple[int, int], channels: int, how: str) -> Pixels:
    """Bring an RGB image to what the model sees: uint8 of shape (height, width, channels).

    Resampling is Pillow's bilinear, which averages all pixels under it when it shrinks. `how`: `crop` keeps the aspect
    and cuts the centre, `pad` keeps all of it between black bars, `stretch` keeps neither.
    """
    height, width = size
    if pixels.shape[:2] == size and channels == 3:
        return pixels
    image = Image.fromarray(pixels)
    if image.size != (width, height):
        image = _resize(image, (width, height), how)
    if channels == 1:
        image = image.convert("L")
    return np.asarray(image).reshape(height, width, channels)


def _resize(image: Image.Image, size: tuple[int, int], how: str) -> Image.Image:
    if how == "crop":
        return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    if how == "pad":
        return ImageOps.pad(image, size, Image.Resampling.BILINEAR)
    return image.resize(size, Image.Resampling.BILINEAR)


def digest(pixels: Pixels) -> str:
    """Return 128 bits of BLAKE2b over shape and pixels, in hexadecimal: equal images have equal digests in any format."""
    state = blake2b(b"%d %d %d" % pixels.shape, digest_size=16)
    state.update(np.ascontiguousarray(pixels))
    return state.hexdigest()


def text_digest(text: str) -> str:
    """Return 128 bits of BLAKE2b over a text, such as a group's name, in hexadecimal."""
    return blake2b(text.encode(), digest_size=16).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# The split: a pure function of the image, or of its group
# ---------------------------------------------------------------------------------------------------------------------


def split_of(key: str, validation_share: float, test_share: float) -> str:
    """Return `train`, `validation` or `test` for a digest: read as a number in 0..1, it falls into a share.

    Nothing else is looked at, so adding images moves none that were there.
    """
    position = int(key[:16], 16) / 2**64
    if position < test_share:
        return "test"
    return "validation" if position < test_share + validation_share else "train"


def class_order(label: str) -> tuple[list[Any], str]:
    """Sort key of class names that puts `2` before `10`."""
    parts = re.split(r"(\d+)", label)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], label
