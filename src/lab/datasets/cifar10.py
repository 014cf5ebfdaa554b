"""CIFAR-10 into data/: 50,000 training and 10,000 test photographs of 10 classes, 32x32.

    python -m src data-cifar10 data          (or make data-cifar10, which also runs `dvc add data`)

Comes from the authors' page, or from CIFAR10_URL: any http(s) or file address, or a path. A download that was cut off
goes on where it stopped. Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009).
"""

import argparse
import hashlib
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import requests
from numpy.typing import NDArray

from src.core.command import UserError, progress
from src.core.files import replacing
from src.lab.datasets import shards
from src.system.versioning import has_unrecorded_changes

PAGE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
PUBLISHED_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # on that page; of the binary version, which holds no pickles
_TRIES = 5
_PATIENCE = 30  # seconds without a byte
_BLOCK = 2**16  # what a cut-off download loses at most
_RECORD = 1 + 3 * 32 * 32  # label, then the red, green and blue planes
_MEMBERS = {
    "train": [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)],
    "test": ["cifar-10-batches-bin/test_batch.bin"],
}


def bring(address: str, downloads: Path, folder: Path, md5: str = PUBLISHED_MD5) -> None:
    """Fetch the archive, check it, and let `train.parquet` and `test.parquet` take the place of the folder's content.

    Raises:
        UserError: the archive cannot be had, or is not the one with this digest. The folder is then as it was.
    """
    archive = fetch(address, downloads)
    _require_digest(archive, md5, address)
    with replacing(folder) as fresh, tarfile.open(archive) as tar:
        fresh.mkdir()
        classes = _read(tar, "cifar-10-batches-bin/batches.meta.txt").decode().split()
        total = 10_000 * sum(map(len, _MEMBERS.values()))
        with progress(total, "image", "writing") as bar:
            for split, members in _MEMBERS.items():
                shards.write(fresh / f"{split}.parquet", _examples(tar, members, bar), classes)
    if archive.parent == downloads:
        archive.unlink()


def fetch(address: str, downloads: Path) -> Path:
    """Return a local path to what the address names, downloading it first where it is remote.

    Raises:
        UserError: the path does not exist, or the download failed after several tries (what came stays for the next).
    """
    parts = urlparse(address)
    if parts.scheme not in ("http", "https"):
        path = Path(url2pathname(parts.path) if parts.scheme == "file" else address)
        if not path.is_file():
            raise UserError(f"there is no file {path}: correct CIFAR10_URL")
        return path
    downloads.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(address.encode()).hexdigest()[:16]
    part, whole = downloads / f"{name}.part", downloads / f"{name}.tar.gz"
    for attempt in range(1, _TRIES + 1):
        if whole.exists():
            break
        try:
            _download(address, part)
            part.rename(whole)
        except requests.RequestException as error:
            answer = error.response
            reason = f"HTTP {answer.status_code} {answer.reason}" if answer is not None else type(error).__name__
            final = answer is not None and 400 <= answer.status_code < 500  # trying again cannot help
            if attempt == _TRIES or final or isinstance(error, requests.exceptions.InvalidURL):
                kept = part.stat().st_size if part.exists() else 0
                raise UserError(
                    f"{address} could not be downloaded ({reason}); {kept / 2**20:.0f} MiB are kept and the same command "
                    "goes on from there. Another source: CIFAR10_URL=<address or path>"
                ) from None
            print(f"download cut off ({reason}); trying again", flush=True)
            time.sleep(2**attempt / 4)
    return whole


def _download(address: str, part: Path) -> None:
    """Fetch what is still missing of the address into `part`."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    with requests.get(address, headers=headers, stream=True, timeout=_PATIENCE) as answer:
        if have and answer.status_code == 416:  # nothing is missing, or the file has changed: the digest will tell
            return
        answer.raise_for_status()
        go_on = answer.status_code == 206
        expected = (have if go_on else 0) + int(answer.headers.get("Content-Length", 0))
        with part.open("ab" if go_on else "wb") as file, progress(expected, "B", "downloading") as bar:
            bar.unit_scale = True
            bar.update(have if go_on else 0)
            for block in answer.iter_content(_BLOCK):
                file.write(block)
                bar.update(len(block))
    if expected and part.stat().st_size < expected:
        raise requests.ConnectionError(f"the server sent {part.stat().st_size} of {expected} bytes")


def _require_digest(archive: Path, md5: str, address: str) -> None:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found == md5:
        return
    if str(archive) != address and not address.startswith("file:"):
        archive.unlink()
    raise UserError(
        f"{address} is not CIFAR-10's binary archive: its MD5 is {found}, published is {md5}. "
        "Point CIFAR10_URL at cifar-10-binary.tar.gz; data/ is as it was"
    )


def _read(tar: tarfile.TarFile, member: str) -> bytes:
    try:
        file: IO[bytes] | None = tar.extractfile(member)
    except KeyError:
        file = None
    if file is None:
        raise UserError(f"the archive has no {member}: point CIFAR10_URL at cifar-10-binary.tar.gz")
    return file.read()


def _examples(tar: tarfile.TarFile, members: list[str], bar: Any) -> Iterator[tuple[NDArray[np.uint8], int]]:
    for member in members:
        records = np.frombuffer(_read(tar, member), dtype=np.uint8).reshape(-1, _RECORD)
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for image, label in zip(images, records[:, 0], strict=True):
            yield np.ascontiguousarray(image), int(label)
            bar.update()


def main() -> None:
    parser = argparse.ArgumentParser(description="Let CIFAR-10 take the place of what is in a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--downloads", type=Path, default=Path("out/downloads"), help="where an unfinished download is kept")
    args = parser.parse_args()
    if has_unrecorded_changes(args.folder):
        raise UserError(
            f"{args.folder}/ holds files that DVC has no copy of: run dvc add {args.folder}, or move them away, first"
        )
    bring(os.environ.get("CIFAR10_URL") or PAGE, args.downloads, args.folder)
    print(f"CIFAR-10 is in {args.folder}/. Set prepare.image_size: 32 and train.augment.flip: true in params.yaml")
