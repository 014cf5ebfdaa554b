"""Batch inference says what the service says, loses and doubles no row, and ends on no image.

pytest tests/serving/test_batch.py
"""

import csv
import errno
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import PATIENCE, ROOT, encode, until
from test_serving import make_engine, picture, serving, write_model

from src.core.command import UserError
from src.core.files import sha256
from src.serving import batch

PIXELS = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
HOSTILE = Path(__file__).parent / "hostile"
BOMB = (HOSTILE / "413" / "bomb_of_400_megapixels.png").read_bytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("batch") / "model")


@pytest.fixture
def call(model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs the command here, in this process."""

    def run(source: Path, out: Path, *options: str) -> None:
        monkeypatch.setattr(sys, "argv", ["batch", str(source), str(out), "--model", str(model), "--quiet", *options])
        batch.main()

    return run


def colours(folder: Path) -> Path:
    """Write a folder of pictures in every way that pictures are written, and two that are none."""
    random = np.random.default_rng(3)
    (folder / "deep" / "er.png").mkdir(parents=True)
    for i, kind in enumerate(("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PNG", "JPEG")):
        pixels = random.integers(0, 256, (9 + i, 12, 3), dtype=np.uint8)
        (folder / ("deep/er.png" if i % 2 else "") / f"{i}.{kind.lower()}").write_bytes(encode(pixels, kind))
    (folder / "grey.png").write_bytes(encode(random.integers(0, 256, (8, 8), dtype=np.uint8)))
    (folder / "words.png").write_text("no picture")
    (folder / "nothing.jpg").touch()
    return folder


def shard(path: Path, images: list[Any], **columns: Any) -> Path:
    rows = [{"bytes": image, "path": None} if not isinstance(image, dict) else image for image in images]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(rows, PIXELS), **columns}), path, row_group_size=1000)
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(path).to_pylist())


@pytest.mark.journey
def test_it_says_what_the_service_says_of_the_same_files(call: Any, model: Path, tmp_path: Path) -> None:
    folder = colours(tmp_path / "in")
    for path in HOSTILE.glob("*/*.[jpgt]*"):
        if path.suffix != ".http":
            shutil.copy(path, folder)
    call(folder, tmp_path / "out.parquet", "--top", "2")
    with serving(make_engine(model, max_pixels=12_500_000)) as url, httpx.Client(base_url=url) as client:
        for row in rows(tmp_path / "out.parquet"):
            content = (folder / row["path"]).read_bytes()
            answer = client.post("/predict?top=2", content=content, headers={"Content-Type": "image/png"})
            assert (answer.status_code == 200) == (row["error"] is None), (row["path"], answer.text)
            if row["error"] is None:
                body = answer.json()
                assert (row["label"], row["model_version"]) == (body["label"], body["model_version"])
                given = [(one["label"], one["probability"]) for one in row["probabilities"]]
                assert given == [
                    (one["label"], pytest.approx(one["probability"], abs=2e-6)) for one in body["probabilities"]
                ]


def test_csv_holds_what_parquet_holds(call: Any, tmp_path: Path) -> None:
    folder = colours(tmp_path / "in")
    for ending in ("csv", "parquet"):
        call(folder, tmp_path / f"out.{ending}")
        assert not (tmp_path / f"out.{ending}.parts").exists()
    found = rows(tmp_path / "out.parquet")
    assert [row["path"] for row in found] == sorted(row["path"] for row in found)
    with (tmp_path / "out.csv").open(newline="") as file:
        for plain, row in zip(csv.DictReader(file), found, strict=True):
            pairs = [(plain[f"label{end}"], plain[f"probability{end}"]) for end in ("", "_2", "_3")]
            listed = row["probabilities"] or [{"label": "", "probability": ""}] * 3
            assert pairs == [(one["label"], str(one["probability"])) for one in listed]
            assert (plain["path"], plain["error"]) == (row["path"], row["error"] or "")


@pytest.mark.parametrize("name", ["=1+1.png", "+1.png", "-1.png", "@SUM(1).png", "\t=1.png"])
def test_a_name_is_no_formula_in_a_spreadsheet(call: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(picture())
    call(tmp_path / "in", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [f"'{name}"]


def test_nothing_in_a_folder_ends_the_run(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    (folder / "directory.png").mkdir(parents=True)
    (folder / "directory.png" / "loop").symlink_to(folder)
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "broken.png").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.png")
    (folder / os.fsdecode(b'caf\xe9\n,".png')).write_bytes(picture())
    (folder / "zero.png").touch()
    (folder / "huge.png").write_bytes(b"\x89PNG" + bytes(2000))
    (folder / "wide.png").write_bytes(BOMB[:900])
    monkeypatch.setenv("SERVE_MAX_BODY_MB", "0.001")
    monkeypatch.setenv("SERVE_MAX_MEGAPIXELS", "1")
    for ending in ("csv", "parquet"):
        call(folder, tmp_path / f"out.{ending}")
    told = {row["path"]: row["error"] for row in rows(tmp_path / "out.parquet")}
    assert told.pop('caf\\xe9\n,".png') is None
    words = {
        "self.png": "no regular file, or a link",
        "broken.png": "no regular file, or a link",
        "pipe.png": "no regular file",
        "zero.png": "empty file",
        "huge.png": "too large: over SERVE_MAX_BODY_MB",
        "wide.png": "too large",
    }
    assert set(told) == set(words)
    assert all(told[name].startswith(word) for name, word in words.items()), told
    with (tmp_path / "out.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 8


def test_columns_of_shards_are_carried_and_rows_without_image_are_errors(call: Any, tmp_path: Path) -> None:
    images = [picture(), None, {"bytes": None, "path": "a.png"}, b"", b"x", picture((9, 9, 250))]
    columns = {
        "id": pa.array([1, None, 3, 4, 5, 6]),
        "label": pa.array(["a", "b", None, "d", "e", "f"]),
        "score": pa.array([0.5, math.nan, math.inf, None, 1, 2]),
        "when": pa.array([0, 1, 2, 3, 4, None], pa.timestamp("ms")),
        "tags": pa.array([["x"], [], None, ["y", "z"], None, None]),
        "mask": pa.array([b"1"] * 6),
    }
    source = shard(tmp_path / "in" / "a.PARQUET", images, **columns)
    shard(tmp_path / "in" / "deep" / "b.parquet", images[:1], **{name: column[:1] for name, column in columns.items()})
    (tmp_path / "in" / "README.md").write_text("beside")
    for ending in ("parquet", "csv"):
        call(source.parent, tmp_path / f"out.{ending}")
    table = pq.read_table(tmp_path / "out.parquet")
    names = ["shard", "row", "id", "given_label", "score", "when", "tags", "mask"]
    ours = ["label", "probability", "probabilities", "model_version", "manifest", "error"]
    assert table.schema.names == [*names, *ours]
    for name, column in columns.items():
        carried = table.column("given_label" if name == "label" else name).slice(0, 6)
        assert carried.combine_chunks().equals(column) or name == "score"  # NaN is not equal to itself
        assert carried.type == column.type
    found = rows(tmp_path / "out.parquet")
    assert [(row["shard"], row["row"]) for row in found] == [*(("a.PARQUET", i) for i in range(6)), ("deep/b.parquet", 0)]
    assert [row["label"] for row in found] == ["red", None, None, None, None, "blue", "red"]
    assert [bool(row["error"]) for row in found] == [False, True, True, True, True, False, False]
    with (tmp_path / "out.csv").open(newline="") as file:
        plain = list(csv.DictReader(file))
    assert [row["tags"] for row in plain[:2]] == ['["x"]', "[]"]
    assert "mask" not in plain[0]


def test_inputs_and_outputs_that_cannot_be_are_named(call: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    good = tmp_path / "good"
    good.mkdir()
    (good / "a.png").write_bytes(picture())
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and no more")
    mixed = tmp_path / "mixed"
    shard(mixed / "a.parquet", [picture()])
    (mixed / "b.png").write_bytes(picture())
    other = tmp_path / "other"
    shard(other / "a.parquet", [picture()])
    shard(other / "b.parquet", [picture()], label=["x"])
    for source, out, sentence in (
        (empty, "o.csv", "holds no images"),
        (tmp_path / "none", "o.csv", "is not there"),
        (good, "o.txt", "ends with neither"),
        (good, "good/o.csv", "would overwrite the input"),
        (broken, "o.csv", "cannot be read as Parquet"),
        (mixed, "o.csv", "Parquet shards and image files"),
        (other, "o.csv", "has other columns than"),
    ):
        with pytest.raises(UserError, match=sentence):
            call(source, tmp_path / out)
    assert sorted(path.name for path in tmp_path.glob("o.*")) == []


def test_a_finished_output_is_left_alone_unless_asked(call: Any, tmp_path: Path) -> None:
    folder = colours(tmp_path / "in")
    out = tmp_path / "out.csv"
    out.write_text("mine")
    call(folder, out)
    assert out.read_text() == "mine"
    call(folder, out, "--restart")
    assert out.read_text().startswith("path,")


def stop_after(parts: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run end where it would write a part more than so many."""
    write = batch._write
    written = iter(range(parts))

    def last(folder: Path, first: int, table: Any) -> int:
        if next(written, None) is None:
            raise error(errno.ENOSPC, "No space left on device")
        return write(folder, first, table)

    monkeypatch.setattr(batch, "_write", last)


def many(path: Path, count: int) -> Path:
    """Write a shard of small pictures, some of them broken, in row groups that parts do not divide."""
    random = np.random.default_rng(4)
    files = [encode(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)) for _ in range(50)]
    return shard(path, [b"broken" if i % 97 == 0 else files[i % 50] for i in range(count)], id=list(range(count)))


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_run_that_ended_goes_on_after_its_parts_and_writes_what_an_unbroken_one_writes(
    call: Any, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = many(tmp_path / "many.parquet", 5000)
    whole, out = tmp_path / f"whole.{ending}", tmp_path / f"out.{ending}"
    parts = tmp_path / f"out.{ending}.parts"
    call(source, whole)
    with monkeypatch.context() as patch:
        stop_after(2, OSError, patch)
        with pytest.raises(OSError, match="No space left") as full:
            call(source, out)
    assert full.value.filename == str(parts)
    with monkeypatch.context() as patch:
        stop_after(1, KeyboardInterrupt, patch)
        with pytest.raises(SystemExit) as stopped:
            call(source, out)
    assert stopped.value.code == 130
    assert "run the same command again to go on" in capsys.readouterr().err
    assert sorted(path.name for path in parts.glob("0*")) == [f"{i * 1024:012}.parquet" for i in range(3)]
    assert not out.exists()
    for options in (["--top", "1"], ["--model", str(write_model(tmp_path / "other", 16))]):
        with pytest.raises(UserError, match=r"was begun with .*--restart"):
            call(source, out, *options)
    changed = source.stat().st_mtime_ns
    os.utime(source, ns=(changed, changed + 1))
    with pytest.raises(UserError, match="was begun with inputs"):
        call(source, out)
    os.utime(source, ns=(changed, changed))
    kept = (parts / f"{0:012}.parquet").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        stop_after(0, OSError, patch)
        with pytest.raises(OSError, match="No space left"):
            call(source, out)
    assert (parts / f"{0:012}.parquet").stat().st_mtime_ns == kept  # what is done is not done again
    call(source, out)
    assert sha256(out) == sha256(whole)
    assert not parts.exists()


@pytest.mark.journey
def test_a_killed_run_goes_on(call: Any, model: Path, tmp_path: Path) -> None:
    source = many(tmp_path / "many.parquet", 30_000)
    whole, out, parts = tmp_path / "whole.csv", tmp_path / "out.csv", tmp_path / "out.csv.parts"
    call(source, whole)
    arguments = [sys.executable, "-m", "src", "batch", str(source), str(out), "--model", str(model)]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: any(parts.glob("0*")) or process.poll() is not None)
    process.kill()
    process.wait(PATIENCE)
    assert parts.is_dir()
    assert not out.exists()
    done = subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "going on after" in done.stdout
    assert "30,000 rows, 310 of them errors" in done.stdout
    assert sha256(out) == sha256(whole)
