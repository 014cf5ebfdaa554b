"""The profile names what holds training up: python -m pytest tests/lab/test_profile.py"""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from src.lab.experiments.check_model import drawn
from src.lab.experiments.training_profile import StepProfile, profile
from src.system.params import Params
from src.training import loop


def test_a_profile_has_page_and_trace_and_leaves_the_loop_as_it_was(
    tmp_path: Path, params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    prepare = loop.prepare
    monkeypatch.setattr(loop, "prepare", lambda *given: kept.append(prepare(*given)) or kept[-1])
    asked = params(train__width=8, train__batch_size=32)
    found = profile(drawn(asked), asked.train, tmp_path / "profile", 2)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.images == 32
    page = (tmp_path / "profile/bottleneck.txt").read_text()
    assert page.startswith(f"The bottleneck is {found.verdict.name}: ")
    assert all(words in page for words in ("images/s", "ms a step", "optimiser"))
    events = json.loads(gzip.decompress((tmp_path / "profile/trace.json.gz").read_bytes()))["traceEvents"]
    assert any("convolution" in event.get("name", "") for event in events)
    learner = kept[0][0]
    assert learner.forward is learner.classifier
    assert not learner.optimizer._optimizer_step_pre_hooks
    assert all(bool(torch.isfinite(value).all()) for value in learner.classifier.parameters())


def made(parts: dict[str, float], fixed: float = 0.1, heavy: float = 0.8) -> StepProfile:
    usual = {"data": 0.01, "forward": 1, "backward": 2, "optimiser": 0.1, "other": 0.01}
    return StepProfile(1.0, 32, usual | parts, fixed, heavy)


@pytest.mark.parametrize(
    ("parts", "others", "name"),
    [
        ({}, {}, "compute"),
        ({"data": 9}, {}, "data"),
        ({}, {"fixed": 0.9}, "Python and launch overhead"),
        ({}, {"heavy": 0.1}, "memory bandwidth"),
        ({"optimiser": 9}, {}, "optimiser"),
        ({"other": 9}, {}, "what lies between the steps"),
    ],
)
def test_the_verdict_is_the_largest_cause(parts: dict[str, float], others: dict[str, float], name: str) -> None:
    found = made(parts, **others)
    assert found.verdict.name == name
    assert sum(found.shares.values()) == pytest.approx(1)
