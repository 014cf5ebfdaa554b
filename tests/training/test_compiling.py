"""torch.compile is used where it pays and leaves the weights alone: python -m pytest tests/training/test_compiling.py"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from src.system.params import Params
from src.training import compiling
from src.training.classifier import Classifier
from src.training.compiling import compiled

IMAGES = torch.arange(4 * 3 * 8 * 8, dtype=torch.uint8).view(4, 3, 8, 8)
LABELS = torch.tensor([0, 1, 2, 0])


@pytest.fixture
def classifier() -> Classifier:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3))
    network[1].eval()  # as a frozen layer is
    return Classifier(network, [100.0] * 3, [50.0] * 3)


def state(classifier: Classifier) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in classifier.state_dict().items()}


def assert_untouched(classifier: Classifier, before: dict[str, torch.Tensor]) -> None:
    after = classifier.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert classifier.training
    assert not classifier.network[1].training


@pytest.mark.parametrize("setting", ["auto", "off"])
def test_a_processor_compiles_only_when_told_to(classifier: Classifier, params: Callable[..., Params], setting: str) -> None:
    module, said = compiled(classifier, IMAGES, LABELS, False, 10**9, params(train__compile=setting).train)
    assert module is classifier
    assert "train.compile" in said


def test_a_compiler_that_fails_is_told_in_a_line_and_done_without(
    classifier: Classifier, params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("\n  no C++ compiler here\nand pages of text")

    monkeypatch.setattr(compiling, "_compile", lambda module, mode: Failing())
    before = state(classifier)
    module, said = compiled(classifier, IMAGES, LABELS, False, 100, params(train__compile="on").train)
    assert module is classifier
    assert "not used, since it fails here (RuntimeError: no C++ compiler here)" in said
    assert_untouched(classifier, before)


def test_compiling_is_no_training(
    classifier: Classifier, params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_compile", lambda module, mode: module)
    before, drawn = state(classifier), torch.get_rng_state()
    module, said = compiled(classifier, IMAGES, LABELS, True, 100, params(train__compile="on").train)
    assert (module, said) == (classifier, "torch.compile (default)")
    assert torch.equal(torch.get_rng_state(), drawn)
    assert_untouched(classifier, before)


@pytest.mark.parametrize(("steps", "compiles"), [(19_999, False), (20_000, True)])
def test_auto_on_a_gpu_goes_by_the_number_of_steps(
    classifier: Classifier, params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch, steps: int, compiles: bool
) -> None:
    other = nn.Identity()
    monkeypatch.setattr(compiling, "_compile", lambda module, mode: other)
    monkeypatch.setattr(compiling, "_step", lambda *_: None)
    images: Any = SimpleNamespace(device=torch.device("cuda"))
    module, said = compiled(classifier, images, LABELS, True, steps, params(train__compile="auto").train)
    assert module is (other if compiles else classifier)
    assert ("20,000" in said) == (not compiles)


@pytest.mark.slow
def test_a_real_compiler_computes_the_same(classifier: Classifier, params: Callable[..., Params]) -> None:
    before = state(classifier)
    module, said = compiled(classifier, IMAGES, LABELS, False, 100, params(train__compile="on").train)
    assert_untouched(classifier, before)
    if module is classifier:
        assert "it fails here" in said  # no C++ compiler
        pytest.skip(said)
    classifier.eval()
    answers: Any = [made(IMAGES.float()).detach() for made in (module, classifier)]
    torch.testing.assert_close(*answers)
