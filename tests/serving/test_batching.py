"""Batches come by themselves, and no request pays for another: python -m pytest tests/serving/test_batching.py"""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from numpy.typing import NDArray

from src.core.files import write_json
from src.serving import layout, metrics
from src.serving.batching import Batcher, Observed
from src.serving.problems import ProblemError

Images = NDArray[np.uint8]

pytestmark = pytest.mark.anyio  # runs what is `async def`


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def tag(images: Images) -> NDArray[np.float32]:
    """Give each image its own mark, so that answers cannot be mixed up."""
    return images.reshape(len(images), -1)[:, :1].astype(np.float32)


def marked(*marks: int) -> Images:
    return np.array(marks, dtype=np.uint8).reshape(-1, 1, 1, 1)


def soon() -> float:
    return time.monotonic() + 20


def batcher(
    compute: Callable[[Images], NDArray[np.float32]] = tag,
    limit: int = 8,
    capacity: int = 100,
    lanes: int = 0,
    wide: Callable[[Images], NDArray[np.float32]] | None = None,
) -> tuple[Batcher, list[int]]:
    sizes: list[int] = []

    def note(observed: Observed) -> None:
        sizes.append(len(observed.images))

    return Batcher(compute, limit, capacity, note, lanes, wide), sizes


@pytest.mark.parametrize("lanes", [0, 1, 3])
async def test_everybody_gets_their_own_answer(lanes: int) -> None:
    requests = [marked(*range(i, i + i % 20 + 1)) for i in range(60)]
    queue, sizes = batcher(capacity=10_000, lanes=lanes, wide=tag)
    answers = await asyncio.gather(*(queue.submit(images, soon()) for images in requests))
    for images, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer, tag(images))
    assert max(sizes) <= 8
    assert sum(sizes) == sum(map(len, requests))
    assert queue.waiting == 0


async def test_a_lone_request_is_computed_at_once_and_alone() -> None:
    queue, sizes = batcher()
    for mark in range(5):
        await queue.submit(marked(mark), soon())
    assert sizes == [1] * 5


async def test_what_comes_while_the_model_computes_is_its_next_batch() -> None:
    began, held = threading.Event(), threading.Event()

    def slow(images: Images) -> NDArray[np.float32]:
        began.set()
        held.wait(20)
        return tag(images)

    queue, sizes = batcher(slow, lanes=1)
    first = asyncio.create_task(queue.submit(marked(0), soon()))
    await asyncio.to_thread(began.wait, 20)
    rest = [asyncio.create_task(queue.submit(marked(i), soon())) for i in range(1, 12)]
    await asyncio.sleep(0)  # they wait
    held.set()
    await asyncio.gather(first, *rest)
    assert sizes == [1, 8, 3]


@pytest.mark.parametrize("lanes", [0, 1, 3])
async def test_a_batch_that_fails_is_computed_one_by_one_so_that_only_the_guilty_fail(lanes: int) -> None:
    def refuse_seven(images: Images) -> NDArray[np.float32]:
        if 7 in images:
            raise RuntimeError("seven")
        return tag(images)

    queue, _ = batcher(refuse_seven, lanes=lanes)
    answers = await asyncio.gather(*(queue.submit(marked(i), soon()) for i in range(16)), return_exceptions=True)
    assert [i for i, answer in enumerate(answers) if isinstance(answer, Exception)] == [7]
    assert (await queue.submit(marked(3), soon())).item() == 3


async def test_a_full_queue_refuses_and_takes_again_when_there_is_room() -> None:
    queue, _ = batcher(limit=2, capacity=4)
    tasks = [asyncio.create_task(queue.submit(marked(i), soon())) for i in range(7)]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, ProblemError)]
    assert {(one.status_code, one.headers["Retry-After"]) for one in refused} == {(429, "1")}
    assert len(refused) == 3
    assert (await queue.submit(marked(9), soon())).item() == 9


async def test_what_is_too_late_is_not_computed() -> None:
    queue, sizes = batcher()
    late = queue.submit(marked(1), time.monotonic() - 1)
    answers = await asyncio.gather(late, queue.submit(marked(2), soon()), return_exceptions=True)
    assert isinstance(answers[0], ProblemError)
    assert answers[0].status_code == 504
    assert sizes == [1]


async def test_whoever_has_gone_is_not_computed_for() -> None:
    queue, sizes = batcher()
    gone = asyncio.ensure_future(queue.submit(marked(1), soon()))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    await queue.submit(marked(2), soon())
    assert sum(sizes) <= 2
    assert queue.waiting == 0


def test_a_batch_is_as_large_as_its_operations_fit_into_its_time(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(bytes(1_000))
    write_json(tmp_path / "card.json", {"flops": 10**9})
    assert [layout.batch(tmp_path, seconds, inline=False) for seconds in (0, 0.1, 1)] == [1, 7, 64]
    write_json(tmp_path / "card.json", {"flops": 10**8})
    assert [layout.batch(tmp_path, 0.1, inline=inline) for inline in (True, False)] == [3, 64]


WORKER = """
import os, sys
from types import SimpleNamespace as Of
from src.serving.metrics import Metrics
metrics = Metrics(Of(card=Of(classes=["a"], model_sha256="0"), version="3", manifest=None, since=0.0), "fp32")
for _ in range(int(sys.argv[1])):
    metrics.answered("/predict", 200, 0.004)
    metrics.predictions[0].inc()
    metrics.waiting.set(2)
print(metrics.text().decode())
"""


@pytest.mark.journey
def test_workers_count_together_and_what_an_ended_one_has_counted_stays(tmp_path: Path) -> None:
    for count in (1, 2):
        metrics.forget_the_dead(tmp_path)
        command = [sys.executable, "-c", WORKER, str(count)]
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        text = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert 'http_requests_total{route="/predict",status="200"} 3.0' in text
    assert 'http_request_duration_seconds_bucket{le="0.005",route="/predict"} 3.0' in text
    assert 'http_request_duration_seconds_bucket{le="0.0025",route="/predict"} 0.0' in text
    assert 'model_predictions_total{label="a",model_version="3"} 3.0' in text
    assert 'model_info{manifest="",model_sha256="0",precision="fp32",version="3"} 1.0' in text
    assert "serving_queue_images 2.0" in text
