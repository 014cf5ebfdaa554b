"""Decode examples on all cores, in order, with bounded memory: pixels go to a file, one row of facts an image comes back."""

import gc
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import forkserver, get_all_start_methods, get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from src.core import statistics
from src.core.command import UserError, cores, progress
from src.core.example import Example
from src.core.manifest import MANIFEST
from src.core.shape import Spec
from src.images import images, readers
from src.images.prepare_params import Prepare
from src.images.readers import Piece

_ROW = pa.schema([field for field in MANIFEST if field.name not in ("duplicate_of", "split", "index")])
_Columns = dict[str, Any]
_FACTS = ("path", "row", "label", "group", "given_split", "width", "height", "mode", "format", "digest", "fault")


class Pixels(NamedTuple):
    """Two files that receive pixels, uint8, image after image in the scan's order, zeros for a faulty one.

    `scratch` is raw and has the params' shape; `thumbnails` is an array file of shape (images, *images.THUMBNAIL).
    """

    scratch: Path
    thumbnails: Path


def decode_all(found: readers.Scan, out: Pixels, params: Prepare) -> pa.Table:
    """Decode everything that was found into `out`; return the columns of the manifest that one image decides alone."""
    out.scratch.touch()
    np.lib.format.open_memmap(out.thumbnails, "w+", np.uint8, (found.images, *images.THUMBNAIL))
    results: list[pa.RecordBatch] = []
    with progress(found.images, "image", "prepare: decoding") as bar:
        for batch in _in_order(readers.read(found), out, params):
            results.append(batch)
            bar.update(len(batch))
    return pa.Table.from_batches(results, schema=_ROW)


