"""What the tests share: the project that they run on, small images drawn on the spot, parameters to vary.

The tests run on a temporary copy of the working tree, in which what a fork replaces (data, params.yaml, src/data.py,
src/model.py, and the records of its model) is the template's own, from starter/project. So they test the engine, whatever
the fork's data, params and network are. ROOT is that copy; TEST_ROOT=FOLDER names another folder to test.
"""

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML


def copy_files(source: Path, target: Path, without: tuple[str, ...] = ()) -> None:
    """Copy what Git tracks, and new files that it does not ignore, but no path that starts with one of `without`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\0"):
        if (source / name).is_file() and not name.startswith(without):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, target / name)


def copy_project() -> Path:
    """Copy the working tree into a temporary Git repository, and put what is in starter/project over it."""
    if not (WORKING_TREE / "starter" / "project").is_dir():
        pytest.exit(
            "the tests need starter/project, which is missing: `git restore starter` brings it back; where its removal is "
            "committed, `git checkout COMMIT^ -- starter`, with the commit that `git log -1 -- starter` names",
            returncode=4,
        )
    folder = Path(tempfile.mkdtemp(prefix="test-root-"))
    copy_files(WORKING_TREE, folder)
    for path in folder.rglob("?*.dvc"):  # such as start weights of the fork's, which no remote of the tests holds
        if folder / "starter" not in path.parents:
            path.unlink()
    shutil.copytree(folder / "starter" / "project", folder, dirs_exist_ok=True)
    for command in (["git", "init", "--quiet"], ["git", "add", "--all", "--force"]):
        subprocess.run(command, cwd=folder, check=True)
    return folder


WORKING_TREE = Path(__file__).parent.parent
IS_OWNER = "TEST_ROOT" not in os.environ  # pytest-xdist's workers and other processes of a test use the controller's copy
ROOT = copy_project() if IS_OWNER else Path(os.environ["TEST_ROOT"]).resolve()
os.environ["TEST_ROOT"] = str(ROOT)
sys.path.insert(0, str(ROOT))

from src.system.params import Params, load  # noqa: E402

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
PATIENCE = 600  # seconds until a process counts as hanging; no measure of speed: ten of them may share two slow cores


in_unit = False  # whether a unit test runs now
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


def pytest_unconfigure() -> None:
    """Remove the copy, also after Ctrl-C."""
    if IS_OWNER:
        shutil.rmtree(ROOT, ignore_errors=True)


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


@pytest.fixture(autouse=True, scope="session")
def _in_root() -> Iterator[None]:
    """Start every test in the copy, so that a relative path leads into it too."""
    before = Path.cwd()
    os.chdir(ROOT)
    yield
    os.chdir(before)


# what a unit test may not do, by the name of Python's audit event
PROCESS_EVENTS = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.fork", "os.exec")


def _refuse_process(event: str, _: tuple[Any, ...]) -> None:
    if event in PROCESS_EVENTS and in_unit:
        raise RuntimeError(f"a unit test starts no process ({event}): mark it journey, or hand in what it would start")


def _refuse_sleep(_: float) -> None:
    raise RuntimeError("a unit test does not sleep: mark it journey, or hand it a clock")


sys.addaudithook(_refuse_process)


@pytest.fixture(autouse=True)
def _is_unit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse processes and sleep in a test that is no journey (marked journey, act or template)."""
    global in_unit  # noqa: PLW0603
    in_unit = not {"journey", "act", "template"} & {mark.name for mark in request.node.iter_markers()}
    if in_unit:
        monkeypatch.setattr(time, "sleep", _refuse_sleep)
    yield
    in_unit = False


@pytest.fixture(autouse=True)
def _no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into a tracking store unless it names one."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, whose making takes seconds."""
    from src.system.mlflow_client import connect  # MLflow takes seconds to import, and few tests need it

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
            place = place.setdefault(section, {})
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
