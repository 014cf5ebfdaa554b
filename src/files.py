"""Files that are whole or absent: each is written beside its place and moved there in one step."""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.command import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path (a file or a folder is the caller's choice) that takes the place of `path` on success.

    On any failure the temporary is removed and what stood at `path` before stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        fresh = holder / path.name
        yield fresh
        if path.is_dir() and not path.is_symlink():
            path.rename(holder / "old")
        os.replace(fresh, path)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write sorted, indented JSON; a number that is not finite is a bug in what made it, and raises ValueError."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as fresh:
        fresh.write_bytes(content)


def read_json(path: Path, made_by: str) -> Any:
    """Read a JSON file; a missing or broken one is a UserError that names the stage which makes it."""
    if not path.is_file():
        raise UserError(f"{path} is missing: run `dvc repro {made_by}` first, which makes it")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): delete it and run `dvc repro {made_by}` again") from None


def rounded(value: float, digits: int = 6) -> float:
    """Round for a file that Git or a reviewer compares; rejects NaN and infinities with ValueError."""
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value}")
    return round(float(value), digits)
