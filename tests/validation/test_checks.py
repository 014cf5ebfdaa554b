"""Every rule finds what it is for, all at once, and names the files: python -m pytest tests/validation/test_checks.py"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from src.core import arrays, reference, statistics
from src.core.command import UserError
from src.core.manifest import MANIFEST
from src.images.prepare import prepare
from src.system.params import Params
from src.validation import checks, duplicates
from src.validation.validate import validate

MakeParams = Callable[..., Params]
NONE = np.empty((0, 2), dtype=np.int64)


def row(i: int, **changes: Any) -> dict[str, Any]:
    """One good row: three classes over three splits."""
    label, split = ("cat", "dog", "owl")[i % 3], ("train", "validation", "test")[(i // 3) % 3]
    good = {
        "path": f"{label}/{i}.png", "row": -1, "label": label, "group": None, "given_split": None, "width": 8, "height": 8,
        "mode": "RGB", "format": "PNG", "digest": f"{i:032x}", "perceptual_hash": i * 0x9E3779B97F4A7C15 % 2**64,
        "brightness": 0.5, "contrast": 0.1, "sharpness": 0.1, "saturation": 0.1, "fault": None, "duplicate_of": None,
        "split": split, "index": i,
    }  # fmt: skip
    return good | changes


def broken(i: int, fault: str) -> dict[str, Any]:
    empty = dict.fromkeys(
        ("width", "height", "mode", "format", "digest", "perceptual_hash", *statistics.NAMES, "split", "index")
    )
    return row(i, fault=fault, **empty)


def manifest(*changed: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([*(row(i) for i in range(90)), *changed], MANIFEST)


def inspect(table: pa.Table, params: Params, recorded: Any = None, near: Any = NONE) -> dict[str, checks.Finding]:
    size = params.prepare.image_size
    findings, _ = checks.inspect(table, params.validation, recorded or reference.Reference(), near, size)
    return {finding.check: finding for finding in findings}


def test_good_data_pass(params: MakeParams) -> None:
    assert inspect(manifest(), params()) == {}


def test_all_faults_are_found_at_once(params: MakeParams) -> None:
    table = manifest(
        *(broken(100 + i, "corrupt image: cut") for i in range(30)),
        *(row(200 + i, split=None, index=None, duplicate_of="cat/0.png") for i in range(60)),
        row(300, fault="conflicting labels on equal images: cat, dog", split=None, index=None),
        row(302, label="emu", path="emu/302.png"),
    )
    found = inspect(table, params(validate__labels=["cat", "dog", "owl"]))
    assert set(found) == {"labels", "min_images", "corrupt", "conflicts", "duplicates", "imbalance"}
    assert found["labels"].files == ["emu/302.png"]
    assert "'emu'" in found["labels"].message
    assert found["corrupt"].count == 30
    assert "16.5%" in found["corrupt"].message
    assert found["conflicts"].files == ["cat/300.png"]
    assert "emu has 0 in train" in found["min_images"].message


def test_a_class_that_cannot_be_learnt_comes_first(params: MakeParams) -> None:
    few = [row(300 + i, label=f"c{i}", split="train") for i in range(10)]  # 20 cells of them are empty
    found = inspect(manifest(*few, row(320, label="yak", split="test")), params())["min_images"]
    assert "22 of 42 pairs of class and split are under validate.min_images 1: yak has 0 in train; c0 has" in found.message
    assert found.message.endswith("or accept it by validate.checks.min_images: warn")
    missed = inspect(manifest(), params(validate__labels=["cat", "dog", "owl", "yak"]))["min_images"]
    assert "yak has 0 in train" in missed.message
    one = pa.Table.from_pylist([row(i, label="cat") for i in range(90)], MANIFEST)
    assert "a classifier needs at least 2" in inspect(one, params())["min_images"].message


@pytest.mark.parametrize(
    ("size", "side", "words"), [(8, 100, "is lost"), (64, 12, "enlarging"), (64, 500, None), (28, 28, None)]
)
def test_a_size_far_from_the_images_own_is_found(size: int, side: int, words: str | None, params: MakeParams) -> None:
    table = pa.Table.from_pylist([row(i, width=side, height=2 * side) for i in range(90)], MANIFEST)
    found = inspect(table, params(prepare__image_size=size))
    assert set(found) == ({"image_size"} if words else set())
    if words:
        assert (
            f"prepare.image_size is {size}, the images' median short side is {side} pixels: " in found["image_size"].message
        )
        assert words in found["image_size"].message
        assert found["image_size"].level == "warn"


def test_levels_decide(params: MakeParams) -> None:
    table = manifest(row(300, label="emu"))
    declared = {"validate__labels": ["cat", "dog", "owl"], "validate__checks__min_images": "off"}
    assert inspect(table, params(**declared))["labels"].level == "error"
    assert inspect(table, params(**declared, validate__checks__labels="warn"))["labels"].level == "warn"
    assert "labels" not in inspect(table, params(**declared, validate__checks__labels="off"))


@pytest.mark.parametrize("label", ["cat/dog", "😀", "", "a" * 81, "../up"])
def test_a_label_that_would_break_names_and_pictures_is_refused(params: MakeParams, label: str) -> None:
    found = inspect(manifest(*(row(300 + i, label=label) for i in range(90))), params())
    assert found["schema"].level == "error"
    assert "column label" in found["schema"].message
    assert found["schema"].files[0].endswith("300.png")


def test_labels_of_any_script_are_fine(params: MakeParams) -> None:
    labels = ["black cat", "A\u0308rger", "हिन्दी", "ไทย ที่", "猫", "c++", "7", "o'clock", "R&B", "under_score-dash.dot"]
    splits = ("train", "validation", "test")
    extra = [row(300 + i, label=labels[i // 30], split=splits[i % 3]) for i in range(30 * len(labels))]
    assert inspect(manifest(*extra), params()) == {}


def test_leakage_between_given_splits(params: MakeParams) -> None:
    twin = row(300, digest=row(0)["digest"], given_split="test", split=None, index=None, duplicate_of="cat/0.png")
    table = manifest(twin, row(301, digest="f" * 32, given_split="train"), row(302, digest="e" * 32))
    first = table.to_pylist()[0] | {"given_split": "train"}
    table = pa.Table.from_pylist([first, *table.to_pylist()[1:]], MANIFEST)
    assert inspect(table, params())["leakage"].files == ["cat/0.png", "cat/300.png"]


def test_group_leakage(params: MakeParams) -> None:
    rows = [row(i, group=f"patient {i // 9}" if i < 18 else None) for i in range(90)]
    found = inspect(pa.Table.from_pylist(rows, MANIFEST), params())
    assert "'patient 0', 'patient 1'" in found["group_leakage"].message
    apart = [row(i, group=row(i)["split"]) for i in range(90)]
    assert inspect(pa.Table.from_pylist(apart, MANIFEST), params()) == {}


def test_drift_is_measured_against_the_reference(params: MakeParams, random: np.random.Generator) -> None:
    def table(mean: float) -> pa.Table:
        values = np.clip(random.normal(mean, 0.05, 90), 0, 1)
        return pa.Table.from_pylist([row(i, brightness=float(values[i])) for i in range(90)], MANIFEST)

    recorded = reference.summarize(table(0.4))
    assert "drift" not in inspect(table(0.4), params(), recorded)
    more = manifest(*(row(300 + i, label="emu") for i in range(90)))
    assert reference.drift(more, reference.summarize(manifest()))["class balance"] > 1
    found = inspect(table(0.6), params(), recorded)
    assert "brightness" in found["drift"].message
    assert "make reference" in found["drift"].message


def test_near_duplicates_are_pairs_in_two_splits_with_equal_looks(random: np.random.Generator) -> None:
    small = random.integers(0, 256, (30, 6, 6), dtype=np.uint8)
    originals = np.stack([np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC)) for image in small])
    again = np.clip(originals[:10].astype(int) + random.integers(-4, 5, originals[:10].shape) + 6, 0, 255).astype(np.uint8)
    pixels = np.concatenate([originals, again])
    hashes = statistics.difference_hash(pixels.astype(np.float32))
    rows = [row(i, split="train" if i < 30 else "test", perceptual_hash=int(hashes[i])) for i in range(40)]
    rows[35] |= {"split": "train"}  # its twin, 5, is in the same split
    found = duplicates.near(pa.Table.from_pylist(rows, MANIFEST), pixels)
    assert found.tolist() == [[i, 30 + i] for i in range(10) if i != 5]


@pytest.mark.parametrize("size", [4, 32])
def test_near_duplicates_do_not_depend_on_the_image_size(
    size: int, tmp_path: Path, random: np.random.Generator, params: MakeParams
) -> None:
    """Pictures that share their coarse look alone are no pairs, and a copy made anew is one, whatever the model sees."""
    for i in range(40):  # equal but for fine stripes, which 4 pixels do not show
        picture = Image.fromarray(np.linspace(0, 120, 4 * 4 * 3).reshape(4, 4, 3).astype(np.uint8)).resize((100, 100))
        stripes = np.repeat(np.repeat(random.integers(0, 2, (8, 8, 1)) * 100, 13, 0), 13, 1)[:100, :100]
        picture = Image.fromarray((np.asarray(picture) + stripes).astype(np.uint8))
        for folder in ("train", "test")[: 2 if i < 5 else 1]:
            (tmp_path / "data" / folder / f"c{i % 2}").mkdir(parents=True, exist_ok=True)
            if folder == "test":
                picture = Image.fromarray(np.clip(np.asarray(picture.resize((90, 90))) * 1.03, 0, 255).astype(np.uint8))
            picture.save(
                tmp_path / "data" / folder / f"c{i % 2}" / f"{i}.{'jpg' if folder == 'test' else 'png'}", quality=75
            )
    prepare(tmp_path / "data", tmp_path / "arrays", tmp_path / "m.parquet", params(prepare__image_size=size).prepare)
    table = pq.read_table(tmp_path / "m.parquet")
    names = table.column("path").to_pylist()
    pairs = duplicates.near(table, arrays.load(tmp_path / "arrays").thumbnails())
    found = {tuple(sorted(Path(names[row]).stem for row in pair)) for pair in pairs}
    assert found == {(str(i), str(i)) for i in range(5)}


class TestStage:
    """The stage: outputs, exit, and that training is barred."""

    @pytest.fixture
    def run(self, tmp_path: Path, params: MakeParams) -> Callable[..., dict[str, Any]]:
        def go(**changes: Any) -> dict[str, Any]:
            read = params(prepare__image_size=8, **changes)
            out = tmp_path / "out"
            (tmp_path / "reference.json").write_text("{}")
            prepare(tmp_path / "data", out / "arrays", out / "m.parquet", read.prepare)
            try:
                paths = (out / "arrays", out / "m.parquet", tmp_path / "reference.json", out / "v.json", out / "profile")
                validate(*paths, read.validation)
            finally:
                self.report = json.loads((out / "v.json").read_text())
            return self.report

        return go

    def test_good_data_pass_with_a_profile(self, colours: Path, run: Callable[..., Any]) -> None:
        report = run()
        assert report["passed"]
        profile = colours.parent / "out" / "profile"
        numbers = json.loads((profile / "profile.json").read_text())
        assert sum(numbers["classes"]["red"].values()) == 40
        assert numbers["sizes"]["width"]["median"] == 12
        for name in ("profile.png", "examples.png"):
            with Image.open(profile / name) as picture:
                assert picture.size[0] > 300

    def test_bad_data_stop_with_report_profile_and_files(
        self, colours: Path, run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        for i in range(30):
            (colours / "red" / f"bad{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
        with pytest.raises(UserError, match=r"the data failed \(corrupt\)"):
            run()
        assert not self.report["passed"]
        assert self.report["faults"]["count"] == 30
        assert (colours.parent / "out" / "profile" / "profile.png").exists()
        printed = capsys.readouterr().out
        assert "red/bad0.png" in printed
        assert "20.0% of the files are no readable image" in printed
