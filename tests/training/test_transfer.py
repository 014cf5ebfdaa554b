"""Training starts from given weights, layers keep still or learn slower: python -m pytest tests/training/test_transfer.py"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from src.core.arrays import Split
from src.core.command import UserError
from src.core.files import sha256
from src.core.shape import Shape
from src.images.prepare_params import image_spec
from src.system import champion
from src.system.params import Params
from src.system.registry import Registry
from src.training import loop, start
from src.training.callbacks import Callbacks
from src.training.classifier import build
from src.training.layers import layer_scales
from src.training.pretrained import pretrained, state_dict
from src.training.task import Task
from src.training.transfer import Transfer, transfer

ABC = list("abc")
QUICK = {"train__epochs": 2, "train__width": 8, "train__batch_size": 16, "train__warmup_epochs": 0.5}


def network(classes: int = 3, channels: int = 3, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return build("small_resnet", Shape((8, 8), channels, classes), 8, [0.0] * channels, [1.0] * channels).network


def given(*arguments: int, prefix: str = "") -> dict[str, Tensor]:
    """Return another network's weights."""
    return {prefix + name: value.clone() for name, value in network(*arguments, seed=2).state_dict().items()}


def fates(made: Transfer) -> dict[str, str]:
    return {fate.name: fate.what for fate in made.fates}


@pytest.fixture(scope="module")
def task() -> Task:
    """Three colours that are learnt at once."""
    random = np.random.default_rng(5)
    labels = np.arange(96) % 3
    images = (random.integers(0, 60, (96, 8, 8, 3)) + 150 * np.eye(3)[labels][:, None, None]).astype(np.uint8)
    split = Split(images, labels.astype(np.int64))
    return Task(split, split.subset(np.arange(24)), ABC, image_spec((8, 8)), "0")


# What fits


def test_all_but_the_head_is_copied_when_classes_differ() -> None:
    mine, other = network(), given(1000)
    before = mine.fc.weight.clone()
    made = transfer(mine, other, ABC, None)
    for name, value in mine.state_dict().items():
        assert torch.equal(value, other[name]) == (not name.startswith("fc")), name
    assert torch.equal(mine.fc.weight, before)
    assert [re.split(r"  +", line) for line in made.told().splitlines()[2:]] == [
        ["conv1.weight ... layer3.0.downsample.1.num_batches_tracked", "54 tensors", "54 tensors", "copied"],
        ["fc.weight", "1000x32", "3x32", "fresh: other classes"],
        ["fc.bias", "1000", "3", "fresh: other classes"],
    ]


@pytest.mark.parametrize(
    ("count", "known", "rows", "said"),
    [
        (3, ["c", "a", "b"], [1, 2, 0], "copied, by class name"),
        (5, ["x", "c", "y", "a", "z"], [3, None, 1], "copied, by class name: 2 of 3 classes"),
        (3, ["x", "y", "z"], [None, None, None], "fresh: other classes"),
    ],
)
def test_the_head_follows_the_class_names(count: int, known: list[str], rows: list[int | None], said: str) -> None:
    mine, other = network(), given(count)
    fresh = mine.fc.weight.clone()
    made = transfer(mine, other, ABC, known)
    expected = [fresh[i] if row is None else other["fc.weight"][row] for i, row in enumerate(rows)]
    assert torch.equal(mine.fc.weight, torch.stack(expected))
    assert fates(made)["fc.bias"] == said


@pytest.mark.parametrize(("theirs", "ours"), [(3, 1), (1, 3)])
def test_grey_images_are_answered_alike_by_one_channel_and_by_three(theirs: int, ours: int) -> None:
    mine, other = network(channels=ours).eval(), network(channels=theirs, seed=2).eval()
    made = transfer(mine, other.state_dict(), ABC, ABC)
    assert fates(made)["conv1.weight"].startswith("copied, ")
    grey = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(mine(grey.expand(-1, ours, -1, -1)), other(grey.expand(-1, theirs, -1, -1)))


# Files


