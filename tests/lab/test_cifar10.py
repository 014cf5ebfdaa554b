"""CIFAR-10 arrives whole or not at all, from a server that misbehaves: python -m pytest tests/lab/test_cifar10.py"""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import requests
from PIL import Image

from src.core.command import UserError
from src.lab.datasets import cifar10, digits

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def make_archive(images: int = 20) -> tuple[bytes, dict[str, np.ndarray]]:
    """An archive of the published layout, with few images; the records of each member."""
    random = np.random.default_rng(1)
    target, records = io.BytesIO(), {}
    with tarfile.open(fileobj=target, mode="w:gz") as tar:

        def add(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

        add("batches.meta.txt", ("\n".join(NAMES) + "\n\n").encode())
        for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
            records[name] = random.integers(0, 256, (images, 3073), dtype=np.uint8)
            records[name][:, 0] %= 10
            add(name, records[name].tobytes())
    return target.getvalue(), records


ARCHIVE, RECORDS = make_archive()
MD5 = hashlib.md5(ARCHIVE).hexdigest()


ADDRESS = "https://example.org/cifar.tar.gz"


def require_whole(folder: Path) -> None:
    train = pq.read_table(folder / "train.parquet")
    test = pq.read_table(folder / "test.parquet")
    assert (len(train), len(test)) == (100, 20)
    features = json.loads(train.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"]["names"] == NAMES
    row = test.slice(7, 1).to_pylist()[0]
    record = RECORDS["test_batch.bin"][7]
    assert row["label"] == record[0]
    with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
        np.testing.assert_array_equal(np.asarray(image), record[1:].reshape(3, 32, 32).transpose(1, 2, 0))


def bring(address: str, tmp_path: Path, md5: str = MD5) -> Path:
    cifar10.bring(address, tmp_path / "downloads", tmp_path / "data", md5)
    return tmp_path / "data"


@pytest.mark.parametrize(("status", "sent"), [(200, len(ARCHIVE)), (200, len(ARCHIVE) // 2), (503, 0)])
def test_a_download_is_whole_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, sent: int) -> None:
    answer = requests.Response()
    answer.status_code, answer.raw = status, io.BytesIO(ARCHIVE[:sent])
    monkeypatch.setattr(requests, "get", lambda *_, **__: answer)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "digits.parquet").touch()
    if sent == len(ARCHIVE):
        folder = bring(ADDRESS, tmp_path)
        require_whole(folder)
        assert sorted(path.name for path in folder.iterdir()) == ["test.parquet", "train.parquet"]
    else:
        with pytest.raises(UserError, match=r"could not be downloaded \(HTTP 503\)" if status == 503 else "its MD5 is"):
            bring(ADDRESS, tmp_path)
        assert [path.name for path in (tmp_path / "data").iterdir()] == ["digits.parquet"]
    assert list(tmp_path.glob("downloads/*")) == []


def test_from_a_path_which_stays_and_one_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a b.tar.gz"
    path.write_bytes(ARCHIVE)
    for address in (str(path), path.as_uri()):
        require_whole(bring(address, tmp_path))
        assert path.exists()
    with pytest.raises(UserError, match="there is no file /no/such/file.tar.gz: correct CIFAR10_URL"):
        bring("file:///no/such/file.tar.gz", tmp_path)


def test_the_starter_digits_are_scikit_learns(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits.write(tmp_path)
    rows = pq.read_table(tmp_path / "digits.parquet").to_pylist()
    assert len(rows) == 1797
    with Image.open(io.BytesIO(rows[5]["image"]["bytes"])) as image:
        np.testing.assert_allclose(np.asarray(image, dtype=float) * 16 / 255, load_digits().images[5], atol=0.04)
    assert [row["label"] for row in rows] == load_digits().target.tolist()
