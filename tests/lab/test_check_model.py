"""Each way to wire a network wrongly is caught by name: python -m pytest tests/lab/test_check_model.py"""

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from conftest import write_params
from torch import Tensor, nn

from src import model
from src.core.command import UserError
from src.lab.experiments.check_model import CheckResult, check, drawn, main


class Plain(nn.Module):
    """Sound; what follows breaks one thing of it each."""

    def __init__(self, outputs: int = 10) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Linear(8 * 16, outputs)

    def features(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(F.relu(self.norm(self.first(x))), 4).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x))


class Detached(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x).detach())


class WithoutWeights(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class Softmax(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(dim=1)


class Mixing(Plain):
    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        return self.last(features - features.mean(dim=0))


class Undefined(Plain):
    def forward(self, x: Tensor) -> Tensor:
        contrast = x.std(dim=(2, 3), keepdim=True)
        return super().forward((x - x.mean(dim=(2, 3), keepdim=True)) / contrast)


class Dead(Plain):
    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.norm.bias, -1000.0)


class Unrepeatable(Plain):
    def forward(self, x: Tensor) -> Tensor:
        noise = int.from_bytes(os.urandom(2)) / 2**16 if self.training else 0.0
        return super().forward(x + 0.01 * noise)


class Strided(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(8, 8, 1, 2, padding=1)
        self.last = nn.Linear(8 * 16, 10)

    def features(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.down(self.first(x)), 4).flatten(1)


class Twofold(Plain):
    """Acts in training alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.training else 0 * x)


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, CheckResult]]:
    def go(network: Callable[[], nn.Module], **changes: Any) -> dict[str, CheckResult]:
        monkeypatch.setitem(model.NETWORKS, "own", lambda shape, width: network())
        params = write_params(tmp_path / "params.yaml", train__network="own", train__precision="fp32", **changes)
        return {each.check: each for each in check(drawn(params), params, steps=150)}

    return go


def failed(found: dict[str, CheckResult]) -> set[str]:
    return {name for name, each in found.items() if each.result == "FAIL"}


def test_a_sound_network_passes_every_check(found: Callable[..., dict[str, CheckResult]]) -> None:
    results = found(Plain)
    assert len(results) == 11
    assert {each.result for each in results.values()} == {"ok"}, list(results.values())


@pytest.mark.parametrize(
    ("network", "check", "words"),
    [
        (Detached, "gradients", "none reaches first.weight, first.bias, norm.weight, norm.bias"),
        (Strided, "gradients", "layer down is a strided 1x1 convolution of 8 input channels"),
        (WithoutWeights, "first loss", "do not depend on any weight"),
        (Dead, "gradients", "always zero in first.weight"),
        (Softmax, "logits", "each row sums to 1"),
        (lambda: Plain(outputs=7), "shapes", "gives (1, 7), expected (1, 10)"),
        (Mixing, "one image alone", "differ by"),
        (Undefined, "extreme images", "black images give NaN or infinity in evaluation mode"),
        (Unrepeatable, "repeatable", "another loss the second time"),
    ],
)
def test_what_is_wired_wrongly_is_named(
    found: Callable[..., dict[str, CheckResult]], network: Callable[[], nn.Module], check: str, words: str
) -> None:
    results = found(network)
    assert check in failed(results), results
    assert words in results[check].told
    assert results[check].advice


def test_what_may_be_meant_is_a_warning_and_a_constructor_that_raises_is_told(found: Callable[..., Any]) -> None:
    def raising() -> nn.Module:
        raise TypeError("width must be even")

    assert found(Twofold)["evaluation mode"].result == "warn"
    assert found(raising)["builds"].told == "TypeError: width must be even"


@pytest.mark.parametrize(
    ("network", "words"),
    [(lambda: Plain(outputs=7), "1 of 2 checks failed: shapes"), (Plain, "")],
)
def test_the_command_prints_a_table_and_fails_with_a_sentence(
    network: Callable[[], nn.Module],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(model.NETWORKS, "own", lambda shape, width: network())
    write_params(tmp_path / "params.yaml", train__network="own")
    arguments = ["--params", str(tmp_path / "params.yaml"), "--arrays", str(tmp_path / "absent")]
    monkeypatch.setattr(sys, "argv", ["check_model", *arguments])
    with pytest.raises(UserError, match=words) if words else nullcontext():
        main()
    said = capsys.readouterr().out
    assert "drawn images" in said
    assert ("the network is wired right" in said) == (not words)


def test_too_few_steps_are_no_fault(tmp_path: Path) -> None:
    params = write_params(tmp_path / "params.yaml", train__width=8)
    results = {each.check: each for each in check(drawn(params), params, steps=3)}
    assert failed(results) == set(), results
    assert results["learns by heart"].result == results["evaluation mode"].result == "not shown"
    assert results["repeatable"].result == "ok"
