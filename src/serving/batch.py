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
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate, islice
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
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq
    from filelock import FileLock, Timeout
    from pyarrow.fs import LocalFileSystem
except ImportError as missing:
    raise UserError(
        f"batch needs the package {missing.name}, which the image of the service has not: install requirements/run.txt"
    ) from None

_ROWS = 1024  # of a part: so much work a kill may cost
_PIECE = 128  # rows that are computed together, at most
_BATCH_BYTES = 2**17  # of pixels that are computed together: on a CPU, what the network makes of more leaves the cache
_READ_BYTES = 8 * 2**20  # of a shard that are read at once
_BYTES_OF_A_PIXEL = 33  # of a transparent image while it is laid on white, as measured for the service
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_RANKED = pa.list_(pa.struct([("label", pa.string()), ("probability", pa.float64())]))
_OURS = {"label": pa.string(), "probability": pa.float64(), "probabilities": _RANKED,
         "model_version": pa.string(), "manifest": pa.string(), "error": pa.string()}  # fmt: skip
_WHERE = {"path": pa.string(), "shard": pa.string(), "row": pa.int64()}
# a piece of a shard after the other: else a whole row group, or several, would be in memory
_FORMAT = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(
        use_buffered_stream=True, buffer_size=2**20, pre_buffer=False
    )
)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="batch", description="Write what the model says of many images, without a server.")
    parser.add_argument("source", type=Path, metavar="IN", help="folder of images, image, Parquet file or folder of shards")
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write: .parquet or .csv")
    parser.add_argument("--top", type=int, default=5, help="labels for each image, most probable first (default: 5)")
    parser.add_argument("--model", type=Path, default=settings.read().model, help="folder with model.onnx and card.json")
    strict = "end with status 1 if any image cannot be used, not only if all"
    parser.add_argument("--strict", action="store_true", help=strict)
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
    journal = parts / "run.json"
    try:
        if given.out.exists() and not given.restart and not journal.is_file():
            _tell(given, f"{given.out} is there and whole: nothing to do; --restart makes it anew")
            return
        parts.mkdir(parents=True, exist_ok=True)
        with FileLock(parts / "lock", timeout=0):
            try:
                _run(given, parts)
            finally:
                if not journal.is_file():
                    for path in (*_parts(parts), parts / "lock"):
                        path.unlink(missing_ok=True)
                    with suppress(OSError):  # somebody keeps something else in it
                        parts.rmdir()
    except Timeout:
        raise UserError(f"another run is writing {given.out}: wait for it, or name another output") from None
    except OSError as error:
        error.filename = error.filename or str(parts)  # a full disk names no file
        raise
    except (KeyboardInterrupt, Stopped) as stop:
        sentence = f"batch: stopped; what is done is in {parts}: run the same command again to go on"
        print(sentence, file=sys.stderr, flush=True)
        sys.exit(128 + (signal.SIGTERM if isinstance(stop, Stopped) else signal.SIGINT))


def _tell(given: argparse.Namespace, sentence: str) -> None:
    if not given.quiet:
        print(f"batch: {sentence}", flush=True)


