"""The profile names what holds training up: python -m pytest tests/lab/test_profile.py"""

import gzip
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src import model
from src.lab.experiments import bottleneck
from src.lab.experiments.check_model import drawn
from src.lab.experiments.step_parts import Measured, Operator
from src.lab.experiments.training_profile import profile
from src.system.params import Params
from src.training.batches import Batches

STEPS = 4


@pytest.fixture
def measured(tmp_path: Path, params: Callable[..., Params]) -> Callable[..., Measured]:
    def go(**changes: Any) -> Measured:
        asked = params(**({"train__width": 16, "train__batch_size": 32, "prepare__image_size": 24} | changes))
        return profile(drawn(asked), asked.train, tmp_path / "profile", STEPS)

    return go


def test_a_slow_source_of_batches_is_told_as_data(
    measured: Callable[..., Measured], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = Batches.epoch

    def slow(self: Batches, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in fast(self, size, seed):
            time.sleep(0.5)
            yield batch

    monkeypatch.setattr(Batches, "epoch", slow)
    found = measured(prepare__image_size=8)
    assert bottleneck.verdict(found).name == "data"
    assert found.parts["data"] > 0.5


def test_a_large_network_is_told_as_compute(measured: Callable[..., Measured], tmp_path: Path) -> None:
    found = measured(train__batch_size=64, train__width=48, train__precision="fp32")
    shares = bottleneck.shares(found)
    assert sum(shares.values()) == pytest.approx(1)
    assert bottleneck.verdict(found).name == "compute", shares
    folder = tmp_path / "profile"
    page = (folder / "bottleneck.md").read_text()
    assert page.startswith("# The bottleneck: compute\n")
    assert all(words in page for words in ("images/s", "matmul peak", "convolution_backward", "| optimiser |"))
    events = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))["traceEvents"]
    assert any("convolution" in event.get("name", "") for event in events)
    assert (folder / "bottleneck.png").stat().st_size > 1000


def test_many_small_operations_are_told_as_overhead(
    measured: Callable[..., Measured], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Many(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.last = nn.Linear(3, classes)

        def forward(self, x: Tensor) -> Tensor:
            x = x.mean(dim=(2, 3))
            for _ in range(3000):
                x = x + 0.01
            return self.last(x)

    monkeypatch.setitem(model.NETWORKS, "many", lambda shape, width: Many(shape.classes))
    found = measured(train__network="many", prepare__image_size=8)
    assert bottleneck.verdict(found).name == "Python and launch overhead", bottleneck.shares(found)


def made(parts: dict[str, float], waiting: float = 0.0, fixed: float = 0.1, heavy: float = 0.8) -> Measured:
    operators = [Operator("aten::mm", heavy, 1), Operator("aten::add", 1 - heavy, 1)]
    return Measured({"data_wait_share": waiting}, 1, {"data": 0.01, "other": 0.01} | parts, fixed, operators)


@pytest.mark.parametrize(
    ("parts", "others", "name"),
    [
        ({"forward": 1, "backward": 2, "optimiser": 0.1}, {}, "compute"),
        ({"forward": 1, "backward": 2, "optimiser": 0.1}, {"waiting": 0.9}, "data"),
        ({"forward": 1, "backward": 2, "optimiser": 0.1}, {"fixed": 0.9}, "Python and launch overhead"),
        ({"forward": 1, "backward": 2, "optimiser": 0.1}, {"heavy": 0.1}, "memory bandwidth"),
        ({"forward": 1, "backward": 2, "optimiser": 9}, {}, "optimiser"),
        ({"forward": 1, "backward": 2, "optimiser": 0.1, "other": 9}, {}, "what lies between the steps"),
    ],
)
def test_the_verdict_is_the_largest_cause(parts: dict[str, float], others: dict[str, float], name: str) -> None:
    found = made(parts, **others)
    assert bottleneck.verdict(found).name == name
    assert sum(bottleneck.shares(found).values()) == pytest.approx(1)


def test_every_advice_names_a_parameter(params: Callable[..., Params]) -> None:
    train = params().train
    for cause in bottleneck.CAUSES.values():
        named = re.findall(r"`train\.(\w+)", cause.advice)
        assert named, cause
        assert all(hasattr(train, name) for name in named), named


def test_the_loop_is_left_as_it_was(measured: Callable[..., Measured], monkeypatch: pytest.MonkeyPatch) -> None:
    from src.training import loop

    kept: list[Any] = []
    prepare = loop.prepare
    monkeypatch.setattr(loop, "prepare", lambda *given: kept.append(prepare(*given)) or kept[-1])
    measured(prepare__image_size=8)
    learner = kept[0][0]
    assert learner.forward is learner.classifier
    assert not learner.optimizer._optimizer_step_pre_hooks
    assert all(bool(torch.isfinite(value).all()) for value in learner.classifier.parameters())
