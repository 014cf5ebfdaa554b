"""Files that are whole or absent: each is written beside its place and moved there in one step."""

import glob
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.core.command import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path (a file or a folder is the caller's choice) that takes the place of `path` on success.

    On any failure the temporary is removed and what stood at `path` before stays as it was.

    Raises:
        UserError: a folder stands where a file is to be written, or a file where a folder is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.{os.getpid()}.", dir=path.parent))
    try:
        fresh = holder / path.name
        yield fresh
        if path.is_dir() == fresh.is_dir() and path.is_dir() and not path.is_symlink():
            _swap_folders(fresh, path, holder / "old")
        elif path.is_dir():
            raise UserError(f"{path} is a folder, and a file is to be written there: move it away")
        elif fresh.is_dir() and os.path.lexists(path):
            raise UserError(f"{path} is no folder, and a folder is to be written there: move it away")
        else:
            os.replace(fresh, path)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _swap_folders(fresh: Path, path: Path, old: Path) -> None:
    path.rename(old)
    try:
        fresh.rename(path)
    except OSError:
        old.rename(path)
        raise


def _sweep(path: Path) -> None:
    """Remove what a process that was killed left beside `path`."""
    for holder in path.parent.glob(f".{glob.escape(path.name)}.*.*"):
        pid = holder.name.split(".")[-2]
        if pid.isdecimal() and not _is_alive(int(pid)):
            shutil.rmtree(holder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def check_outputs(inputs: Iterable[Path], folders: Iterable[Path] = (), files: Iterable[Path] = ()) -> None:
    """Refuse outputs that would destroy an input or cannot be written, before any work is done.

    Raises:
        UserError: an output is, holds or lies in an input; or something of the other kind stands in its place.
    """
    for output in (*folders, *files):
        for path in inputs:
            mine, theirs = output.resolve(), path.resolve()
            if mine == theirs or mine in theirs.parents or theirs in mine.parents:
                raise UserError(f"{output} would overwrite the input {path}: name another place")
    for output in folders:
        if os.path.lexists(output) and (output.is_symlink() or not output.is_dir()):
            raise UserError(f"{output} is no folder, and a folder is to be written there: move it away")
    for output in files:
        if output.is_dir():
            raise UserError(f"{output} is a folder, and a file is to be written there: move it away")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: Any) -> str:
    """Return the SHA-256 of canonical JSON: sorted keys, no spaces; a number that is not finite raises ValueError."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write sorted, indented JSON; a number that is not finite is a bug in what made it, and raises ValueError."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as fresh:
        fresh.write_bytes(content)


def read_json(path: Path, made_by: str, keys: Iterable[str] = ()) -> Any:
    """Read a JSON object that has certain keys; a missing or damaged one is a UserError that names the stage to run."""
    if not path.is_file():
        raise UserError(f"{path} is missing: run `dvc repro {made_by}` first, which makes it")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): delete it and run `dvc repro {made_by}` again") from None
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: delete it and run `dvc repro {made_by}` again")
    return content


def rounded(value: float, digits: int = 6) -> float:
    """Round for a file that Git or a reviewer compares; rejects NaN and infinities with ValueError."""
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value}")
    return round(float(value), digits)