def _run(given: argparse.Namespace, folder: Path) -> None:
    """Score what no part holds yet, then put the output in its place and sum up."""
    limits, source = settings.read(), Source(given.source)
    scorer = Scorer(given.model, given.top, limits, source)
    if given.out.suffix == ".csv" and (lost := [field.name for field in source.carried if "binary" in str(field.type)]):
        _tell(given, f"columns {', '.join(lost)} hold bytes, which only .parquet can carry: left out")
    about = {**scorer.about, "images": source.images, "inputs": source.digest}
    done = _begin(folder, about, restart=given.restart)
    if done:
        _tell(given, f"going on after {done:,} of {source.images:,} images")
    with progress(source.images, "image", "batch", hidden=given.quiet) as bar:
        bar.update(done)
        waiting = scorer.schema.empty_table()
        for rows in scorer.score_all(source.pieces(done, scorer.rows)):
            bar.update(len(rows))
            waiting = pa.concat_tables([waiting, rows])
            while len(waiting) >= _ROWS:
                done += _write(folder, done, waiting.slice(0, _ROWS))
                waiting = waiting.slice(_ROWS)
        done += _write(folder, done, waiting)
    if done != source.images:
        raise UserError(f"{given.source} changed while it was read: {done} rows of {source.images}; use --restart")
    whole = ds.dataset(_parts(folder), scorer.schema)
    errors = done - whole.count_rows(filter=ds.field("error").is_null())
    with replacing(given.out) as fresh:
        if given.out.suffix == ".csv":
            _write_csv(fresh, whole, scorer.top)
        else:
            with pq.ParquetWriter(fresh, scorer.schema, compression="zstd") as writer:
                for path in _parts(folder):
                    writer.write_table(pq.read_table(path))
        _sync(fresh)
    (folder / "run.json").unlink()
    _tell(given, f"{given.out}: {done:,} rows, {errors:,} of them errors")
    if errors == done or (given.strict and errors):
        summary = f"{errors} of {done} images of {given.source} could not be used"
        raise UserError(f"{summary}: column `error` of {given.out} says why of each")


class Piece(NamedTuple):
    """Images in a row before decoding: where each is, its file or bytes, and the columns beside it in its shard."""

    where: dict[str, list[Any]]
    contents: Sequence[Path | bytes | None]
    carried: list[Any]