def _in_order(pieces: Iterator[Piece], out: Pixels, params: Prepare) -> Iterator[pa.RecordBatch]:
    """Decode pieces on all cores with a bounded number in flight; results come in the order of the pieces."""
    workers = cores()
    waiting: list[tuple[Piece, Future[_Columns]]] = []
    pool = _pool(workers)
    try:
        while True:
            for piece in islice(pieces, 3 * workers - len(waiting)):
                waiting.append((piece, pool.submit(_decode_piece, piece, out, params)))
            if not waiting:
                return
            piece, future = waiting.pop(0)
            try:
                yield to_record_batch(future.result())
            except BrokenProcessPool:
                # a decoder took its process down; find the image, then go on with a fresh pool
                pool.shutdown(cancel_futures=True)
                yield _decode_one_by_one(piece, out, params)
                pool = _pool(workers)
                waiting = [(later, pool.submit(_decode_piece, later, out, params)) for later, _ in waiting]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    """Processes, not threads: on small images most of the work is Python's own. Plain fork is unsafe beside threads."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the workers': one for each core is enough
    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    context = get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__, "pyarrow.compute"])
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer
        try:
            forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGINT, handler)
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    """Leave Ctrl-C to the main process, and end with it even when it is killed."""
    gc.disable()  # rows of plain values make no cycles, and looking for some costs a twentieth of the time
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _decode_one_by_one(piece: Piece, out: Pixels, params: Prepare) -> pa.RecordBatch:
    """Decode each example of a piece in a process of its own; one that kills its process becomes a fault."""
    rows = []
    for offset, example in enumerate(readers.examples(piece)):
        place = piece.start + offset
        with _pool(1) as pool:
            try:
                rows.append(to_record_batch(pool.submit(_decode_to_files, place, [example], out, params).result()))
            except BrokenProcessPool:
                fault = "corrupt image: the decoder crashed on it, or memory ran out"
                broken = example._replace(content=None, fault=fault)
                rows.append(to_record_batch(_decode_to_files(place, [broken], out, params)))
    return pa.Table.from_batches(rows).combine_chunks().to_batches()[0]


def to_record_batch(columns: _Columns) -> pa.RecordBatch:
    """Make a batch of rows out of a worker's columns.

    Not in the worker: pyarrow imports pandas with the first array it makes, a fifth of a second in each process.
    """
    faulty = np.array([fault is not None for fault in columns["fault"]])
    arrays = [
        pa.array(columns[field.name], field.type, mask=faulty if isinstance(columns[field.name], np.ndarray) else None)
        for field in _ROW
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=_ROW)


def _decode_piece(piece: Piece, out: Pixels, params: Prepare) -> _Columns:
    return _decode_to_files(piece.start, list(readers.examples(piece)), out, params)


def _decode_to_files(start: int, examples: list[Example], out: Pixels, params: Prepare) -> _Columns:
    """Decode some examples in a worker: pixels go straight into the files, the columns of their rows come back."""
    pixels, thumbnails, columns = decode_examples(examples, params)
    with out.scratch.open("r+b") as file:
        file.seek(start * pixels[0].nbytes)
        file.write(pixels.data)
    np.load(out.thumbnails, mmap_mode="r+")[start : start + len(examples)] = thumbnails
    return columns


def decode_examples(examples: list[Example], params: Prepare) -> tuple[NDArray[np.uint8], NDArray[np.uint8], _Columns]:
    """Return uint8 pixels (n, height, width, channels), thumbnails (n, *images.THUMBNAIL) and the columns of the rows.

    A faulty example has zeros.
    """
    pixels = np.zeros((len(examples), *params.spec.shape), params.spec.dtype)
    thumbnails = np.zeros((len(examples), *images.THUMBNAIL), dtype=np.uint8)
    rows = [_decode_example(example, pixels[i], thumbnails[i], params) for i, example in enumerate(examples)]
    facts = dict(zip(_FACTS, zip(*rows, strict=True), strict=True))
    hashes = statistics.difference_hash(thumbnails.astype(np.float32))
    return pixels, thumbnails, {**facts, "perceptual_hash": hashes, **statistics.measure(pixels)}


def _decode_example(
    example: Example, out: NDArray[np.uint8], thumbnail: NDArray[np.uint8], params: Prepare
) -> tuple[Any, ...]:
    """Decode one example into `out` and `thumbnail`; return its _FACTS."""
    origin = (_text(example.path), example.row, _text(example.label), _text(example.group), example.split)
    if example.fault:
        return (*origin, None, None, None, None, None, example.fault)
    try:
        out[:], decoded = images.encode(readers.content(example), params.spec, params.max_pixels)
        thumbnail[:] = images.thumbnail(decoded.picture)
    except (images.UndecodableError, OSError) as error:
        fault = f"unreadable: {error.strerror}" if isinstance(error, OSError) else str(error)
        return (*origin, None, None, None, None, None, fault)
    height, width = decoded.size
    return (*origin, width, height, decoded.mode, decoded.format, images.digest(decoded.picture), None)


def encode_split(root: Path, manifest: pa.Table, split: str, spec: Spec, max_pixels: int) -> NDArray[Any]:
    """Encode one split of data/ anew, for a model of another spec: (n, *spec.shape), in the order of the split's array.

    Raises:
        UserError: data/ holds other images than the manifest says.
    """
    found = readers.scan(root)
    rows = np.flatnonzero(pc.equal(manifest.column("split"), split).fill_null(False).to_numpy())
    chosen = manifest.take(rows)
    places = dict(zip(rows.tolist(), chosen.column("index").to_pylist(), strict=True))
    digests = dict(zip(rows.tolist(), chosen.column("digest").to_pylist(), strict=True))
    result = np.empty((len(rows), *spec.shape), spec.dtype)
    examples = (example for piece in readers.read(found) for example in readers.examples(piece))
    for row, example in enumerate(examples):
        if row in places:
            try:
                result[places[row]], decoded = images.encode(readers.content(example), spec, max_pixels)
            except (images.UndecodableError, OSError):
                break
            if images.digest(decoded.picture) != digests[row]:
                break
            del digests[row]
    if digests:
        raise UserError(f"{root} holds other images than the manifest says: run `dvc checkout`, or `dvc repro`")
    return result


def _text(text: str | None) -> str | None:
    """Make a text that can be stored: a file name need not be valid Unicode."""
    return text if text is None else text.encode("utf-8", "backslashreplace").decode()
