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
    assert found.images == 32
    assert all(seconds > 0 for seconds in found.parts.values())
    page = (tmp_path / "profile/bottleneck.txt").read_text()
    assert page.startswith(found.verdict)
    assert all(words in page for words in ("images/s", "ms a step", "optimiser", "convolution"))
    events = json.loads(gzip.decompress((tmp_path / "profile/trace.json.gz").read_bytes()))["traceEvents"]
    assert any("convolution" in event.get("name", "") for event in events)
    learner = kept[0][0]
    assert not learner.optimizer._optimizer_step_pre_hooks
    assert all(bool(torch.isfinite(value).all()) for value in learner.classifier.parameters())


@pytest.mark.parametrize("name", ["data", "model", "optimiser"])
def test_the_verdict_is_the_largest_part(name: str) -> None:
    found = StepProfile(1.0, 32, {"data": 1.0, "model": 1.0, "optimiser": 1.0, name: 2.0}, "")
    assert found.bottleneck == (name, 0.5)
    assert found.verdict.startswith(f"The bottleneck is the {name}: 50% of a step. ")
