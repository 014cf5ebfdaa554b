"""What the tests share: small images drawn on the spot, parameters to vary, a tiny data set that has been prepared."""

import io
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from src.params import Params, load

ROOT = Path(__file__).parent.parent
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
PATIENCE = 600  # seconds until a process counts as hanging; no measure of speed: ten of them may share two slow cores


torch.set_num_threads(1)  # every network here is tiny
# a shell that starts the tests in the background has Ctrl-C ignored, by them and by all that they start
signal.signal(signal.SIGINT, signal.default_int_handler)
# the tools of the lock (act, gh, zizmor, ...) are found also where the environment is not activated
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


# files that take a minute or more, the longest first: begun last, one of them would be waited for by all
LONGEST = (
    "release",
    "deploy",
    "verify",
    "register",
    "workflow_runs",
    "sweep",
    "distributed",
    "pipeline",
    "folds",
    "train",
    "build",
    "settings",
    "serving",
)


def pytest_configure(config: pytest.Config) -> None:
    """Keep the order of `pytest_collection_modifyitems`; pytest-xdist would begin with the files that have most tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    rank = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until something holds; give up after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into a tracking store unless it names one."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, whose making takes seconds."""
    from src.mlflow_client import connect  # MLflow takes seconds to import, and few tests need it

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)


def encode(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    """Encode an array or Pillow image."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def write_params(path: Path, **changes: Any) -> Params:
    """Write the repository's params.yaml with changes such as `train__epochs=2`, and read it back."""
    yaml = YAML()
    content = yaml.load((ROOT / "params.yaml").read_text())
    for name, value in changes.items():
        *sections, key = name.split("__")
        place = content
        for section in sections:
            place = place[section]
        place[key] = value
    with path.open("w") as file:
        yaml.dump(content, file)
    return load(path)


@pytest.fixture
def params(tmp_path: Path) -> Callable[..., Params]:
    """Return a function that makes parameters with changes."""
    return lambda **changes: write_params(tmp_path / "params.yaml", **changes)


def draw_colours(folder: Path, each: int, random: np.random.Generator, side: int = 12) -> None:
    """Write class folders of noisy plain colours: learnt in two epochs."""
    for label, colour in COLOURS.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            noise = random.normal(0, 30, (side, side, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            (folder / label / f"{i}.png").write_bytes(encode(pixels))


@pytest.fixture
def colours(tmp_path: Path, random: np.random.Generator) -> Path:
    """A data folder of 3 classes with 40 images each."""
    draw_colours(tmp_path / "data", 40, random)
    return tmp_path / "data"
