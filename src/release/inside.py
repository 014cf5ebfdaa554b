"""What an image holds, as a program inside of it sees it; the standard library only, because it runs there.

    docker run --rm -i --entrypoint python IMAGE - < src/release/inside.py

Prints JSON: the user, the files of the service with their SHA-256, and every Python and Debian package.
"""

import hashlib
import json
import os
import platform
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

_TRAINING = ("torch", "mlflow", "dvc", "sklearn", "pandas")  # the service needs none of them


def files(root: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under the folder of the service."""
    found = sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def python_packages() -> list[tuple[str, str]]:
    """Return name and version of every distribution, also those of the base image beside the service's own environment."""
    base = [str(path) for root in ("/usr/lib", "/usr/local/lib") for path in Path(root).glob("python3*/*-packages")]
    found = metadata.distributions(path=[*base, *sys.path])
    return sorted({(str(each.metadata["Name"]).lower().replace("_", "-"), each.version) for each in found})


def debian_packages(status: Path = Path("/var/lib/dpkg/status")) -> list[tuple[str, str, str]]:
    """Read name, version and architecture from dpkg's list, there also without dpkg-query; empty on another system."""
    found = []
    for entry in status.read_text(errors="replace").split("\n\n") if status.is_file() else []:
        fields = dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line and not line.startswith(" "))
        if fields.get("Status", "").endswith(" installed"):
            found.append((fields["Package"], fields["Version"], fields["Architecture"]))
    return sorted(found)


def main() -> None:
    """Print everything."""
    found = {
        "uid": os.getuid(),
        "system": platform.freedesktop_os_release()["ID"] if Path("/etc/os-release").is_file() else "",
        "training": [name for name in _TRAINING if find_spec(name) is not None],
        "files": files(Path(os.environ["BENTO_PATH"], "src")),
        "packages": python_packages(),
        "debian": debian_packages(),
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
