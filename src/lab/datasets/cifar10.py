"""CIFAR-10 into data/: 50,000 training and 10,000 test photographs of 10 classes, 32x32.

    python -m src data-cifar10 data          (or make data-cifar10, which also runs `dvc add data`)

Comes from the authors' page, or from CIFAR10_URL: any http(s) or file address, or a path.
Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009).
"""

import argparse
import hashlib
import os
import tarfile
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
_PATIENCE = 30  # seconds without a byte
_BLOCK = 2**16
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
        UserError: the path does not exist, or the download failed.
    """
    parts = urlparse(address)
    if parts.scheme not in ("http", "https"):
        path = Path(url2pathname(parts.path) if parts.scheme == "file" else address)
        if not path.is_file():
            raise UserError(f"there is no file {path}: correct CIFAR10_URL")
        return path
    whole = downloads / "cifar-10-binary.tar.gz"
    try:
        with requests.get(address, headers={"Accept-Encoding": "identity"}, stream=True, timeout=_PATIENCE) as answer:
            answer.raise_for_status()
            expected = int(answer.headers.get("Content-Length", 0))
            with replacing(whole) as part, part.open("wb") as file, progress(expected, "B", "downloading") as bar:
                bar.unit_scale = True
                for block in answer.iter_content(_BLOCK):
                    file.write(block)
                    bar.update(len(block))
    except requests.RequestException as error:
        reason = f"HTTP {error.response.status_code}" if error.response is not None else type(error).__name__
        raise UserError(
            f"{address} could not be downloaded ({reason}): run this again, or name another source with "
            "CIFAR10_URL=<address or path>"
        ) from None
    return whole


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
    parser.add_argument(
        "--downloads", type=Path, default=Path("out/downloads"), help="where the archive lies until it is read"
    )
    args = parser.parse_args()
    if has_unrecorded_changes(args.folder):
        raise UserError(
            f"{args.folder}/ holds files that DVC has no copy of: run dvc add {args.folder}, or move them away, first"
        )
    bring(os.environ.get("CIFAR10_URL") or PAGE, args.downloads, args.folder)
    print(f"CIFAR-10 is in {args.folder}/. Set prepare.image_size: 32 and train.augment.flip: true in params.yaml")
