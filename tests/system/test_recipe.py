"""The recipe of a speed record, part by part, and a file of it over params.yaml.

python -m pytest tests/system/test_recipe.py
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, write_params
from torch import Tensor, nn

from src.core.arrays import Split
from src.core.command import UserError
from src.images.prepare_params import image_spec
from src.system import recipe
from src.system.params import Params, load
from src.system.params_text import put
from src.training import start
from src.training.airbench import Airbench, Whitening
from src.training.muon import Muon, orthogonal
from src.training.task import Task

# The network


def smooth(count: int, channels: int = 3, side: int = 16) -> Tensor:
    """Return images whose pixels resemble their neighbours, as photographs' do: floats of mean 0."""
    coarse = torch.randn(count, channels, side // 4, side // 4, generator=torch.Generator().manual_seed(2))
    grey = coarse.mean(1, keepdim=True).repeat(1, 1, 4, 4)
    return nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear") + 0.3 * grey


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_patches_are_uncorrelated_with_variance_one(channels: int) -> None:
    layer, images = Whitening(channels), smooth(2000, channels)
    layer.initialise_from(images)
    answers = layer(images).permute(1, 0, 2, 3).flatten(1)
    half = len(answers) // 2
    torch.testing.assert_close(answers[:half], -answers[half:])
    moments = answers[:half] @ answers[:half].T / answers.shape[1]
    assert (moments - moments.diag().diag()).abs().max() < 1e-2
    assert moments.diag().max() < 1 + 1e-3
    assert moments.diag().min() > 0.7  # under 1 where the variance itself is hardly over the floor
    grey = smooth(500, 1).repeat(1, channels, 1, 1)
    layer.initialise_from(grey)
    assert layer(grey).abs().max() < 50, "grey images in three channels blow up noise"


def test_the_first_layer_sees_a_seeded_sample_of_the_whole_split(tmp_path: Path) -> None:
    """Sorted by class, the first rows alone would whiten for one class."""
    params = write_params(tmp_path / "p.yaml", train__network="airbench", train__width=4).train
    random = np.random.default_rng(1)
    images = random.integers(0, 60, (6000, 8, 8, 3), dtype=np.uint8)
    images[5500:] += 150
    split = Split(images, np.repeat([0, 1], 3000))
    task = Task(split, split, ["a", "b"], image_spec((8, 8)), "0" * 64)
    weights = [start.start(task, one)[0].network.whiten.weight for one in (params, params)]
    assert torch.equal(*weights)
    dark = start.start(replace(task, training=split.subset(np.arange(5000))), params)[0].network.whiten.weight
    assert not torch.allclose(weights[0], dark, atol=0.1)


# The optimiser


@pytest.mark.parametrize("shape", [(8, 40), (40, 8)])
def test_an_orthogonal_step_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 1e-3
    values = torch.linalg.svdvals(orthogonal(matrix, iterations=6))
    assert values.min() > 0.6
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert ((orthogonal(matrix, 6) * (left @ right)).sum() / min(shape)) > 0.8


def muon(network: nn.Module) -> Muon:
    filters, rest = ([p for p in network.parameters() if (p.ndim == 4) is wanted] for wanted in (True, False))
    groups = [{"params": filters, "orthogonal": True, "momentum": 0.6}, {"params": rest, "weight_decay": 0.001, "lr": 2.0}]
    return Muon(groups, lr=0.1)


def learn(network: nn.Module, by: Muon, steps: int) -> list[float]:
    labels = torch.arange(32) % 4
    images = smooth(32) + labels.view(-1, 1, 1, 1)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(network(images), labels)
        by.zero_grad()
        loss.backward()
        by.step()
        losses.append(loss.item())
    return losses


def fresh() -> nn.Module:
    torch.manual_seed(5)
    return Airbench((16, 16), 3, 4, (4, 8, 8))


def test_muon_learns_and_keeps_the_norm_of_filters() -> None:
    network = fresh()
    by = muon(network)
    before = network.block2.conv1.weight.norm().item()
    losses = learn(network, by, 40)
    assert losses[-1] < losses[0] / 2
    assert network.block2.conv1.weight.norm().item() == pytest.approx(before, rel=0.05)


# The file


def written(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    (folder / "params").mkdir(exist_ok=True)
    path = folder / "params" / name
    path.write_text(text)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Params:
    return write_params(tmp_path / "params.yaml")


def test_a_recipe_changes_what_it_names_and_nothing_else(tmp_path: Path, base: Params) -> None:
    path = written(tmp_path, "extends: ../params.yaml\ntrain:\n  epochs: 7\n  augment: {flip: true}\n")
    augment = base.train.augment.model_copy(update={"flip": True})
    assert load(path) == base.model_copy(update={"train": base.train.model_copy(update={"epochs": 7, "augment": augment})})
    assert load(written(tmp_path, "extends: recipe.yaml\ntrain: {width: 8}\n", "second.yaml")).train.epochs == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: ../none.yaml\n", r"recipe.yaml extends ../none.yaml, but there is no .*none.yaml"),
        ("extends: recipe.yaml\n", r"recipe.yaml extends recipe.yaml, which extends it in turn"),
        ("extends: [a]\n", r"extends is \['a'\], expected the path"),
        ("extends: ../params.yaml\ntrain: {epoch: 3}\n", r"recipe.yaml.*train.epoch is unknown"),
        ("extends: ../params.yaml\ntrain: 3\n", r"recipe.yaml.*train"),
        ("extends: ../params.yaml\ntrain: {epochs: -3}\n", r"recipe.yaml.*train.epochs is -3"),
        ("train: {epochs: 3}\n", r"recipe.yaml.*prepare is missing"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_and_changes_nothing(tmp_path: Path, base: Params, text: str, words: str) -> None:
    before = (tmp_path / "params.yaml").read_bytes()
    for act in (load, lambda path: recipe.adopt(path, tmp_path / "params.yaml")):
        with pytest.raises(UserError, match=words):
            act(written(tmp_path, text))
    assert (tmp_path / "params.yaml").read_bytes() == before
    assert load(tmp_path / "params.yaml") == base


def test_adopting_a_recipe_keeps_remarks_and_says_what_changed(tmp_path: Path) -> None:
    target = tmp_path / "params.yaml"
    target.write_bytes((ROOT / "params.yaml").read_bytes())
    path = written(tmp_path, "extends: ../params.yaml\ntrain:\n  epochs: 7\n  augment: {flip: true}\n")
    assert recipe.adopt(path, target) == ["train.epochs: 50 -> 7", "train.augment.flip: false -> true"]
    old, new = ((ROOT / "params.yaml").read_text().splitlines(), target.read_text().splitlines())
    differing = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
    assert len(differing) == 2
    assert all(a.split("#")[1] == b.split("#")[1] for a, b in differing)
    assert load(target) == load(path)
    assert recipe.adopt(path, target) == []


def test_a_key_that_was_left_to_its_default_is_added_with_its_remark(tmp_path: Path) -> None:
    target = tmp_path / "params.yaml"
    target.write_text("prepare:\nvalidate:\ntrain:\n  epochs: 3  # few\n\n# four\nevaluate:\n")
    text = "extends: ../params.yaml\ntrain: {ema: 0.9, width: 24, augment: {flip: true}}\nvalidate: {labels: [a, b]}\n"
    path = written(tmp_path, text + "gates: {levels: {churn: 'off'}}\nsweep: {space: {width: [8, 16]}}\n")
    assert recipe.adopt(path, target)[1] == "train.ema: 0 -> 0.9"
    expected = """prepare: null
validate:
  labels: [a, b]             # the classes you expect, e.g. [cat, dog]; null takes those found
train:
  augment:
    flip: true               # mirror left-right; true for photographs, wrong for digits
  ema: 0.9                   # keep a moving average of the weights, with this decay: 0.999; 0 is off
  epochs: 3  # few

# four
evaluate: null

gates:
  levels:
    churn: off               # two equally good models that disagree

sweep:
  space: {width: [8, 16]}    # keys of train that may vary: a list of choices, or {low, high} with `log: true` or `step`
"""
    assert target.read_text() == expected
    assert load(target) == load(path)


WRITTEN = """# params
train:   # section
  weights: null # none
  rate: 0.1     # a rate
  optimizer: "sgd"
  augment: {flip: true, rotate: 5}
  shared: &x 3
  other: *x
  list: [1, 2]
gates:
  empty: null
"""


@pytest.mark.parametrize(
    ("place", "value", "line"),
    [
        (("train", "weights"), "a b: c", "  weights: 'a b: c' # none"),
        (("train", "rate"), 2e-05, "  rate: 2e-05   # a rate"),
        (("train", "rate"), None, "  rate: null    # a rate"),
        (("train", "optimizer"), "muon", '  optimizer: "muon"'),
        (("train", "augment", "rotate"), 3.5, "  augment: {flip: true, rotate: 3.5}"),
        (("gates", "empty"), "true", "  empty: 'true'"),
    ],
)
def test_one_value_is_put_and_no_other_line_is_touched(place: tuple[str, ...], value: Any, line: str) -> None:
    before, after = WRITTEN.splitlines(), put(WRITTEN, {place: value}).splitlines()
    assert [new for old, new in zip(before, after, strict=True) if old != new] == [line]
