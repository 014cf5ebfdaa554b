"""DVC's list of who reads and writes what, `.dvc/tmp/rwlock`, as a kill can leave it; and one pipeline at a time.

DVC writes the list in place: a kill in that moment leaves it empty, and every later run stops. It also keeps those who were
killed, until another process happens to get the number of one of them: then it waits for that.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from src.core.locks import locked

_FOLDER = Path(".dvc/tmp")


@contextmanager
def alone() -> Iterator[None]:
    """Run the pipeline of this folder alone: wait for another `make reproduce`, and say which process that is."""

    def waiting(process: str) -> str:
        return f"make reproduce runs in this folder already (process {process or 'unknown'}): waiting for it"

    with locked(_FOLDER / "reproduce.lock", str(os.getpid()), waiting, longest=-1):
        yield


def mend() -> None:
    """Remove from DVC's list whoever no longer lives, and the whole list where a kill has spoilt it; say what was mended."""
    path = _FOLDER / "rwlock"
    if not path.is_file():
        return
    # DVC holds this one whenever it writes the list: what is spoilt now stays so
    with locked(_FOLDER / "rwlock.lock", str(os.getpid()), lambda _: "waiting for another process of DVC", longest=60):
        try:
            content = json.loads(path.read_text())
            alive = {
                "write": {name: info for name, info in content.get("write", {}).items() if _lives(info)},
                "read": {name: [one for one in infos if _lives(one)] for name, infos in content.get("read", {}).items()},
            }
        except (ValueError, AttributeError, KeyError, TypeError):
            path.unlink()
            print(f"{path} was spoilt, as by a kill: removed")
            return
        alive["read"] = {name: infos for name, infos in alive["read"].items() if infos}
        if any(content.get(kind, {}) != alive[kind] for kind in alive):
            fresh = path.with_name("rwlock.new")
            fresh.write_text(json.dumps(alive))
            fresh.replace(path)
            print(f"{path} named processes of DVC that no longer live: removed")


def _lives(info: dict[str, Any]) -> bool:
    """True when the process is one of DVC; its number may be another program's by now."""
    number = int(info["pid"])
    try:
        return any("dvc" in Path(word).parts for word in psutil.Process(number).cmdline()[:4])
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # another account's
        return True
