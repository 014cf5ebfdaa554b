"""What batch inference has done so far: OUT.parts/, from which a run that was killed goes on.

Each file `FIRST.ROWS.ERRORS.ENDING` holds some rows and appears when it is whole, so their names tell how far the run came.
journal.json says of which images and which model they are. OUT takes all of them at the end, and OUT.parts/ goes away.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.core.command import UserError
from src.core.files import read_json, replacing, write_json
from src.serving.batch_results import Form
from src.serving.batch_rows import Scored

_ROWS = 4096  # of a part
_SECONDS = 1.0  # after which a part is written with fewer: so much work a kill may cost
_JOURNAL = "journal.json"


@contextmanager
def held(out: Path) -> Iterator[Path]:
    """Make the folder of the parts of `out` and keep it for this process; the system frees it when that dies.

    Raises:
        UserError: another run writes the same output.
    """
    folder = folder_of(out)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor, out)
        if not begun(out):
            clear(folder)
        try:
            yield folder
        finally:
            if not begun(out):
                _remove(folder)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another run is writing {out}: wait for it, or name another output") from None


def _remove(folder: Path) -> None:
    """Remove the folder, unless somebody keeps something in it."""
    clear(folder)
    if not any(folder.iterdir()):
        folder.rmdir()


def folder_of(out: Path) -> Path:
    """Return where the parts of an output are."""
    return out.with_name(out.name + ".parts")


def begun(out: Path) -> bool:
    """Tell whether a run has begun and not ended."""
    return (folder_of(out) / _JOURNAL).is_file()


def clear(folder: Path) -> None:
    """Remove what runs have written into the folder."""
    (folder / _JOURNAL).unlink(missing_ok=True)  # first: without it nothing is left to go on from
    for path in folder.iterdir():
        if path.name in ("inputs", "part") or _numbers(path):
            path.unlink()


class Parts:
    """The parts of one output, in their order. `rows` and `errors` count those that are safely written."""

    def __init__(self, folder: Path, about: Mapping[str, Any], form: Form) -> None:
        """Begin a journal, or go on with one.

        Args:
            folder: from `held`.
            about: all that decides what the rows will be, as JSON holds it.
            form: of the output.

        Raises:
            UserError: the journal is of other images, another model or other settings.
        """
        self._folder, self._form = folder, form
        self._waiting: list[Any] = []
        self._unwritten = self._faulty = 0
        self._written_at = time.monotonic()
        if not (folder / _JOURNAL).is_file():
            write_json(folder / _JOURNAL, dict(about))
        _compare(folder, about)
        self._paths = list(_whole(folder, form.ending))
        self.rows = sum(_numbers(path)[1] for path in self._paths)
        self.errors = sum(_numbers(path)[2] for path in self._paths)

    def add(self, scored: Scored) -> None:
        """Take rows, and write a part when there are many, or when it is time."""
        self._waiting.append(self._form.encode(scored))
        self._unwritten += len(scored.errors)
        self._faulty += sum(error is not None for error in scored.errors)
        if self._unwritten >= _ROWS or time.monotonic() - self._written_at > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what has been taken as a part."""
        if not self._unwritten:
            return
        name = f"{self.rows:012}.{self._unwritten}.{self._faulty}{self._form.ending}"
        fresh = self._folder / "part"
        try:
            self._form.save(self._waiting, fresh)
            _keep(fresh)
            os.replace(fresh, self._folder / name)
        finally:
            fresh.unlink(missing_ok=True)
        self._paths.append(self._folder / name)
        self.rows, self.errors = self.rows + self._unwritten, self.errors + self._faulty
        self._waiting, self._unwritten, self._faulty = [], 0, 0
        self._written_at = time.monotonic()

    def finish(self, out: Path) -> None:
        """Write all rows to `out`, which appears whole, and forget the parts."""
        with replacing(out) as fresh:
            self._form.join(self._paths, fresh)
            _keep(fresh)
        clear(self._folder)


def _keep(path: Path) -> None:
    """Let the disk have a file before its name says that it is whole."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _numbers(path: Path) -> tuple[int, ...]:
    """Return first row, rows and errors of a part; nothing for another file."""
    words = path.name.split(".")
    numbers = words[:-1]
    return tuple(map(int, numbers)) if len(numbers) == 3 and all(word.isdecimal() for word in numbers) else ()


def _whole(folder: Path, ending: str) -> Iterator[Path]:
    """Yield the parts from the first row on, each beginning where the one before ends."""
    following = 0
    for path in sorted(path for path in folder.iterdir() if _numbers(path) and path.name.endswith(ending)):
        first, rows, _ = _numbers(path)
        if first != following:
            raise UserError(f"{folder} lacks a part before {path.name}: begin anew with --restart")
        yield path
        following += rows


def _compare(folder: Path, about: Mapping[str, Any]) -> None:
    before = read_json(folder / _JOURNAL, made_by="batch")
    for key, value in json.loads(json.dumps(about)).items():
        if before.get(key) != value:
            was = f"{key} {_short(before.get(key))}, now {_short(value)}"
            raise UserError(f"{folder} was begun with {was}: bring that back to go on, or begin anew with --restart")


def _short(value: object) -> str:
    return str(value)[:16]
