"""The suggested recipe follows from the images, loads and can be adopted: python -m pytest tests/lab/test_suggest.py"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import encode, write_params
from PIL import Image

from src.lab.experiments import suggest
from src.system.params import Params, load
from src.system.recipe import adopt

MakeParams = Callable[..., Params]


def picture(random: np.random.Generator, width: int, height: int, grey: bool = False) -> Image.Image:
    """Return a picture without flat areas, as photographs are."""
    image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return image.convert("L") if grey else image


def write(root: Path, label: str, images: list[Image.Image]) -> None:
    (root / label).mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        image.save(root / label / f"{i}.png")


def suggested(root: Path, params: Params) -> dict[str, Any]:
    return {one.key: one.value for one in suggest.suggest(suggest.look(root, params), params)}


@pytest.fixture
def mixed(tmp_path: Path, random: np.random.Generator) -> Path:
    """Colour photographs of 64 to 100 pixels: 40 cats and 8 dogs, the dogs in a shard."""
    root = tmp_path / "data"
    write(root, "cat", [picture(random, 64 + i % 36, 80) for i in range(40)])
    dogs = [{"bytes": encode(picture(random, 90, 70)), "path": None} for _ in range(8)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(dogs, kind), "label": ["dog"] * 8}), root / "dogs.parquet")
    return root


def test_photographs_get_size_weights_and_augmentation(mixed: Path, params: MakeParams) -> None:
    facts = suggest.look(mixed, params())
    assert facts.counts == {"cat": 40, "dog": 8}
    found = suggested(mixed, params())
    assert found["prepare.image_size"] == 64
    assert found["prepare.channels"] == 3
    assert found["train.class_weights"] == "sqrt"
    assert found["train.augment.flip"] is True
    assert found["train.network"] == "airbench_narrow"


def test_the_file_can_be_adopted_and_then_nothing_differs(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["suggest", "data", "params/suggested.yaml"])
    suggest.main()
    first = Path("params/suggested.yaml").read_bytes()
    assert "Adopt it: make reproduce PARAMS=params/suggested.yaml" in capsys.readouterr().out
    suggest.main()
    assert Path("params/suggested.yaml").read_bytes() == first
    assert all("  # " in line for line in first.decode().splitlines() if ": " in line and line.startswith("  "))
    assert any(line.startswith("train.augment.flip: ") for line in adopt(Path("params/suggested.yaml"), Path("params.yaml")))
    assert load(Path("params.yaml")).train.augment.flip
    capsys.readouterr()
    suggest.main()
    assert "params.yaml says all of this already" in capsys.readouterr().out
