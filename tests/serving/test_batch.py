"""Batch inference says what the service says, loses and doubles no row, and ends on no image.

pytest tests/serving/test_batch.py
"""

import csv
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import PATIENCE, ROOT, encode
from test_serving import CLASSES, make_engine, picture, png_of, serving, write_model

from src.core.command import UserError
from src.core.files import sha256
from src.serving import batch, batch_parts

PIXELS = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
MANY = 16_000


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


def command(source: Path, out: Path, model: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "src", "batch", str(source), str(out), "--model", str(model), *options]


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


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_says_what_the_service_says_of_the_same_files(call: Any, model: Path, tmp_path: Path) -> None:
    folder = colours(tmp_path / "in")
    progressive = encode(np.zeros((8, 8, 3), np.uint8), "JPEG", progressive=True)
    scans = progressive[:-2] + b"\xff\xda\x00\x0c" * 101 + progressive[-2:]
    for name, content in (("bomb.png", png_of(30_000, 30_000)), ("scans.jpg", scans), ("cut.png", picture()[:60])):
        (folder / name).write_bytes(content)
    call(folder, tmp_path / "out.jsonl", "--top", "2")
    told = {row["path"]: row for row in lines(tmp_path / "out.jsonl")}
    assert len(told) == 14
    with serving(make_engine(model, max_pixels=12_500_000)) as url, httpx.Client(base_url=url) as client:
        for path, row in told.items():
            content = (folder / path).read_bytes()
            answer = client.post("/predict?top=2", content=content, headers={"Content-Type": "image/png"})
            assert (answer.status_code == 200) == (row["error"] is None), (path, answer.text)
            if row["error"] is None:
                body = answer.json()
                assert (row["label"], row["model_version"]) == (body["label"], body["model_version"])
                given = [(one["label"], one["probability"]) for one in row["probabilities"]]
                assert given == [
                    (one["label"], pytest.approx(one["probability"], abs=2e-6)) for one in body["probabilities"]
                ]


def test_the_three_kinds_of_output_hold_the_same(call: Any, tmp_path: Path) -> None:
    folder = colours(tmp_path / "in")
    for ending in ("jsonl", "csv", "parquet"):
        call(folder, tmp_path / f"out.{ending}")
        assert not (tmp_path / f"out.{ending}.parts").exists()
    rows = lines(tmp_path / "out.jsonl")
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == rows
    with (tmp_path / "out.csv").open(newline="") as file:
        for plain, row in zip(csv.DictReader(file), rows, strict=True):
            pairs = [(plain[f"label{end}"], plain[f"probability{end}"]) for end in ("", "_2", "_3")]
            listed = row["probabilities"] or [{"label": "", "probability": ""}] * 3
            assert pairs == [(one["label"], str(one["probability"])) for one in listed]
            assert (plain["path"], plain["error"]) == (row["path"], row["error"] or "")


