"""A training run that was killed goes on where it was: its state lies in a file named after everything that shaped it."""

import hashlib
import io
import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from src.core.files import replacing
from src.core.locks import locked

_SHARE_OF_TIME = 0.05  # that saving may cost
_PATIENCE = 60.0  # seconds
_KEYS = {"epoch", "run", "best", "history", "weights", "optimizer"}


class Checkpoint:
    """The state of one run, under a key: another data set, parameter or line of code has another key and starts afresh."""

    def __init__(self, folder: Path, key: str) -> None:
        self._path = folder / f"{key}.pt"
        self._saved_at, self._cost = 0.0, 0.0

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or None where there is none that is whole. Holds tensors and plain values, no code."""
        try:
            state = torch.load(self._path, map_location="cpu", weights_only=True)
        except Exception:  # torch raises almost any class on a damaged file, and a damaged checkpoint is none
            return None
        return state if isinstance(state, dict) and set(state) >= _KEYS else None

    def save(self, state: dict[str, Any]) -> None:
        """Save, unless the last save is so recent that saving would take more than a twentieth of the time.

        A disk that is full costs the checkpoint, not the training.
        """
        now = time.monotonic()
        if self._saved_at and now - self._saved_at < self._cost / _SHARE_OF_TIME:
            return
        self.clear()
        content = io.BytesIO()
        torch.save(state, content)
        try:
            # once it is on the disk: also after a power cut the old state or the new one is there whole
            with replacing(self._path) as fresh, fresh.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            print(f"the checkpoint {self._path} could not be saved ({error.strerror}); training goes on", file=sys.stderr)
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - now

    def clear(self) -> None:
        """Remove the state of other runs; this one's stays until it is replaced."""
        for other in self._path.parent.glob("*.pt"):
            if other != self._path and re.fullmatch(r"[0-9a-f]{32}\.pt", other.name):
                other.unlink()

    def finish(self) -> None:
        """Remove the state of a run that is done."""
        self._path.unlink(missing_ok=True)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Be the only run that goes on from, and writes, the states in a folder and what is made of them.

    A run that was killed may leave a process that still ends: it is waited for. On a shared file system the lock holds
    between machines as far as that file system's does.

    Raises:
        UserError: another process does not let go within a minute.
    """

    def waiting(holder: str) -> str:
        return f"another training goes on with {folder}: {holder or 'a process that began just now'}"

    with locked(folder / "lock", f"process {os.getpid()} on {socket.gethostname()}", waiting, longest=_PATIENCE):
        yield


def key(*parts: Any) -> str:
    """Return a digest of JSON values and of the bytes of files."""
    state = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else json.dumps(part, sort_keys=True).encode()
        state.update(len(content).to_bytes(8, "big") + content)
    return state.hexdigest()[:32]
