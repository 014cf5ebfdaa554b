"""data/ becomes arrays and a manifest, whatever lies there: python -m pytest tests/images/test_prepare.py"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import encode

from src.core import arrays
from src.core.command import UserError
from src.core.manifest import MANIFEST, SPLITS, read_manifest
from src.images import decoding
from src.images.prepare import prepare
from src.system.params import Params

MakeParams = Callable[..., Params]


def noise(random: np.random.Generator, side: int = 10) -> np.ndarray:
    return random.integers(0, 256, (side, side, 3), dtype=np.uint8)


def write_shard(path: Path, rows: list[dict[str, Any]], **extra: list[Any]) -> None:
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array([row["image"] for row in rows], image), "label": [row["label"] for row in rows]})
    for name, values in extra.items():
        table = table.append_column(name, pa.array(values))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def shard_rows(images: list[np.ndarray], labels: list[Any]) -> list[dict[str, Any]]:
    rows = zip(images, labels, strict=True)
    return [{"image": {"bytes": encode(image), "path": None}, "label": label} for image, label in rows]


def run(root: Path, params: Params) -> pd.DataFrame:
    out = root.parent / "out"
    prepare(root, out / "arrays", out / "manifest.parquet", params.prepare)
    return pq.read_table(out / "manifest.parquet").to_pandas()


def test_folders_and_shards_mix_and_pixels_arrive_at_their_index(
    tmp_path: Path, colours: Path, random: np.random.Generator, params: MakeParams
) -> None:
    pictures = [noise(random, 8) for _ in range(30)]
    write_shard(colours / "more.parquet", shard_rows(pictures, ["red", "green", "new"] * 10))
    manifest = run(colours, params(prepare__image_size=8))
    assert len(manifest) == 150
    assert manifest["fault"].isna().all()
    card = arrays.load(tmp_path / "out" / "arrays")
    assert card.classes == ["blue", "green", "new", "red"]
    for name in SPLITS:
        split = card.split(name)
        rows = manifest[manifest["split"] == name].sort_values("index")
        assert rows["index"].tolist() == list(range(len(split.examples)))
        assert [card.classes[label] for label in split.labels] == rows["label"].tolist()
    for i, image in enumerate(pictures):
        row = manifest[(manifest["path"] == "more.parquet") & (manifest["row"] == i)].iloc[0]
        np.testing.assert_array_equal(card.split(row["split"]).examples[int(row["index"])], image)


def test_a_split_is_encoded_anew_for_a_model_of_another_spec(tmp_path: Path, colours: Path, params: MakeParams) -> None:
    run(colours, params())
    rows = read_manifest(tmp_path / "out/manifest.parquet", MANIFEST.names)
    other = params(prepare__image_size=[6, 9], prepare__channels=1, prepare__fit="pad").prepare
    found = decoding.encode_split(colours, rows, "test", other.spec, other.max_pixels)
    prepare(colours, tmp_path / "other", tmp_path / "other.parquet", other)
    np.testing.assert_array_equal(found, arrays.load(tmp_path / "other").split("test").examples)
    for path in (colours / "red").iterdir():
        path.write_bytes((colours / "blue" / path.name).read_bytes())
    with pytest.raises(UserError, match="holds other images than the manifest says: run `dvc checkout`"):
        decoding.encode_split(colours, rows, "test", other.spec, other.max_pixels)


def test_a_forgotten_image_size_is_told(colours: Path, params: MakeParams, capsys: pytest.CaptureFixture[str]) -> None:
    run(colours, params(prepare__image_size=4))
    assert "prepare.image_size is 4, the images' median short side is 12 pixels: most" in capsys.readouterr().out
    run(colours, params(prepare__image_size=12))
    assert "prepare.image_size" not in capsys.readouterr().out


def test_faults_become_rows(colours: Path, params: MakeParams) -> None:
    (colours / "red" / "notes.txt").write_text("not an image")
    (colours / "red" / "empty.png").touch()
    (colours / "red" / "cut.png").write_bytes((colours / "red" / "0.png").read_bytes()[:200])
    (colours / "README.md").write_text("top level")
    (colours / "red" / "gone.png").symlink_to("nowhere")
    os.mkfifo(colours / "red" / "pipe.png")
    (colours / "red" / "self.png").symlink_to("self.png")
    (colours / "green" / "loop").symlink_to(colours / "green")
    shutil.copy(colours / "red" / "1.png", os.fsencode(colours / "red") + b"/\xff\xfe.png")  # a name that is no text
    (colours / "blue" / "deep").mkdir()
    shutil.copy(colours / "blue" / "0.png", colours / "blue" / "deep" / "copy.png")
    manifest = run(colours, params()).set_index("path")
    faults = manifest["fault"].dropna()
    assert faults["red/notes.txt"].startswith("not an image of")
    assert faults["red/empty.png"] == "empty file"
    assert faults["red/cut.png"].startswith("corrupt image")
    assert faults["README.md"].startswith("outside a class folder")
    assert faults["red/gone.png"].startswith("unreadable")
    assert faults["red/pipe.png"] == "not a regular file"
    assert faults["red/self.png"].startswith("unreadable")
    assert len(faults) == 7
    assert manifest.loc["blue/deep/copy.png", "duplicate_of"] == "blue/0.png"
    assert manifest.loc["blue/deep/copy.png", "label"] == "blue"
    assert manifest["duplicate_of"].notna().sum() == 2
    assert not any("loop" in path for path in manifest.index)


def test_faulty_rows_of_a_shard(tmp_path: Path, random: np.random.Generator, params: MakeParams) -> None:
    good = shard_rows([noise(random) for _ in range(20)], ["a", "b"] * 10)
    bad = [
        {"image": {"bytes": None, "path": "x.png"}, "label": "a"},
        {"image": None, "label": "a"},
        {"image": {"bytes": b"", "path": None}, "label": "a"},
        {"image": {"bytes": encode(noise(random)), "path": None}, "label": None},
        {"image": {"bytes": encode(noise(random)), "path": None}, "label": "a"},
    ]
    write_shard(tmp_path / "data" / "x.parquet", good + bad, split=[None] * 24 + ["holdout"])
    faults = run(tmp_path / "data", params())["fault"].tolist()
    assert all(pd.isna(fault) for fault in faults[:20])
    assert [fault.split(":")[0] for fault in faults[20:]] == [
        "no image bytes", "no image bytes", "empty image", "no label", "unknown split 'holdout'",
    ]  # fmt: skip


def test_integer_labels_take_their_names_from_the_schema(
    tmp_path: Path, random: np.random.Generator, params: MakeParams
) -> None:
    path = tmp_path / "data" / "x.parquet"
    write_shard(path, shard_rows([noise(random) for _ in range(12)], [0, 1] * 6))
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": json.dumps(features)}), path)
    assert run(tmp_path / "data", params())["label"].tolist() == ["cat", "dog"] * 6


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (pa.array([2.0, 10.0] * 12), ["2", "10"]),
        (pa.array([b"a\xff", "Ä".encode(), "A\u0308".encode()] * 8).view(pa.string()), ["a\\xff", "Ä"]),
    ],
)
def test_plain_binary_images_and_labels_that_are_numbers_no_text_or_two_forms_of_one_letter(
    tmp_path: Path, random: np.random.Generator, params: MakeParams, labels: pa.Array, classes: list[str]
) -> None:
    (tmp_path / "data").mkdir()
    pictures = [encode(noise(random)) for _ in range(24)]
    pq.write_table(pa.table({"image": pictures, "label": labels}), tmp_path / "data" / "x.parquet")
    assert set(run(tmp_path / "data", params())["label"]) == set(classes)
    assert arrays.load(tmp_path / "out" / "arrays").classes == classes


def test_exact_copies_are_kept_once_across_formats(tmp_path: Path, random: np.random.Generator, params: MakeParams) -> None:
    folder = tmp_path / "data" / "a"
    folder.mkdir(parents=True)
    (tmp_path / "data" / "b").mkdir()
    pixels = noise(random)
    for kind in ("PNG", "BMP", "TIFF"):
        (folder / f"same.{kind.lower()}").write_bytes(encode(pixels, kind))
    for i in range(10):
        (tmp_path / "data" / "b" / f"{i}.png").write_bytes(encode(noise(random)))
    manifest = run(tmp_path / "data", params())
    same = manifest[manifest["label"] == "a"]
    assert same["digest"].nunique() == 1
    assert same["split"].notna().sum() == 1
    assert same["duplicate_of"].dropna().unique().tolist() == ["a/same.bmp"]


def test_equal_images_with_different_labels_are_faults_and_in_no_split(
    colours: Path, random: np.random.Generator, params: MakeParams
) -> None:
    content = encode(noise(random))
    for label in ("red", "green"):
        (colours / label / "clash.png").write_bytes(content)
    manifest = run(colours, params()).set_index("path")
    for label in ("red", "green"):
        assert manifest.loc[f"{label}/clash.png", "fault"] == "conflicting labels on equal images: green, red"
        assert pd.isna(manifest.loc[f"{label}/clash.png", "split"])


def test_the_split_does_not_move_when_data_are_added_or_renamed(
    colours: Path, random: np.random.Generator, params: MakeParams
) -> None:
    before = run(colours, params()).set_index("digest")["split"]
    for i in range(60):
        (colours / "red" / f"a{i}.png").write_bytes(encode(noise(random)))
    (colours / "red" / "0.png").rename(colours / "red" / "zzz.png")
    shutil.copy(colours / "red" / "1.png", colours / "red" / "000.png")
    write_shard(colours / "more.parquet", shard_rows([noise(random) for _ in range(20)], ["red"] * 20))
    after = run(colours, params()).dropna(subset="split").set_index("digest")["split"]
    assert len(after) == len(before) + 80
    pd.testing.assert_series_equal(after[before.index], before)


def test_a_group_stays_on_one_side(tmp_path: Path, random: np.random.Generator, params: MakeParams) -> None:
    pictures = [noise(random) for _ in range(200)]
    groups = [f"patient {i // 5}" for i in range(200)]
    write_shard(tmp_path / "data" / "x.parquet", shard_rows(pictures, ["a", "b"] * 100), group=groups)
    manifest = run(tmp_path / "data", params())
    assert (manifest.groupby("group")["split"].nunique() == 1).all()
    assert set(manifest["split"]) == set(SPLITS)


class TestGivenSplits:
    """What a data set says of its own splits."""

    def test_test_files_stay_test_and_validation_comes_out_of_train(
        self, tmp_path: Path, random: np.random.Generator, params: MakeParams
    ) -> None:
        for name, count in (("train-00000-of-00001", 100), ("test", 40)):
            pictures = [noise(random) for _ in range(count)]
            write_shard(tmp_path / "data" / f"{name}.parquet", shard_rows(pictures, ["a", "b"] * (count // 2)))
        manifest = run(tmp_path / "data", params())
        counts = manifest["split"].value_counts()
        assert counts["test"] == 40
        ignored = run(tmp_path / "data", params(prepare__use_given_splits=False))
        assert set(ignored[ignored["path"] == "test.parquet"]["split"]) == set(SPLITS)
        assert manifest[manifest["path"] == "test.parquet"]["split"].eq("test").all()
        assert 0 < counts["validation"] < 30

    def test_a_column_beats_the_file_name_and_all_three_are_obeyed(
        self, tmp_path: Path, random: np.random.Generator, params: MakeParams
    ) -> None:
        splits = ["train", "val", "test"] * 10
        pictures = [noise(random) for _ in range(30)]
        write_shard(tmp_path / "data" / "train.parquet", shard_rows(pictures, ["a", "b"] * 15), split=splits)
        manifest = run(tmp_path / "data", params())
        assert manifest["split"].tolist() == ["train", "validation", "test"] * 10

    def test_split_folders(self, tmp_path: Path, random: np.random.Generator, params: MakeParams) -> None:
        for split, label in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
            for i in range(10):
                path = tmp_path / "data" / split / label / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode(noise(random)))
        manifest = run(tmp_path / "data", params())
        assert set(manifest["label"]) == {"a", "b"}
        assert manifest[manifest["path"].str.startswith("test/")]["split"].eq("test").all()
        assert not manifest[manifest["path"].str.startswith("train/")]["split"].eq("test").any()

    def test_a_copy_given_to_train_and_test_is_tested_not_trained_on(
        self, tmp_path: Path, random: np.random.Generator, params: MakeParams
    ) -> None:
        pictures = [noise(random) for _ in range(20)]
        write_shard(tmp_path / "data" / "train.parquet", shard_rows(pictures, ["a", "b"] * 10))
        write_shard(tmp_path / "data" / "test.parquet", shard_rows(pictures[:10], ["a", "b"] * 5))
        manifest = run(tmp_path / "data", params())
        copies = manifest[manifest["digest"].isin(manifest[manifest["path"] == "test.parquet"]["digest"])]
        assert copies["split"].dropna().unique().tolist() == ["test"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, "is no folder: run `dvc pull`"),
        (lambda root: root.mkdir(), "holds no images"),
        (lambda root: (root.mkdir(), (root / "x.txt").write_text("a")), "none of the 1 files"),
        (lambda root: (root.mkdir(), (root / "x.parquet").write_text("a")), "cannot be read as Parquet"),
        (lambda root: (root.mkdir(), pq.write_table(pa.table({"image": [b"1"]}), root / "x.parquet")), "no column `label`"),
        (
            lambda root: (root.mkdir(), pq.write_table(pa.table({"image": ["1"], "label": ["a"]}), root / "x.parquet")),
            "column `image` is string",
        ),
        (lambda root: (root.mkdir(), os.mkfifo(root / "x.parquet")), "not a regular file"),
        (
            lambda root: (
                root.mkdir(),
                pq.write_table(pa.table([[b"1"], ["a"], ["b"]], ["image", "label", "label"]), root / "x.parquet"),
            ),
            "more than one column `label`",
        ),
    ],
)
def test_nothing_usable_is_one_sentence_and_writes_nothing(
    tmp_path: Path, params: MakeParams, make: Callable[[Path], Any], words: str
) -> None:
    make(tmp_path / "data")
    with pytest.raises(UserError, match=words):
        run(tmp_path / "data", params())
    assert not list((tmp_path / "out").rglob("*"))