class Source:
    """What is to be read, in a fixed order: `images` are so many, `carried` are the columns of shards beside the image."""

    def __init__(self, given: Path) -> None:
        """List it without opening an image; `digest` changes with any of its files.

        Raises:
            UserError: there is nothing to read, a shard is unfit, or images lie beside shards.
        """
        if not given.exists():
            raise UserError(f"{given} is not there: name a folder of images, an image or a Parquet file")
        self._root = given if given.is_dir() else given.parent
        # all that is no folder; links to folders are not followed
        walked = (Path(folder, name) for folder, _, found in os.walk(given) for name in found)
        names = sorted(os.path.relpath(path, given) for path in walked) if given.is_dir() else [given.name]
        shards = [name for name in names if name.lower().endswith(".parquet")]
        pictures = [name for name in names if name.lower().endswith(_PICTURES)]
        if shards and pictures:
            raise UserError(
                f"{given} holds Parquet shards and image files ({_text(pictures[0])}): put one of both elsewhere"
            )
        self.names, self.shards = shards or names, bool(shards)
        self.carried, self._counts = pa.schema([]), [1] * len(names)
        if shards:
            self._fragments = [_fragment(self._root / name) for name in shards]
            self.carried, self._counts = self._columns(), [fragment.count_rows() for fragment in self._fragments]
        self.images = sum(self._counts)
        if not self.images:
            raise UserError(f"{given} holds no images: put some there, or name another folder")
        digest = hashlib.sha256()
        for name in self.names:
            path = self._root / name
            facts = (name, path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else (name,)
            digest.update(repr(facts).encode("utf-8", "surrogateescape"))
        self.digest = digest.hexdigest()

    def _columns(self) -> Any:
        """Return the schema of the columns beside the image, under names that ours do not have."""
        schemas = [fragment.physical_schema.remove_metadata() for fragment in self._fragments]
        for name, schema in zip(self.names, schemas, strict=True):
            if schema.names.count("image") != 1:
                count, found = schema.names.count("image"), ", ".join(schema.names)
                raise UserError(f"{self._root / name} has {count} columns `image` (found: {found}): one is needed")
            kind = schema.field("image").type
            inner = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
            if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
                raise UserError(
                    f"{self._root / name}: column `image` is {kind}, expected a struct of bytes and path, or binary"
                )
            if not schema.equals(schemas[0]):
                raise UserError(f"{self._root / name} has other columns than {self.names[0]}: read it apart")
        new = {name: f"given_{name}" for name in (*_OURS, *_WHERE)}  # `label` is what the model says, and so on
        carried = [field.with_name(new.get(field.name, field.name)) for field in schemas[0] if field.name != "image"]
        names = [field.name for field in carried]
        if len(set(names)) < len(names):
            equal = ", ".join(names)
            raise UserError(
                f"{self._root / self.names[0]} has columns that would have equal names in the output ({equal}): rename them"
            )
        return pa.schema(carried)

    def pieces(self, skip: int, size: int) -> Iterator[Piece]:
        """Yield all but the first `skip` images, up to so many at once; shards of which all is done are not opened."""
        if not self.shards:
            for start in range(skip, len(self.names), size):
                names = self.names[start : start + size]
                yield Piece({"path": [_text(name) for name in names]}, [self._root / name for name in names], [])
            return
        ends = accumulate(self._counts)
        for name, fragment, count, end in zip(self.names, self._fragments, self._counts, ends, strict=True):
            if count == 0 or end <= skip:
                continue
            mean, row = max(1, (self._root / name).stat().st_size // count), 0
            options = {"batch_size": max(1, min(size, _READ_BYTES // mean)), "batch_readahead": 1, "use_threads": False}
            try:
                for rows in fragment.to_batches(**options):
                    begin = max(0, skip - (end - count) - row)
                    fresh = rows.slice(begin)
                    if len(fresh):
                        first, images = row + min(begin, len(rows)), fresh.column("image").to_pylist()
                        rows_of = list(range(first, first + len(fresh)))
                        where: dict[str, list[Any]] = {"shard": [_text(name)] * len(fresh), "row": rows_of}
                        contents = [one.get("bytes") if isinstance(one, dict) else one for one in images]
                        carried = [fresh.column(i) for i, other in enumerate(fresh.schema.names) if other != "image"]
                        yield Piece(where, contents, carried)
                    row += len(rows)
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(self._root / name, error) from None


def _fragment(path: Path) -> Any:
    """Open a shard."""
    try:
        fragment = _FORMAT.make_fragment(str(path), LocalFileSystem())
        fragment.ensure_complete_metadata()
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None
    return fragment


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{path} cannot be read as Parquet ({reason}): restore or remove it")


def _text(name: str) -> str:
    """Return a file name as text that can be stored; it need not be valid Unicode."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


class Scorer:
    """From a piece to rows, under the limits of the service. Threads share it, and each computes alone."""

    def __init__(self, folder: Path, top: int, limits: settings.Settings, source: Source) -> None:
        """Open the model of a folder; each row has up to `top` labels."""
        self._found, self._limits = identity.read(folder, settings.ROOT), limits
        released = str(self._found.release.get("precision", "fp32"))
        self._model = Model(folder, 1, limits.device, released if limits.precision == "auto" else limits.precision)
        self._spec, self.top = self._model.spec, min(top, len(self._model.classes))
        self.rows = max(4, min(_PIECE, _BATCH_BYTES // int(np.prod(self._spec.shape))))
        where = [pa.field(name, _WHERE[name]) for name in (["shard", "row"] if source.shards else ["path"])]
        self.schema = pa.schema([*where, *source.carried, *(pa.field(name, kind) for name, kind in _OURS.items())])
        self.about = {"model": self._model.sha256, "spec": self._spec.to_json(), "version": self._found.version,
                      "manifest": self._found.manifest, "top": self.top,
                      "max_pixels": limits.max_pixels, "max_body": limits.max_body}  # fmt: skip

    def score_all(self, pieces: Iterator[Piece]) -> Iterator[Any]:
        """Score pieces in as many threads as processors and memory allow; yield tables in order, few of them in memory."""
        room = cgroups.memory_limit()
        threads = max(1, round(cgroups.processors()))
        if room is not None:
            threads = max(1, min(threads, room // 2 // (self._limits.max_pixels * _BYTES_OF_A_PIXEL)))
        waiting: deque[Future[Any]] = deque()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="score")
        try:
            while True:
                waiting.extend(pool.submit(self.score, piece) for piece in islice(pieces, 2 * threads - len(waiting)))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def score(self, piece: Piece) -> Any:
        """Read and decode the images of a piece, and ask the model; return a table.

        Raises:
            UserError: ONNX Runtime fails, for want of memory perhaps.
        """
        pixels = np.empty((len(piece.contents), *self._spec.shape), self._spec.dtype)
        errors: list[str | None] = []
        for content in piece.contents:
            try:
                pixels[errors.count(None)] = self._pixels(content)
                errors.append(None)
            except UndecodableError as error:
                errors.append(str(error).replace("prepare.max_megapixels", "SERVE_MAX_MEGAPIXELS"))
        try:
            probabilities = self._model.probabilities(pixels[: errors.count(None)])
        except Exception as error:  # ONNX Runtime raises classes of its own
            reason = str(error).splitlines()[0][:200]
            raise UserError(f"the model failed on {len(pixels)} images ({reason}): give it more memory") from None
        answers = iter(probabilities)
        ranked = [self._ranked(next(answers)) if error is None else None for error in errors]
        silent = "the model gave a probability that is no number"
        columns = [
            *piece.where.values(),
            *piece.carried,
            [row[0]["label"] if row else None for row in ranked],
            [row[0]["probability"] if row else None for row in ranked],
            ranked,
            [self._found.version] * len(ranked),
            [self._found.manifest] * len(ranked),
            [error or (None if row else silent) for row, error in zip(ranked, errors, strict=True)],
        ]
        arrays = [column if isinstance(column, pa.Array) else pa.array(column, field.type)
                  for column, field in zip(columns, self.schema, strict=True)]  # fmt: skip
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def _pixels(self, content: Path | bytes | None) -> Any:
        most = self._limits.max_body
        if isinstance(content, Path):
            try:
                if not content.is_file():
                    raise UndecodableError("no regular file, or a link that leads to none")
                content = content.read_bytes() if content.stat().st_size <= most else bytes(most + 1)
            except OSError as error:
                raise UndecodableError(f"unreadable: {error.strerror}") from None
        if content is None:
            raise UndecodableError("no image bytes: this row only names a file; store the bytes in the shard")
        if len(content) > most:
            raise UndecodableError(f"too large: over SERVE_MAX_BODY_MB {most / 1e6:g}")
        return look(content, self._limits.max_pixels, self._limits.max_pixels, self._spec).pixels

    def _ranked(self, row: Any) -> list[dict[str, Any]] | None:
        """Return the most probable labels of an image, rounded as the service does; None where one is no number."""
        if not np.isfinite(row.sum()):
            return None
        order = (-row).argsort(kind="stable")[: self.top].tolist()
        return [{"label": self._model.classes[i], "probability": round(float(row[i]), 6)} for i in order]


def _parts(folder: Path) -> list[Path]:
    """Return the parts that are there; the name of each is the number of its first row."""
    return sorted(folder.glob(f"{'[0-9]' * 12}.parquet"))


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


def _write_csv(target: Path, whole: Any, top: int) -> None:
    """Write CSV. The second most probable label is in column label_2, and so on; columns of bytes are left out."""
    kept = [field.name for field in whole.schema if "binary" not in str(field.type)]
    more = [name for place in range(2, top + 1) for name in (f"label_{place}", f"probability_{place}")]
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([one for name in kept for one in (more if name == "probabilities" else [name])])
        for rows in whole.to_batches(columns=kept, batch_size=_ROWS):
            for row in rows.to_pylist():
                others = [value for pair in (row["probabilities"] or [])[1:] for value in pair.values()] or [None] * len(
                    more
                )
                cells = [others if name == "probabilities" else [row[name]] for name in kept]
                writer.writerow([_cell(value) for part in cells for value in part])


def _cell(value: Any) -> Any:
    """Return what a value is in CSV: text that a spreadsheet would take as a formula gets an apostrophe before it."""
    if isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
