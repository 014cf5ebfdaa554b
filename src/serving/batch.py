"""Batch inference without a server: every image of a folder or of Parquet shards becomes one row of a file.

    python -m src batch IN OUT [--top 5] [--model out/model] [--strict] [--restart] [--quiet]

Reads IN: a folder (with all folders in it), one image, a Parquet file, or a folder of shards in the Hugging Face layout
(`image` {bytes, path}; other columns are carried over). Writes OUT: .parquet or .csv. Images go through the code of the
service under its limits (SERVE_*); one that cannot be used is a row with an error.

OUT appears when it is whole. Until then OUT.parts/ holds Parquet parts of 1,024 rows, and the same command goes on after
them, also after a kill or on a disk that was full.
"""

import argparse
import csv
import hashlib
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src.core import cgroups
from src.core.command import Stopped, UserError, progress
from src.core.files import check_outputs, read_json, replacing, write_json
from src.core.inference import Model
from src.images.images import UndecodableError
from src.serving import identity, settings
from src.serving.decoding import look

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from filelock import FileLock, Timeout
except ImportError as missing:
    raise UserError(
        f"batch needs the package {missing.name}, which the image of the service has not: install requirements/run.txt"
    ) from None

_ROWS = 1024  # of a part: so much work a kill may cost
_BATCH_BYTES = 2**17  # of pixels that are computed together: on a CPU, what the network makes of more leaves the cache
_READ_BYTES = 8 * 2**20  # of a shard that are read at once
_BYTES_OF_A_PIXEL = 33  # of a transparent image while it is laid on white, as measured for the service
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_RANKED = pa.list_(pa.struct([("label", pa.string()), ("probability", pa.float64())]))
_OURS = {"label": pa.string(), "probability": pa.float64(), "probabilities": _RANKED,
         "model_version": pa.string(), "manifest": pa.string(), "error": pa.string()}  # fmt: skip
_WHERE = {"path": pa.string(), "shard": pa.string(), "row": pa.int64()}


class Source(NamedTuple):
    """What is to be read, in a fixed order: names below `root`, how many images each has, and a digest of it all.

    `carried` is the schema of the columns that Parquet shards have beside the image; None: `names` are image files.
    """

    root: Path
    names: list[str]
    images: list[int]
    digest: str
    carried: Any


class Piece(NamedTuple):
    """Images in a row before decoding: where each is, its file or bytes, and the columns beside it in its shard."""

    where: dict[str, list[Any]]
    contents: list[Path | bytes | None]
    carried: list[Any]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="batch", description="Write what the model says of many images, without a server.")
    parser.add_argument("source", type=Path, metavar="IN", help="folder of images, image, Parquet file or folder of shards")
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write: .parquet or .csv")
    parser.add_argument("--top", type=int, default=5, help="labels for each image, most probable first (default: 5)")
    parser.add_argument("--model", type=Path, default=settings.read().model, help="folder with model.onnx and card.json")
    parser.add_argument(
        "--strict", action="store_true", help="end with status 1 if any image cannot be used, not only if all"
    )
    parser.add_argument("--restart", action="store_true", help="begin anew, whatever was done before")
    parser.add_argument("--quiet", action="store_true", help="say nothing but faults")
    given = parser.parse_args()
    if given.out.suffix not in (".parquet", ".csv"):
        raise UserError(f"{given.out} ends with neither .parquet nor .csv: name the output so")
    if given.top < 1:
        raise UserError(f"--top is {given.top}: use a number from 1 on")
    check_outputs([given.source, given.model], files=[given.out])
    return given


