"""What an image holds, as a program inside of it sees it; the standard library only, because it runs there.

    docker run --rm -i --entrypoint python IMAGE - < src/release/inside.py

Prints JSON: the user, the files of the service with their SHA-256, and every Python and Debian package.
"""

import hashlib
import json
import os
import struct
import sys
from collections.abc import Iterable
from importlib import metadata
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_TRAINING = ("torch", "mlflow", "dvc", "sklearn", "pandas")  # the service needs none of them
_PYTHON = ("/usr/lib", "/usr/local/lib", "/app/.venv/lib")
# imported at every start; where the image holds no bytecode of them, and its disk is read-only, each start compiles them
_STARTED = ("asyncio.base_events", "email.message", "json.decoder", "logging", "typing", "bentoml", "numpy", "onnxruntime")


def files(root: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under the folder of the service."""
    found = sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def uncompiled(modules: Iterable[str] = _STARTED) -> list[str]:
    """Return the modules whose bytecode the image does not hold, or holds of another source; a frozen one needs none."""
    return [name for name in modules if (spec := find_spec(name)) is not None and spec.has_location and not _compiled(spec)]


def _compiled(spec: ModuleSpec) -> bool:
    """Compare the bytecode's header with its source: https://peps.python.org/pep-0552/."""
    try:
        header = Path(str(spec.cached)).read_bytes()[:16]
    except OSError:
        return False
    flags, seconds, size = struct.unpack("<III", header[4:16])
    state = Path(str(spec.origin)).stat()
    return bool(flags) or (seconds, size) == (int(state.st_mtime) & 0xFFFFFFFF, state.st_size & 0xFFFFFFFF)


def python_packages() -> list[dict[str, str]]:
    """Return every installed distribution, also those of the base image beside the service's own environment."""
    folders = {
        str(path) for root in _PYTHON for name in ("site", "dist") for path in Path(root).glob(f"python3*/{name}-packages")
    }
    found = {}
    for distribution in metadata.distributions(path=sorted({*folders, *sys.path})):
        name = str(distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name:
            found[name, distribution.version] = _licence(distribution.metadata)
    return [{"name": name, "version": version, "licence": found[name, version]} for name, version in sorted(found)]


def _licence(told: Any) -> str:
    """Return what the author calls the licence; a whole licence text in that field is left out."""
    text = str(told.get("License-Expression") or told.get("License") or "").strip()
    return text if "\n" not in text and len(text) <= 64 else ""


def debian_packages(status: Path = Path("/var/lib/dpkg/status")) -> list[dict[str, str]]:
    """Read dpkg's own list, which is there also where dpkg-query was removed; empty on another system."""
    if not status.is_file():
        return []
    found = []
    for entry in status.read_text(errors="replace").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line and not line.startswith(" "))
        if fields.get("Status", "").endswith(" installed"):
            found.append({"name": fields["Package"], "version": fields["Version"], "architecture": fields["Architecture"]})
    return sorted(found, key=lambda package: package["name"])


def _system() -> dict[str, str]:
    told = Path("/etc/os-release")
    lines = told.read_text().splitlines() if told.is_file() else []
    fields = dict(line.split("=", 1) for line in lines if "=" in line)
    return {name: fields.get(key, "").strip('"') for name, key in (("name", "ID"), ("version", "VERSION_ID"))}


def main() -> None:
    """Print everything."""
    found = {
        "uid": os.getuid(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "system": _system(),
        "uncompiled": uncompiled(),
        "training": [name for name in _TRAINING if find_spec(name) is not None],
        "files": files(Path(os.environ.get("BENTO_PATH", "/home/bentoml/bento")) / "src"),
        "packages": python_packages(),
        "debian": debian_packages(),
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
