"""Stage 1, prepare. Reads data/; writes the decoded splits as uint8 arrays and the manifest, one row an image.

    python -m src prepare data out/arrays out/manifest.parquet

No image stops it: one that cannot be decoded becomes a row with its fault, and `validate` decides. Images are decoded on
all cores in small chunks; what grows with their number is the disk, and some 200 bytes of memory for each row.
"""

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from src.core.arrays import ArraysCard
from src.core.command import UserError, table
from src.core.files import check_outputs, replacing, sha256, write_json
from src.core.manifest import MANIFEST, SPLITS, class_order, group_digest, split_of
from src.core.params import section
from src.core.shape import Spec
from src.images import images, readers
from src.images.decoding import Pixels, decode_all
from src.images.prepare_params import Prepare

_COPY_BYTES = 8 * 2**20
_STRICTNESS = ("test", "validation", "train")  # a copy in a stricter split wins: what is tested must not be trained on


def prepare(root: Path, arrays: Path, manifest: Path, params: Prepare) -> None:
    """Decode everything under `root` into `arrays` (a folder) and `manifest`.

    Raises:
        UserError: no data, unreadable shards, or not one image that can be used.
    """
    found = readers.scan(root)
    with replacing(manifest) as fresh_manifest, replacing(arrays) as fresh_arrays:
        fresh_arrays.mkdir()
        scratch = fresh_arrays.parent / "decoded"  # beside the arrays: same disk, and gone with the temporary folder
        decoded = decode_all(found, Pixels(scratch, fresh_arrays / "thumbnails.npy"), params)
        rows = resolve(decoded, params)
        if not len(_kept(rows)):
            first = rows.slice(0, 1).to_pylist()[0]
            raise UserError(
                f"none of the {len(rows)} files under {root} is a usable image; the first, {first['path']}: "
                f"{first['fault']}. Put images into {root}/<label>/, or correct examples() in src/data.py"
            )
        classes = sorted(set(_kept(rows).column("label").to_pylist()), key=class_order)
        pq.write_table(rows, fresh_manifest, compression="zstd")
        lengths = _write_splits(rows, classes, scratch, fresh_arrays, params.spec)
        card = ArraysCard(classes=classes, examples=lengths, manifest_sha256=sha256(fresh_manifest), spec=params.spec)
        write_json(fresh_arrays / "card.json", card.to_json())
    print(_summary(rows, classes))
    kept = _kept(rows)
    short = np.median(np.minimum(kept.column("width").to_numpy(), kept.column("height").to_numpy()))
    if problem := images.size_problem(params.image_size, float(short)):
        print(problem)


# ---------------------------------------------------------------------------------------------------------------------
# Resolve: copies, conflicts, splits
# ---------------------------------------------------------------------------------------------------------------------


def resolve(decoded: pa.Table, params: Prepare) -> pa.Table:
    """Add to the decoded rows what needs all of them: conflicting labels, copies, the split, the place in its array."""
    digests = decoded.column("digest").combine_chunks().dictionary_encode()
    codes = digests.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    own = decoded.column("given_split").to_numpy()
    given = own if params.use_given_splits else np.full(len(decoded), None, dtype=object)
    fault = _label_conflicts(decoded, codes)
    first = _kept_copy(codes, given, usable=pc.is_null(fault).to_numpy(zero_copy_only=False))
    rows = np.arange(len(decoded))
    copies = (first >= 0) & (first != rows)
    keep = first == rows
    split = np.full(len(decoded), None, dtype=object)
    split[keep] = _sides(decoded, given, np.flatnonzero(keep), params)
    index = np.zeros(len(decoded), dtype=np.int64)
    for name in SPLITS:
        index[split == name] = np.arange((split == name).sum())
    # how a person finds each row: the file's path, or shard#row
    in_shard = pc.binary_join_element_wise(decoded.column("path"), pc.cast(decoded.column("row"), pa.string()), "#")
    names = pc.if_else(pc.less(decoded.column("row"), 0), decoded.column("path"), in_shard).combine_chunks()
    duplicate_of = names.take(pa.array(first, mask=~copies))
    result = decoded.set_column(decoded.schema.get_field_index("fault"), MANIFEST.field("fault"), fault)
    for name, values in (
        ("duplicate_of", duplicate_of),
        ("split", pa.array(split, type=pa.string())),
        ("index", pa.array(index, mask=~keep)),
    ):
        result = result.append_column(MANIFEST.field(name), values)
    return result.cast(MANIFEST)


