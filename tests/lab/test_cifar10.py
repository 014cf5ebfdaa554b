"""CIFAR-10 arrives whole or not at all, from a server that misbehaves: python -m pytest tests/lab/test_cifar10.py"""

import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
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


class Misbehaving(BaseHTTPRequestHandler):
    """Serves the archive, cutting off as many answers as `cuts` says; notes each request's range."""

    cuts = 0
    status = 200
    ranges: bool = True
    seen: list[str | None] = []  # noqa: RUF012 - reset by the fixture

    def do_GET(self) -> None:
        cls = type(self)
        asked = self.headers.get("Range")
        cls.seen.append(asked)
        start = int(asked.split("=")[1].rstrip("-")) if asked and cls.ranges else 0
        if cls.status != 200:
            self.send_error(cls.status)
            return
        body = ARCHIVE[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if cls.cuts:
            cls.cuts -= 1
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Misbehaving.cuts, Misbehaving.status, Misbehaving.ranges, Misbehaving.seen = 0, 200, True, []
    monkeypatch.setattr("time.sleep", lambda _: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Misbehaving) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}/cifar.tar.gz"
        made.shutdown()
        thread.join()


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


def test_from_a_server(server: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "digits.parquet").touch()
    folder = bring(server, tmp_path)
    require_whole(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["test.parquet", "train.parquet"]
    assert list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.parametrize("form", ["path", "file address"])
def test_from_a_path_which_stays(tmp_path: Path, form: str) -> None:
    (tmp_path / "a b.tar.gz").write_bytes(ARCHIVE)
    path = tmp_path / "a b.tar.gz"
    require_whole(bring(str(path) if form == "path" else path.as_uri(), tmp_path))
    assert path.exists()


def test_a_download_that_is_cut_off_goes_on_where_it_stopped(server: str, tmp_path: Path) -> None:
    Misbehaving.cuts = 3
    require_whole(bring(server, tmp_path))
    starts = [int(asked.split("=")[1].rstrip("-")) if asked else 0 for asked in Misbehaving.seen]
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert len(starts) == 4


def test_a_run_that_gave_up_is_continued_by_the_next(server: str, tmp_path: Path) -> None:
    Misbehaving.cuts = 5
    with pytest.raises(UserError, match="goes on from there. Another source: CIFAR10_URL="):
        bring(server, tmp_path)
    assert not (tmp_path / "data").exists()
    require_whole(bring(server, tmp_path))
    assert Misbehaving.seen[-1] is not None


def test_a_server_without_ranges_starts_over(server: str, tmp_path: Path) -> None:
    Misbehaving.cuts, Misbehaving.ranges = 1, False
    require_whole(bring(server, tmp_path))


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (503, 5)])
def test_an_error_is_told_with_its_status(server: str, tmp_path: Path, status: int, tries: int) -> None:
    Misbehaving.status = status
    with pytest.raises(UserError, match=f"could not be downloaded \\(HTTP {status}"):
        bring(server, tmp_path)
    assert len(Misbehaving.seen) == tries


def test_a_wrong_archive_is_refused_and_data_stay(server: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.png").touch()
    with pytest.raises(UserError, match=f"its MD5 is {MD5}, published is {cifar10.PUBLISHED_MD5}"):
        bring(server, tmp_path, cifar10.PUBLISHED_MD5)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine.png"]
    assert list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.parametrize("address", ["/no/such/file.tar.gz", "file:///no/such/file.tar.gz"])
def test_a_path_that_is_not_there(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file /no/such/file.tar.gz: correct CIFAR10_URL"):
        bring(address, tmp_path)


def test_a_dead_server_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(UserError, match="could not be downloaded") as caught:
        bring("http://127.0.0.1:9/x", tmp_path)
    assert "\n" not in str(caught.value)


def test_the_starter_digits_are_scikit_learns(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits.write(tmp_path)
    rows = pq.read_table(tmp_path / "digits.parquet").to_pylist()
    assert len(rows) == 1797
    with Image.open(io.BytesIO(rows[5]["image"]["bytes"])) as image:
        np.testing.assert_allclose(np.asarray(image, dtype=float) * 16 / 255, load_digits().images[5], atol=0.04)
    assert [row["label"] for row in rows] == load_digits().target.tolist()
