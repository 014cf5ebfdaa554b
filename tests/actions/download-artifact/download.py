"""What actions/download-artifact does for artifacts of the same run; run by action.yml beside it."""

import io
import json
import os
import sys
import urllib.error
import urllib.request
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import quote

STORE = f"{os.environ['GITHUB_SERVER_URL']}/_runtime/{os.environ['GITHUB_RUN_ID']}"


def main() -> None:
    name, folder = os.environ["NAME"], Path(os.environ["FOLDER"])
    if name:
        unpack(name, folder)
        return
    found = [name for name in json.loads(ask("")) if fnmatchcase(name, os.environ["PATTERN"] or "*")]
    print(f"{len(found)} artifacts are of the pattern {os.environ['PATTERN']}")
    for name in found:  # one alone gets no folder of its own, as in the real action since v5
        unpack(name, folder / name if len(found) > 1 else folder)


def unpack(name: str, folder: Path) -> None:
    try:
        blob = ask(f"/{quote(name, safe='')}")
    except urllib.error.HTTPError:
        sys.exit(f"Unable to download artifact(s): Artifact not found for name: {name}")
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        archive.extractall(folder)
    print(f"artifact {name}: {len(blob)} bytes unpacked into {folder}")


def ask(path: str) -> bytes:
    headers = {"Authorization": f"Bearer {os.environ['STANDIN_RUNTIME_TOKEN']}"}
    with urllib.request.urlopen(urllib.request.Request(STORE + path, headers=headers), timeout=60) as answer:
        return answer.read()


if __name__ == "__main__":
    main()