def _label_conflicts(rows: pa.Table, codes: NDArray[Any]) -> pa.Array:
    """Return the fault column, with a fault for every row whose image also stands under another label."""
    labels = rows.column("label").combine_chunks().dictionary_encode()
    label_codes = labels.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    pairs = np.unique((codes.astype(np.int64) * (len(labels.dictionary) + 1) + label_codes)[codes >= 0])
    images, counts = np.unique(pairs // (len(labels.dictionary) + 1), return_counts=True)
    conflicting = set(images[counts > 1].tolist())
    faults = rows.column("fault").combine_chunks()
    if not conflicting:
        return faults
    rows_of: dict[int, list[int]] = {}
    for row in np.flatnonzero(np.isin(codes, list(conflicting))):
        rows_of.setdefault(int(codes[row]), []).append(int(row))
    texts = faults.to_pylist()
    for members in rows_of.values():
        names = sorted({labels.dictionary[int(label_codes[member])].as_py() for member in members})
        for member in members:
            texts[member] = f"conflicting labels on equal images: {', '.join(names)}"
    return pa.array(texts, type=pa.string())


def _kept_copy(codes: NDArray[Any], given: NDArray[Any], usable: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return for each row the row that stands for its image (itself, where it is kept), and -1 for a faulty one."""
    rank = np.full(len(codes), len(_STRICTNESS))
    for strictness, name in enumerate(_STRICTNESS):
        rank[given == name] = strictness
    rows = np.flatnonzero(usable & (codes >= 0))
    rows = rows[np.lexsort((rows, rank[rows], codes[rows]))]
    starts = np.flatnonzero(np.diff(codes[rows], prepend=-1))
    leaders = rows[starts]
    result = np.full(len(codes), -1, dtype=np.int64)
    result[rows] = np.repeat(leaders, np.diff(starts, append=len(rows)))
    return result


def _sides(rows: pa.Table, given: NDArray[Any], kept: NDArray[np.int64], params: Prepare) -> list[str]:
    """Choose the split of each kept row: the given one, else by the hash of its group or image.

    Rows given to `train` still provide the splits that nobody was given to: a data set of train and test files gets
    its validation images out of train, and never loses one of train to test.
    """
    everywhere = set(given.tolist())
    digests, groups = (rows.column(name).to_pylist() for name in ("digest", "group"))
    sides = []
    for row in kept:
        side = given[row]
        if side in (None, "train"):
            key = digests[row] if groups[row] is None else group_digest(groups[row])
            hashed = split_of(key, params.validation_share, params.test_share)
            side = "train" if side == "train" and hashed in everywhere else hashed
        sides.append(side)
    return sides


# ---------------------------------------------------------------------------------------------------------------------
# Write
# ---------------------------------------------------------------------------------------------------------------------


def _kept(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.is_valid(rows.column("split")))


def _write_splits(rows: pa.Table, classes: list[str], scratch: Path, out: Path, spec: Spec) -> dict[str, int]:
    """Write each split's labels and, in one pass over the scratch file, its pixels in manifest order; return the lengths.

    Plain reads and writes: a memory map would count against this process's memory as it grows.
    """
    chosen = {name: pc.equal(rows.column("split"), name).fill_null(False).to_numpy() for name in SPLITS}
    dtype = np.dtype(spec.dtype)
    example_bytes = int(np.prod(spec.shape)) * dtype.itemsize
    block = max(1, _COPY_BYTES // example_bytes)
    with ExitStack() as stack:
        source = stack.enter_context(scratch.open("rb"))
        targets = {name: stack.enter_context((out / f"{name}.examples.npy").open("wb")) for name in SPLITS}
        for name, mask in chosen.items():
            labels = pc.index_in(rows.column("label").filter(mask), pa.array(classes, type=pa.string()))
            np.save(out / f"{name}.labels.npy", labels.to_numpy().astype(np.int64))
            header = {"descr": dtype.str, "fortran_order": False, "shape": (int(mask.sum()), *spec.shape)}
            np.lib.format.write_array_header_1_0(targets[name], header)
        for start in range(0, len(rows), block):
            raw = np.frombuffer(source.read(block * example_bytes), np.uint8).reshape(-1, example_bytes)
            for name, mask in chosen.items():
                targets[name].write(raw[mask[start : start + block]].data)
    return {name: int(mask.sum()) for name, mask in chosen.items()}


def _summary(rows: pa.Table, classes: list[str]) -> str:
    kept = _kept(rows)
    per_split = [[split, pc.sum(pc.equal(kept.column("split"), split)).as_py()] for split in SPLITS]
    faults = len(rows) - rows.column("fault").null_count
    copies = len(rows) - rows.column("duplicate_of").null_count
    lines = [table(["split", "images"], per_split)]
    lines.append(f"{len(rows)} files read, {len(classes)} classes, {copies} exact copies left out, {faults} faulty")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line and prepare."""
    parser = argparse.ArgumentParser(description="Decode data/ into uint8 arrays, one per split, and a manifest.")
    parser.add_argument("data", type=Path, help="folder of class folders and Parquet shards")
    parser.add_argument("arrays", type=Path, help="folder to write the arrays into")
    parser.add_argument("manifest", type=Path, help="Parquet file to write, one row an image")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    args = parser.parse_args()
    check_outputs([args.data], folders=[args.arrays], files=[args.manifest])
    prepare(args.data, args.arrays, args.manifest, section(args.params, "prepare", Prepare))