def main() -> None:
    """Go on, or begin; a stop says how to go on."""
    given = _options()
    parts = given.out.with_name(f"{given.out.name}.parts")
    try:
        if given.out.exists() and not given.restart and not (parts / "run.json").is_file():
            _tell(given, f"{given.out} is there and whole: nothing to do; --restart makes it anew")
            return
        parts.mkdir(parents=True, exist_ok=True)
        with FileLock(parts / "lock", timeout=0):
            try:
                _run(given, parts)
            finally:
                if not (parts / "run.json").is_file():
                    _clear(parts)
    except Timeout:
        raise UserError(f"another run is writing {given.out}: wait for it, or name another output") from None
    except OSError as error:
        error.filename = error.filename or str(parts)  # a full disk names no file
        raise
    except (KeyboardInterrupt, Stopped) as stop:
        print(
            f"batch: stopped; what is done is in {parts}: run the same command again to go on", file=sys.stderr, flush=True
        )
        sys.exit(128 + (signal.SIGTERM if isinstance(stop, Stopped) else signal.SIGINT))


def _tell(given: argparse.Namespace, sentence: str) -> None:
    if not given.quiet:
        print(f"batch: {sentence}", flush=True)


def _run(given: argparse.Namespace, folder: Path) -> None:
    """Score what no part holds yet, then put the output in its place and sum up."""
    limits = settings.read()
    source = scan(given.source)
    found = identity.read(given.model, settings.ROOT)
    released = str(found.release.get("precision", "fp32"))
    model = Model(given.model, 1, limits.device, released if limits.precision == "auto" else limits.precision)
    top = min(given.top, len(model.classes))
    about = {"images": sum(source.images), "inputs": source.digest, "model": model.sha256, "spec": model.spec.to_json(),
             "version": found.version, "manifest": found.manifest, "top": top,
             "max_pixels": limits.max_pixels, "max_body": limits.max_body}  # fmt: skip
    lost = [field.name for field in source.carried or () if "binary" in str(field.type) and given.out.suffix == ".csv"]
    if lost:
        _tell(given, f"columns {', '.join(lost)} hold bytes, which only .parquet can carry: left out")
    done = _begin(folder, about, restart=given.restart)
    if done:
        _tell(given, f"going on after {done:,} of {sum(source.images):,} images")
    scorer = Scorer(model, found, top, limits, source.carried)
    size = max(4, min(128, _BATCH_BYTES // int(np.prod(model.spec.shape))))
    pieces = _shard_pieces(source, done, size) if source.carried is not None else _file_pieces(source, done, size)
    with (
        progress(sum(source.images), "image", "batch", hidden=given.quiet) as bar,
        closing(_score_all(pieces, scorer.score, limits.max_pixels)) as scored,
    ):
        bar.update(done)
        waiting = scorer.schema.empty_table()
        for rows in scored:
            bar.update(len(rows))
            waiting = pa.concat_tables([waiting, rows])
            while len(waiting) >= _ROWS:
                done += _write(folder, done, waiting.slice(0, _ROWS))
                waiting = waiting.slice(_ROWS)
        done += _write(folder, done, waiting)
    if done != sum(source.images):
        raise UserError(f"{given.source} changed while it was read: {done} rows of {sum(source.images)}; use --restart")
    parts = _parts(folder)
    errors = done - sum(pq.read_table(path, columns=["error"]).column(0).null_count for path in parts)
    with replacing(given.out) as fresh:
        if given.out.suffix == ".csv":
            _write_csv(fresh, parts, scorer.schema, top)
        else:
            with pq.ParquetWriter(fresh, scorer.schema, compression="zstd") as writer:
                for path in parts:
                    writer.write_table(pq.read_table(path))
        _sync(fresh)
    (folder / "run.json").unlink()
    _tell(given, f"{given.out}: {done:,} rows, {errors:,} of them errors")
    if errors == done or (given.strict and errors):
        summary = f"{errors} of {done} images of {given.source} could not be used"
        raise UserError(f"{summary}: column `error` of {given.out} says why of each")


# ---------------------------------------------------------------------------------------------------------------------
# What is read
# ---------------------------------------------------------------------------------------------------------------------


def scan(source: Path) -> Source:
    """List what is to be read, without opening an image.

    Raises:
        UserError: there is nothing to read, a shard is unfit, or images lie beside shards.
    """
    if not source.exists():
        raise UserError(f"{source} is not there: name a folder of images, an image or a Parquet file")
    root = source if source.is_dir() else source.parent
    names = sorted(_walk(root)) if source.is_dir() else [source.name]
    shards = [name for name in names if name.lower().endswith(".parquet")]
    pictures = [name for name in names if name.lower().endswith(_PICTURES)]
    if shards and pictures:
        raise UserError(f"{source} holds Parquet shards and image files ({_text(pictures[0])}): put one of both elsewhere")
    names = shards or names
    images, carried = _look_at_shards(root, shards) if shards else ([1] * len(names), None)
    if not sum(images):
        raise UserError(f"{source} holds no images: put some there, or name another folder")
    digest = hashlib.sha256()
    for name in names:
        path = root / name
        facts = (name, path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else (name,)
        digest.update(repr(facts).encode("utf-8", "surrogateescape"))
    return Source(root, names, images, digest.hexdigest(), carried)


def _walk(root: Path) -> Iterator[str]:
    """Yield relative paths of all that is no folder; links to folders are followed, but into each folder only once."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        seen.add(os.path.realpath(folder))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(folder, name)) not in seen]
        yield from (os.path.relpath(os.path.join(folder, name), root) for name in names)


def _text(name: str) -> str:
    """Return a file name as text that can be stored; it need not be valid Unicode."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _look_at_shards(root: Path, names: Sequence[str]) -> tuple[list[int], Any]:
    """Return how many rows each shard has, and the schema of their columns beside the image."""
    rows, first = [], None
    for name in names:
        with _opened(root / name) as file:
            schema = file.schema_arrow.remove_metadata()
            rows.append(int(file.metadata.num_rows))
        if schema.names.count("image") != 1:
            count, found = schema.names.count("image"), ", ".join(schema.names)
            raise UserError(f"{root / name} has {count} columns `image` (found: {found}): one is needed")
        kind = schema.field("image").type
        inner = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
        if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
            raise UserError(f"{root / name}: column `image` is {kind}, expected a struct of bytes and path, or binary")
        first = first or schema
        if not schema.equals(first):
            raise UserError(f"{root / name} has other columns than {names[0]}: read it apart")
    # in the output `label` is what the model says, and so on
    new = {name: f"given_{name}" for name in (*_OURS, *_WHERE)}
    fields = [field for field in first or () if field.name != "image"]
    carried = pa.schema([field.with_name(new.get(field.name, field.name)) for field in fields])
    if len(set(carried.names)) < len(carried):
        equal = ", ".join(carried.names)
        raise UserError(f"{root / names[0]} has columns that would have equal names in the output ({equal}): rename them")
    return rows, carried


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a shard; damage found now or while it is read is a UserError."""
    try:
        with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:  # else a whole row group is in memory
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read as Parquet ({reason}): restore or remove it") from None


def _file_pieces(source: Source, skip: int, size: int) -> Iterator[Piece]:
    for start in range(skip, len(source.names), size):
        names = source.names[start : start + size]
        yield Piece({"path": [_text(name) for name in names]}, [source.root / name for name in names], [])


def _shard_pieces(source: Source, skip: int, size: int) -> Iterator[Piece]:
    """Yield rows of shards without the first `skip`; row groups of which all is done are not read."""
    for name, images in zip(source.names, source.images, strict=True):
        row = 0
        if skip < images:
            with _opened(source.root / name) as file:
                for number in range(file.num_row_groups):
                    group = file.metadata.row_group(number)
                    if row + group.num_rows <= skip:
                        row += group.num_rows
                        continue
                    mean = max(1, group.total_byte_size // max(1, group.num_rows))
                    for rows in file.iter_batches(max(1, min(size, _READ_BYTES // mean)), row_groups=[number]):
                        fresh = rows.slice(max(0, skip - row))
                        row += len(rows)
                        if len(fresh):
                            yield _piece(_text(name), row - len(fresh), fresh)
        skip = max(0, skip - images)


def _piece(shard: str, row: int, rows: Any) -> Piece:
    image = rows.column("image").to_pylist()
    contents = [one.get("bytes") if isinstance(one, dict) else one for one in image]
    where: dict[str, list[Any]] = {"shard": [shard] * len(rows), "row": list(range(row, row + len(rows)))}
    return Piece(where, contents, [rows.column(i) for i, name in enumerate(rows.schema.names) if name != "image"])


# ---------------------------------------------------------------------------------------------------------------------
# What the model says
# ---------------------------------------------------------------------------------------------------------------------


class Scorer:
    """From a piece to rows, under the limits of the service. Threads share it, and each computes alone."""

    def __init__(self, model: Model, found: identity.Identity, top: int, limits: settings.Settings, carried: Any) -> None:
        """Take the model and who it is, how many labels each row has, and the schema of columns that shards carry."""
        self._model, self._found, self._top, self._limits = model, found, top, limits
        where = ["path"] if carried is None else ["shard", "row"]
        ours = [pa.field(name, kind) for name, kind in {**{name: _WHERE[name] for name in where}, **_OURS}.items()]
        self.schema = pa.schema([*ours[: len(where)], *(carried or ()), *ours[len(where) :]])

    def score(self, piece: Piece) -> Any:
        """Read and decode the images of a piece, and ask the model; return a table.

        Raises:
            UserError: ONNX Runtime fails, for want of memory perhaps.
        """
        pixels = np.empty((len(piece.contents), *self._model.spec.shape), self._model.spec.dtype)
        errors: list[str | None] = []
        for content in piece.contents:
            try:
                pixels[errors.count(None)] = self._pixels(content)
                errors.append(None)
            except UndecodableError as error:
                errors.append(str(error).replace("prepare.max_megapixels", "SERVE_MAX_MEGAPIXELS"))
        ranked = iter(self._ranked(pixels[: errors.count(None)]))
        rows = [None if error else next(ranked) for error in errors]
        columns = [
            *piece.where.values(),
            *piece.carried,
            [row[0]["label"] if row else None for row in rows],
            [row[0]["probability"] if row else None for row in rows],
            rows,
            [self._found.version] * len(rows),
            [self._found.manifest] * len(rows),
            [error or (None if row else "the model gave a probability that is no number")
             for row, error in zip(rows, errors, strict=True)],
        ]  # fmt: skip
        arrays = [column if isinstance(column, pa.Array) else pa.array(column, field.type)
                  for column, field in zip(columns, self.schema, strict=True)]  # fmt: skip
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def _pixels(self, content: Path | bytes | None) -> Any:
        most = self._limits.max_body
        if isinstance(content, Path):
            try:
                if not content.is_file():
                    raise UndecodableError("no regular file, or a link that leads to none")
                content = content.read_bytes() if content.stat().st_size <= most else None
            except OSError as error:
                raise UndecodableError(f"unreadable: {error.strerror}") from None
        elif content is None:
            raise UndecodableError("no image bytes: this row only names a file; store the bytes in the shard")
        if content is None or len(content) > most:
            raise UndecodableError(f"too large: over SERVE_MAX_BODY_MB {most / 1e6:g}")
        pixels = self._limits.max_pixels
        return look(content, pixels, pixels, self._model.spec).pixels

    def _ranked(self, pixels: Any) -> list[list[dict[str, Any]] | None]:
        """Return the most probable labels of each image, rounded as the service does; None where one is no number."""
        try:
            probabilities = self._model.probabilities(pixels)
        except Exception as error:  # ONNX Runtime raises classes of its own
            reason = str(error).splitlines()[0][:200]
            raise UserError(f"the model failed on {len(pixels)} images ({reason}): give it more memory") from None
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, : self._top]
        values = np.take_along_axis(probabilities, order, axis=1).tolist()
        classes = self._model.classes
        return [
            [{"label": classes[i], "probability": round(value, 6)} for i, value in zip(places, row, strict=True)]
            if finite
            else None
            for places, row, finite in zip(order.tolist(), values, np.isfinite(probabilities.sum(axis=1)), strict=True)
        ]


def _score_all(pieces: Iterator[Piece], score: Callable[[Piece], Any], max_pixels: int) -> Generator[Any, None, None]:
    """Score pieces in as many threads as processors and memory allow; yield tables in order, few of them in memory."""
    room = cgroups.memory_limit()
    threads = max(1, round(cgroups.processors()))
    if room is not None:
        threads = max(1, min(threads, room // 2 // (max_pixels * _BYTES_OF_A_PIXEL)))
    waiting: deque[Future[Any]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="score")
    try:
        while True:
            waiting.extend(pool.submit(score, piece) for piece in islice(pieces, 2 * threads - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# ---------------------------------------------------------------------------------------------------------------------
# What is written
# ---------------------------------------------------------------------------------------------------------------------


def _parts(folder: Path) -> list[Path]:
    """Return the parts that are there; the name of each is the number of its first row."""
    return sorted(folder.glob(f"{'[0-9]' * 12}.parquet"))


def _clear(folder: Path) -> None:
    """Remove what runs have written into the folder, and the folder unless somebody keeps something else in it."""
    for path in (*_parts(folder), folder / "lock"):
        path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _begin(folder: Path, about: dict[str, Any], *, restart: bool) -> int:
    """Begin a run, or go on with one; return how many rows its parts hold.

    Raises:
        UserError: it was begun with other images, another model or other settings.
    """
    journal = folder / "run.json"
    if restart or not journal.is_file():
        journal.unlink(missing_ok=True)  # first: without it nothing is left to go on from
        for path in _parts(folder):
            path.unlink()
        write_json(journal, about)
    before = read_json(journal, made_by="batch")
    for key, value in about.items():
        if before.get(key) != value:
            was = f"{key} {str(before.get(key))[:16]}, now {str(value)[:16]}"
            raise UserError(f"{folder} was begun with {was}: bring that back to go on, or begin anew with --restart")
    done = 0
    for path in _parts(folder):
        if int(path.stem) == done:
            done += int(pq.read_metadata(path).num_rows)
        else:  # a part before it was removed
            path.unlink()
    return done


def _write(folder: Path, first: int, rows: Any) -> int:
    """Write a part that appears when it is whole; return how many rows it has."""
    if len(rows):
        with replacing(folder / f"{first:012}.parquet") as fresh:
            pq.write_table(rows, fresh, compression="zstd")
            _sync(fresh)
    return len(rows)


def _sync(path: Path) -> None:
    """Let the disk have a file before its name says that it is whole."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_csv(target: Path, parts: Sequence[Path], schema: Any, top: int) -> None:
    """Write CSV. The second most probable label is in column label_2, and so on; columns of bytes are left out."""
    kept = [field.name for field in schema if "binary" not in str(field.type)]
    more = [name for place in range(2, top + 1) for name in (f"label_{place}", f"probability_{place}")]
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([one for name in kept for one in (more if name == "probabilities" else [name])])
        for path in parts:
            for row in pq.read_table(path, columns=kept).to_pylist():
                pairs = [value for pair in (row["probabilities"] or [])[1:] for value in pair.values()]
                row["probabilities"] = pairs or [None] * len(more)
                writer.writerow([one for name in kept for one in _cells(name, row[name])])


def _cells(name: str, value: Any) -> list[Any]:
    """Return what a value is in CSV: text that a spreadsheet would take as a formula gets an apostrophe before it."""
    if name == "probabilities":
        return [_cells("", one)[0] for one in value]
    if isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        value = f"'{value}"
    return [value]