@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("size", ["1", "7"])
def test_threads_and_batches_change_nothing(call: Any, tmp_path: Path, threads: str, size: str) -> None:
    folder = colours(tmp_path / "in")
    call(folder, tmp_path / "one.csv")
    call(folder, tmp_path / "other.csv", "--threads", threads, "--batch", size)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "other.csv").read_bytes()


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
    (folder / "wide.png").write_bytes(png_of(20_000, 20_000))
    monkeypatch.setenv("SERVE_MAX_BODY_MB", "0.001")
    monkeypatch.setenv("SERVE_MAX_MEGAPIXELS", "1")
    for ending in ("csv", "jsonl", "parquet"):
        call(folder, tmp_path / f"out.{ending}")
    told = {row["path"]: row["error"] for row in lines(tmp_path / "out.jsonl")}
    assert told == {row["path"]: row["error"] for row in pq.read_table(tmp_path / "out.parquet").to_pylist()}
    assert told.pop('caf\\xe9\n,".png') is None
    words = {
        "self.png": "unreadable: Too many levels",
        "broken.png": "unreadable: No such file",
        "pipe.png": "not a regular file",
        "zero.png": "empty file",
        "huge.png": "too large: 0.0 MB is over SERVE_MAX_BODY_MB",
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
    for ending in ("parquet", "jsonl", "csv"):
        call(source.parent, tmp_path / f"out.{ending}")
    table = pq.read_table(tmp_path / "out.parquet")
    names = ["shard", "row", "id", "given_label", "score", "when", "tags", "mask"]
    ours = ["label", "probability", "probabilities", "model_version", "manifest", "error"]
    assert table.schema.names == [*names, *ours]
    for name, column in columns.items():
        carried = table.column("given_label" if name == "label" else name).slice(0, 6)
        assert carried.combine_chunks().equals(column) or name == "score"  # NaN is not equal to itself
        assert carried.type == column.type
    rows = lines(tmp_path / "out.jsonl")
    assert [(row["shard"], row["row"]) for row in rows] == [*(("a.PARQUET", i) for i in range(6)), ("deep/b.parquet", 0)]
    assert [row["score"] for row in rows[:3]] == [0.5, None, None]
    assert rows[3]["tags"] == ["y", "z"]
    assert [row["label"] for row in rows] == ["red", None, None, None, None, "blue", "red"]
    assert [bool(row["error"]) for row in rows] == [False, True, True, True, True, False, False]
    assert "mask" not in rows[0]
    with (tmp_path / "out.csv").open(newline="") as file:
        plain = list(csv.DictReader(file))
    assert [row["tags"] for row in plain[:2]] == ['["x"]', "[]"]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"picture": pa.array([b""])}, "0 columns `image`"),
        ({"image": pa.array([1])}, "is int64, expected a struct"),
        ({"image": pa.array([{"path": "x"}])}, "expected a struct"),
        ({"image": pa.array([b""]), "label": [1], "given_label": [1]}, "equal names in the output"),
    ],
)
def test_a_shard_with_wrong_columns_is_named(call: Any, tmp_path: Path, columns: Any, sentence: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=sentence):
        call(tmp_path / "a.parquet", tmp_path / "out" / "o.csv")
    assert list((tmp_path / "out").iterdir()) == []


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
        (good, "o.txt", "ends with none of"),
        (good, "good/o.csv", "would overwrite the input"),
        (broken, "o.csv", "cannot be read as Parquet"),
        (mixed, "o.csv", "Parquet shards and image files"),
        (other, "o.csv", "has other columns than"),
    ):
        with pytest.raises(UserError, match=sentence):
            call(source, tmp_path / out)
    assert sorted(path.name for path in tmp_path.glob("o.*")) == []