class Dangerous:
    """What would run a command if it were unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ("exit 1",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no safetensors file .*; expected is a safetensors file or a PyTorch state dict"),
        (b"PK\x03\x04 half a zip", "is a damaged PyTorch file"),
        ({"epoch": 3, "lr": 0.1}, r"holds no tensors by name, nor under state_dict.*\(it holds: epoch, lr\)"),
        ([torch.zeros(2)], r"holds no tensors by name.*\(it holds: list\)"),
        (Dangerous(), r"holds code \(\w+\.system\), which is not run"),
        (nn.Linear(2, 2), r"holds code \(torch.nn.modules.linear.Linear\), which is not run: .*safetensors.torch.save_file"),
    ],
)
def test_what_holds_no_weights_is_refused_in_a_sentence(tmp_path: Path, content: Any, said: str) -> None:
    path = tmp_path / "w.bin"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=said) as caught:
        state_dict(path.read_bytes(), path)
    assert "\n" not in str(caught.value)


def test_a_file_is_pinned_by_its_digest_and_a_missing_one_is_said(tmp_path: Path, params: Callable[..., Params]) -> None:
    path = tmp_path / "w.safetensors"
    wanted = {"train__weights": str(path), "train__weights_sha256": "0"}
    with pytest.raises(UserError, match=r"w.safetensors is missing: correct train.weights"):
        pretrained(params(**wanted).train)
    save_file(given(), path)
    with pytest.raises(UserError, match=rf"weights_sha256 is '0', but .* has {sha256(path)}: put that into params.yaml"):
        pretrained(params(**wanted).train)
    assert pretrained(params(**wanted | {"train__weights_sha256": sha256(path)}).train).classes is None


def test_a_file_of_another_digest_is_not_parsed(tmp_path: Path, params: Callable[..., Params]) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(b"PK\x03\x04 half a zip")
    with pytest.raises(UserError, match=rf"weights_sha256 is None, but .* has {sha256(path)}"):
        pretrained(params(train__weights=str(path)).train)


def test_training_starts_from_a_file_and_lists_what_happened(
    task: Task, tmp_path: Path, params: Callable[..., Params], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.pt"
    torch.save({"state_dict": given(7, prefix="module.")}, path)
    changes = QUICK | {"train__weights": str(path), "train__weights_sha256": sha256(path)}
    classifier, _ = start.start(task, params(**changes).train)
    assert torch.equal(classifier.network.conv1.weight, given(7)["conv1.weight"])
    told = capsys.readouterr().out
    assert f"start from {path}, with module. taken off its names: 54 of 56 tensors copied, 0 of the file not used" in told
    assert "fc.weight " in told
    assert classifier.mean.flatten().tolist() == pytest.approx(task.training.examples.mean(axis=(0, 1, 2)), abs=1e-3)
    with pytest.raises(
        UserError, match=r"not one layer of .*w.pt fits network resnet18: check train.network and train.width"
    ):
        start.start(task, params(**changes | {"train__network": "resnet18", "train__width": 64}).train)


# The champion, from a real MLflow in a file


CHAMPION = Callbacks(champion=champion.fetch)


@pytest.fixture
def registry(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return Registry.connect()


def register(registry: Registry, folder: Path, manifest: str, *, kept: bool = True) -> str:
    """Make a version whose run keeps what a release's run does; return its number."""
    client = registry.client
    experiment = client.get_experiment_by_name("toy")
    number = experiment.experiment_id if experiment else client.create_experiment("toy", str(folder / "artifacts"))
    run_id = client.create_run(number).info.run_id
    weights, card = folder / "weights.safetensors", folder / "card.json"
    save_file(given(), weights)
    card.write_text(json.dumps({"classes": ["c", "a", "b"], "weights_sha256": sha256(weights)}))
    for file in (weights, card) if kept else (card,):
        client.log_artifact(run_id, str(file), "model")
    tags = {"manifest": manifest, "trained_commit": "c" * 40}
    return registry.add(f"runs:/{run_id}/model", run_id, tags, "a card").number


@pytest.mark.filterwarnings("ignore")  # deprecations inside MLflow
def test_the_champion_is_fetched_by_alias_and_pinned_by_digest(
    registry: Registry, tmp_path: Path, params: Callable[..., Params]
) -> None:
    recipe = params(train__weights="champion").train
    with pytest.raises(UserError, match=r"train.weights is champion, but image-classifier has none in MLflow at sqlite"):
        pretrained(recipe, CHAMPION)
    registry.move("champion", register(registry, tmp_path, "aa"), why="deployed")
    digest = sha256(tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=rf"is None, but the champion, version 1 of image-classifier .* has {digest}"):
        pretrained(recipe, CHAMPION)
    found = pretrained(params(train__weights="champion", train__weights_sha256=digest).train, CHAMPION)
    assert found.classes == ["c", "a", "b"]
    assert all(torch.equal(found.weights[name], value) for name, value in given().items())
    registry.move("champion", register(registry, tmp_path, "bb", kept=False), why="deployed")
    with pytest.raises(
        UserError, match=r"version 2 .* without its weights.safetensors: .*dvc get \. out/model --rev c{12} "
    ):
        pretrained(recipe, CHAMPION)


# Layers that keep still, or learn slower


def trained(task: Task, params: Callable[..., Params], **changes: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the network's tensors before and after two epochs."""
    recipe = params(**(QUICK | changes)).train
    torch.manual_seed(recipe.seed)
    before = start.start(task, recipe, lambda _: None)[0].network.state_dict()
    return before, loop.fit(task, recipe, None, exportable=False, quiet=True).classifier.network.state_dict()


@pytest.mark.parametrize(
    ("changes", "still"),
    [
        ({"train__freeze": ["conv1", "layer2.0.conv1"]}, ("conv1.", "layer2.0.conv1.")),
        ({"train__freeze_until": "layer2.0.conv2"}, ("conv1.", "bn1.", "layer1.", "layer2.0.conv1.", "layer2.0.bn1.")),
        ({"train__freeze_until": "layer1", "train__freeze": ["layer3"]}, ("conv1.", "bn1.", "layer3.")),
    ],
)
def test_exactly_the_frozen_tensors_stay_bit_by_bit(
    task: Task, params: Callable[..., Params], changes: dict, still: tuple[str, ...]
) -> None:
    before, after = trained(task, params, **changes)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith(still)}


def test_scales_fall_by_the_decay_from_the_head_to_the_images() -> None:
    scales = layer_scales(network(), 0.5)
    assert scales.keys() == dict(network().named_parameters()).keys()
    firsts = {name.split(".")[0]: value for name, value in scales.items()}
    assert firsts == {"conv1": 1 / 32, "bn1": 1 / 16, "layer1": 1 / 8, "layer2": 1 / 4, "layer3": 1 / 2, "fc": 1}
    assert set(layer_scales(network(), 1.0).values()) == {1}
    wrapped = layer_scales(nn.ModuleDict({"only": network()}), 0.5)
    assert wrapped == {f"only.{name}": value for name, value in scales.items()}
