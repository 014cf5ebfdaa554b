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


class Failing(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("\n  no C++ compiler here\nand pages of text")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda module: Failing(), "torch.compile: not used, since it fails here (RuntimeError: no C++ compiler here)"),
        (lambda module: module, "torch.compile"),
    ],
)
def test_compiling_is_no_training_and_a_compiler_that_fails_is_done_without(
    classifier: Classifier, params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch, made: Any, said: str
) -> None:
    monkeypatch.setattr(compiling, "_compile", made)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    assert compiled(classifier, IMAGES, LABELS, True, 100, params(train__compile="on").train) == (classifier, said)
    assert all(torch.equal(classifier.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert classifier.training
    assert not classifier.network[1].training


@pytest.mark.parametrize(
    ("setting", "device", "steps"), [("auto", "cpu", 10**9), ("off", "cuda", 10**9), ("auto", "cuda", 19_999)]
)
def test_a_rule_says_where_it_pays(
    classifier: Classifier, params: Callable[..., Params], setting: str, device: str, steps: int
) -> None:
    images: Any = SimpleNamespace(device=torch.device(device))
    module, said = compiled(classifier, images, LABELS, True, steps, params(train__compile=setting).train)
    assert module is classifier
    assert "train.compile" in said


@pytest.mark.journey
def test_a_real_compiler_computes_the_same(classifier: Classifier, params: Callable[..., Params]) -> None:
    module, said = compiled(classifier, IMAGES, LABELS, False, 100, params(train__compile="on").train)
    if module is classifier:
        assert "it fails here" in said  # no C++ compiler
        pytest.skip(said)
    classifier.eval()
    answers: Any = [made(IMAGES.float()).detach() for made in (module, classifier)]
    torch.testing.assert_close(*answers)