def test_one_image_and_a_binary_column_are_inputs_too(call: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    call(tmp_path / "a.png", tmp_path / "one.jsonl", "--top", "1")
    assert [(row["path"], len(row["probabilities"])) for row in lines(tmp_path / "one.jsonl")] == [("a.png", 1)]
    pq.write_table(pa.table({"image": [picture()]}), tmp_path / "b.parquet")
    call(tmp_path / "b.parquet", tmp_path / "two.jsonl")
    assert lines(tmp_path / "two.jsonl")[0]["label"] == CLASSES[0]


def test_the_status_tells_of_all_failed_and_if_strict_of_any(call: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_text("no picture")
    with pytest.raises(UserError, match="1 of 1 images"):
        call(folder, tmp_path / "all.csv")
    (folder / "b.png").write_bytes(picture())
    call(folder, tmp_path / "some.csv")
    with pytest.raises(UserError, match="1 of 2 images"):
        call(folder, tmp_path / "strict.csv", "--strict")
    assert (tmp_path / "strict.csv").read_bytes() == (tmp_path / "some.csv").read_bytes()


def test_a_finished_output_is_left_alone_unless_asked(call: Any, tmp_path: Path) -> None:
    folder = colours(tmp_path / "in")
    out = tmp_path / "out.csv"
    out.write_text("mine")
    call(folder, out)
    assert out.read_text() == "mine"
    call(folder, out, "--restart")
    assert out.read_text().startswith("path,")


def many(path: Path) -> Path:
    """Write a shard of many small pictures, some of them broken, in row groups that batches do not divide."""
    random = np.random.default_rng(4)
    files = [encode(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)) for _ in range(50)]
    images = [b"broken" if i % 97 == 0 else files[i % 50] for i in range(MANY)]
    return shard(path, images, id=list(range(MANY)))


def interrupted(arguments: list[str], parts: Path, number: int, how: int) -> subprocess.CompletedProcess[str]:
    """Start a run and stop it when so many parts are written."""
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and len(list(parts.glob("0*"))) < number and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(how)
    said, complaint = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(arguments, process.returncode, said, complaint)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_killed_run_goes_on_and_writes_what_an_unbroken_one_writes(
    call: Any, model: Path, tmp_path: Path, ending: str
) -> None:
    source = many(tmp_path / "many.parquet")
    whole, out = tmp_path / f"whole.{ending}", tmp_path / f"out.{ending}"
    parts = tmp_path / f"out.{ending}.parts"
    call(source, whole)
    arguments = command(source, out, model)
    assert interrupted(arguments, parts, 1, signal.SIGKILL).returncode == -signal.SIGKILL
    assert not out.exists()
    stopped = interrupted(arguments, parts, 2, signal.SIGINT)
    assert (stopped.returncode, stopped.stderr.count("\n")) == (130, 1)
    assert "run the same command again to go on" in stopped.stderr
    done = subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "going on after" in done.stdout
    assert f"{MANY:,} rows, {len(range(0, MANY, 97))} of them errors" in done.stdout
    assert sha256(out) == sha256(whole)
    assert not parts.exists()


@pytest.fixture
def begun(model: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return the source and the output of a run that cannot write its output, because it would be too large a file."""
    source, out = many(tmp_path / "many.parquet"), tmp_path / "out.jsonl"
    limit = 2_500_000  # bytes; a part has fewer, all rows have more
    done = subprocess.run(
        command(source, out, model, "--quiet"), cwd=ROOT, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "past this system's limit" in done.stderr
    assert not out.exists()
    return source, out


@pytest.mark.slow
def test_without_space_the_parts_stay_and_another_input_or_model_is_noticed(
    call: Any, model: Path, tmp_path: Path, begun: tuple[Path, Path]
) -> None:
    source, out = begun
    kept = sorted(path.name for path in (tmp_path / "out.jsonl.parts").iterdir())
    for options in (["--top", "1"], ["--model", str(write_model(tmp_path / "other", 16))]):
        with pytest.raises(UserError, match=r"was begun with .*--restart"):
            call(source, out, *options)
    changed = source.stat().st_mtime_ns
    os.utime(source, ns=(changed, changed + 1))
    with pytest.raises(UserError, match="was begun with inputs"):
        call(source, out)
    os.utime(source, ns=(changed, changed))
    assert sorted(path.name for path in (tmp_path / "out.jsonl.parts").iterdir()) == kept
    call(source, out)
    assert [row["row"] for row in lines(out)] == list(range(MANY))


def test_two_runs_do_not_write_the_same_output(call: Any, tmp_path: Path) -> None:
    folder, out = colours(tmp_path / "in"), tmp_path / "out.csv"
    with batch_parts.held(out), pytest.raises(UserError, match="another run is writing"):
        call(folder, out)
    call(folder, out)
    assert out.is_file()


def test_what_the_image_holds_is_enough_for_folders_and_text(model: Path, tmp_path: Path) -> None:
    folder = colours(tmp_path / "in")
    blocked = tmp_path / "blocked"
    for package in ("pyarrow", "tqdm", "pandas", "torch"):
        (blocked / package).mkdir(parents=True)
        sentence = f"raise ModuleNotFoundError('no {package}', name='{package}')"
        (blocked / package / "__init__.py").write_text(sentence)
    variables = {**os.environ, "PYTHONPATH": str(blocked)}
    for out, status in (("o.csv", 0), ("o.parquet", 1)):
        arguments = command(folder, tmp_path / out, model)
        done = subprocess.run(arguments, cwd=ROOT, env=variables, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
    assert "Parquet needs the package pyarrow" in done.stderr
    assert done.stderr.count("\n") == 1
    shutil.rmtree(blocked)
