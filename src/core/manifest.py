"""The manifest: one row per example with its label, split and faults; and the split rule."""

import re
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from src.core.command import UserError

SPLITS = ("train", "validation", "test")
# names `split_of`, with the choice of its key in src/images/prepare.py: another rule moves examples, and takes another name
SPLIT_RULE = "digest-1"

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
    ],
    metadata={"split_rule": SPLIT_RULE},
)


# what a manifest says of an example whatever it is made of; judging reads nothing else of it
OF_EVERY_KIND = ("path", "row", "label", "group", "digest", "split", "index")


def read_manifest(path: Path, columns: Sequence[str] = OF_EVERY_KIND) -> pa.Table:
    """Read a manifest that `prepare` wrote.

    Raises:
        UserError: it is missing or damaged, or lacks one of the columns.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: run `dvc repro prepare`, which makes it")
    try:
        manifest = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}): run `dvc repro -f prepare`") from None
    if not set(columns) <= set(manifest.schema.names):
        raise UserError(f"{path} has other columns than this code writes: run `dvc repro -f prepare`")
    return manifest


def split_rule(path: Path) -> str:
    """Return the name of the rule that drew the splits of a manifest; one that names none is of the first rule."""
    named: dict[bytes, bytes] = pq.read_schema(path).metadata or {}
    return named.get(b"split_rule", b"digest-1").decode()


def split_of(key: str, validation_share: float, test_share: float) -> str:
    """Return `train`, `validation` or `test` for a digest: read as a number in 0..1, it falls into a share.

    Nothing else is looked at, so adding images moves none that were there.
    """
    position = int(key[:16], 16) / 2**64
    if position < test_share:
        return "test"
    return "validation" if position < test_share + validation_share else "train"


def group_digest(group: str) -> str:
    """Return the digest that stands for a whole group, so that all of it falls on one side."""
    return blake2b(group.encode(), digest_size=16).hexdigest()


def class_order(label: str) -> tuple[list[Any], str]:
    """Sort key of class names that puts `2` before `10`."""
    parts = re.split(r"(\d+)", label)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], label
