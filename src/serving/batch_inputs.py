"""What batch inference reads: the files of a folder, or the rows of Parquet shards, in an order that stays the same.

The list is sorted on disk, so memory stays the same for any number of files. Its digest tells whether a run that goes on
meets the inputs with which it began.
"""

import hashlib
import heapq
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from src.core.command import UserError
from src.images.images import UndecodableError
from src.serving.batch_rows import Content, Entry, Listing, Piece, check_size, show

_SORTED_AT_ONCE = 200_000  # names in memory
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def scan(source: Path, target: Path) -> Listing:
    """List what is to be read, without opening an image; the list is written to `target`, whose folder takes scratch files.

    Raises:
        UserError: there is nothing to read, a shard is unfit, or images lie beside shards.
    """
    if not source.exists():
        raise UserError(f"{source} is not there: name a folder of images, an image or a Parquet file")
    root = source if source.is_dir() else source.parent
    found = _walk(str(root)) if source.is_dir() else iter([_entry(str(source), source.name)])
    shards: list[Entry] = []
    files, pictures, first = 0, 0, ""

    def images() -> Iterator[bytes]:
        nonlocal files, pictures, first
        for entry in found:
            if entry.path.lower().endswith(".parquet"):
                shards.append(entry)
                continue
            files += 1
            if entry.path.lower().endswith(_PICTURES):
                pictures, first = pictures + 1, first or entry.path
            yield _line(entry)

    digest = _write(_sorted(images(), target), target)
    if not shards:
        if not files:
            raise UserError(f"{source} holds no images: put some there, or name another folder")
        return Listing(root, target, False, files, digest, 0)
    if pictures:
        raise UserError(f"{source} holds Parquet shards and image files ({show(first)}): put one of both elsewhere")
    counted = _count(root, sorted(shards))
    images_in_all = sum(entry.images for entry in counted)
    if not images_in_all:
        raise UserError(f"{source} holds no images: its Parquet shards have no rows")
    return Listing(root, target, True, images_in_all, _write(map(_line, counted), target), files)


def _walk(root: str) -> Iterator[Entry]:
    """Yield all that is no folder; a link back to a folder above is not followed for ever."""
    waiting: list[tuple[str, frozenset[str]]] = [("", frozenset())]
    while waiting:
        folder, above = waiting.pop()
        here = os.path.realpath(os.path.join(root, folder))
        if here in above:
            continue
        with os.scandir(here) as found:
            for one in found:
                path = f"{folder}/{one.name}" if folder else one.name
                if _is_folder(one):
                    waiting.append((path, above | {here}))
                else:
                    yield _entry(one, path)


def _is_folder(one: "os.DirEntry[str]") -> bool:
    try:
        return one.is_dir()
    except OSError:  # a link to itself; as a file it becomes a row with an error
        return False


def _entry(one: "os.DirEntry[str] | str", path: str) -> Entry:
    try:
        status = os.stat(one)
    except OSError:
        return Entry(path, -1, 0, 1)
    return Entry(path, status.st_size, status.st_mtime_ns, 1)


def _count(root: Path, shards: Iterable[Entry]) -> list[Entry]:
    tables = load_tables()
    rows = tables.count([root / entry.path for entry in shards])
    return [entry._replace(images=count) for entry, count in zip(shards, rows, strict=True)]


def load_tables() -> Any:
    """Return the module that reads and writes Parquet.

    Raises:
        UserError: its package is not installed, as in the image of the service.
    """
    try:
        from src.serving import batch_tables
    except ImportError as error:
        if error.name != "pyarrow":
            raise
        sentence = "Parquet needs the package pyarrow, which is not installed here (the image of the service has none)"
        raise UserError(f"{sentence}: install it, or read a folder of images and write .csv or .jsonl") from None
    return batch_tables


def _line(entry: Entry) -> bytes:
    return json.dumps(entry).encode() + b"\n"  # ASCII, also of names that are no valid Unicode


def _sorted(lines: Iterator[bytes], target: Path) -> Iterator[bytes]:
    """Sort any number of lines in bounded memory: sorted runs go to disk and are merged."""
    with ExitStack() as stack:
        runs: list[IO[bytes]] = []
        while run := sorted(islice(lines, _SORTED_AT_ONCE)):
            file = stack.enter_context(target.with_suffix(f".{len(runs)}").open("w+b"))
            os.unlink(file.name)  # it lives as long as it is open, and leaves nothing behind
            file.writelines(run)
            file.seek(0)
            runs.append(file)
        yield from heapq.merge(*runs)


def _write(lines: Iterable[bytes], target: Path) -> str:
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for line in lines:
            digest.update(line)
            file.write(line)
    return digest.hexdigest()


def pieces(listing: Listing, skip: int, size: int, most: int) -> Iterator[Piece]:
    """Yield files of a folder in pieces of `size`, without the first `skip`; none is larger than `most` bytes."""
    names = (entry.path for entry in islice(listing.entries(), skip, None))
    while piece := list(islice(names, size)):
        yield Piece({"path": [show(name) for name in piece]}, partial(_read_all, str(listing.root), piece, most))


def _read_all(root: str, names: list[str], most: int) -> Iterator[Content]:
    for name in names:
        try:
            yield _read(os.path.join(root, name), most)
        except OSError as error:
            yield UndecodableError(f"unreadable: {error.strerror}")


def _read(path: str, most: int) -> Content:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # to open a pipe would wait for ever
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return UndecodableError("not a regular file")
        return check_size(status.st_size, most) or file.readall()
