"""Batches come by themselves, and no request pays for another: python -m pytest tests/serving/test_batching.py"""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from src.serving.batching import Batcher, Observed, fitting
from src.serving.board import Board
from src.serving.metrics import Metrics
from src.serving.problems import ProblemError

Images = NDArray[np.uint8]


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
def test_everybody_gets_their_own_answer(lanes: int) -> None:
    async def ask() -> None:
        requests = [marked(*range(i, i + i % 20 + 1)) for i in range(60)]
        queue, sizes = batcher(capacity=10_000, lanes=lanes, wide=tag)
        answers = await asyncio.gather(*(queue.submit(images, soon()) for images in requests))
        for images, answer in zip(requests, answers, strict=True):
            np.testing.assert_array_equal(answer, tag(images))
        assert max(sizes) <= 8
        assert sum(sizes) == sum(map(len, requests))
        assert queue.waiting == 0

    asyncio.run(ask())


def test_a_lone_request_is_computed_at_once_and_alone() -> None:
    async def ask() -> None:
        queue, sizes = batcher()
        for mark in range(5):
            await queue.submit(marked(mark), soon())
        assert sizes == [1] * 5

    asyncio.run(ask())


def test_what_comes_while_the_model_computes_is_its_next_batch() -> None:
    began, held = threading.Event(), threading.Event()

    def slow(images: Images) -> NDArray[np.float32]:
        began.set()
        held.wait(20)
        return tag(images)

    async def ask() -> None:
        queue, sizes = batcher(slow, lanes=1)
        first = asyncio.create_task(queue.submit(marked(0), soon()))
        await asyncio.to_thread(began.wait, 20)
        rest = [asyncio.create_task(queue.submit(marked(i), soon())) for i in range(1, 12)]
        await asyncio.sleep(0)  # they wait
        held.set()
        await asyncio.gather(first, *rest)
        assert sizes == [1, 8, 3]

    asyncio.run(ask())


def test_lanes_share_what_waits_and_only_what_is_alone_takes_all_of_them() -> None:
    meet = threading.Barrier(3, timeout=20)
    narrow, alone = [], []

    def one_lane(images: Images) -> NDArray[np.float32]:
        narrow.append(len(images))
        meet.wait()  # passes only when all three lanes compute at once
        return tag(images)

    def all_lanes(images: Images) -> NDArray[np.float32]:
        alone.append(len(images))
        return tag(images)

    async def ask() -> None:
        queue, _ = batcher(one_lane, lanes=3, wide=all_lanes)
        await queue.submit(marked(1), soon())
        await asyncio.gather(*(queue.submit(marked(i), soon()) for i in range(9)))
        await queue.submit(marked(1, 2), soon())

    asyncio.run(ask())
    assert narrow == [3, 3, 3]
    assert alone == [1, 2]


@pytest.mark.parametrize("lanes", [0, 1, 3])
def test_a_batch_that_fails_is_computed_one_by_one_so_that_only_the_guilty_fail(lanes: int) -> None:
    def refuse_seven(images: Images) -> NDArray[np.float32]:
        if 7 in images:
            raise RuntimeError("seven")
        return tag(images)

    async def ask() -> None:
        queue, _ = batcher(refuse_seven, lanes=lanes)
        answers = await asyncio.gather(*(queue.submit(marked(i), soon()) for i in range(16)), return_exceptions=True)
        assert [i for i, answer in enumerate(answers) if isinstance(answer, Exception)] == [7]
        assert (await queue.submit(marked(3), soon())).item() == 3

    asyncio.run(ask())


def test_a_full_queue_refuses_and_takes_again_when_there_is_room() -> None:
    async def ask() -> None:
        queue, _ = batcher(limit=2, capacity=4)
        tasks = [asyncio.create_task(queue.submit(marked(i), soon())) for i in range(7)]
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, ProblemError)]
        assert {(one.status, one.headers["Retry-After"]) for one in refused} == {(429, "1")}
        assert len(refused) == 3
        assert (await queue.submit(marked(9), soon())).item() == 9

    asyncio.run(ask())


def test_what_is_too_late_is_not_computed() -> None:
    async def ask() -> None:
        queue, sizes = batcher()
        late = queue.submit(marked(1), time.monotonic() - 1)
        answers = await asyncio.gather(late, queue.submit(marked(2), soon()), return_exceptions=True)
        assert isinstance(answers[0], ProblemError)
        assert answers[0].status == 504
        assert sizes == [1]

    asyncio.run(ask())


def test_whoever_has_gone_is_not_computed_for() -> None:
    async def ask() -> None:
        queue, sizes = batcher()
        gone = asyncio.ensure_future(queue.submit(marked(1), soon()))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        await queue.submit(marked(2), soon())
        assert sum(sizes) <= 2
        assert queue.waiting == 0

    asyncio.run(ask())


def test_the_batch_grows_as_long_as_it_stays_within_its_time() -> None:
    now = 0.0

    def linear(images: Images) -> NDArray[np.float32]:
        nonlocal now
        now += 0.002 * len(images)
        return tag(images)

    size, single = fitting(linear, marked(0), 0.03, 64, lambda: now)
    assert single == pytest.approx(0.002)
    assert size == 8
    assert fitting(linear, marked(0), 1.0, 64, lambda: now)[0] == 64
    assert fitting(linear, marked(0), 0.0, 64, lambda: now)[0] == 1


def _count_up(file: Path, cell: int, times: int) -> None:
    board = Board(4, file)
    for _ in range(times):
        board.cells[cell] += 1


def test_processes_count_together_and_the_next_in_a_place_counts_on(tmp_path: Path) -> None:
    for _ in range(2):
        for i in range(3):
            _count_up(tmp_path / f"{i}.board", i, 1000)
    assert Board(4, tmp_path / "0.board").totals() == [2000, 2000, 2000, 0]


def test_a_board_of_another_size_begins_anew(tmp_path: Path) -> None:
    _count_up(tmp_path / "1.board", 0, 5)
    assert Board(9, tmp_path / "1.board").totals() == [0] * 9


def test_the_metrics_of_two_workers_are_told_as_one(tmp_path: Path) -> None:
    one, two = (Metrics(["a", "b"], tmp_path / f"{i}.board") for i in (1, 2))
    for metrics in (one, two, two):
        metrics.answered("/predict", 200, 0.004)
        metrics.took("inference", 0.001)
        metrics.batch(4, 2)
    for metrics in (one, two):
        text = metrics.text().decode()
        assert 'http_requests_total{route="/predict",status="200"} 3.0' in text
        assert 'http_request_duration_seconds_bucket{le="0.005",route="/predict"} 3.0' in text
        assert 'http_request_duration_seconds_bucket{le="0.0025",route="/predict"} 0.0' in text
        assert 'serving_stage_seconds_count{stage="inference"} 3.0' in text
        assert "serving_batch_size_sum 12.0" in text
        assert "serving_queue_images 4.0" in text


def test_a_status_that_nobody_expects_is_counted_too() -> None:
    metrics = Metrics(["a"])
    metrics.answered("/predict", 418, 0.001)
    assert 'http_requests_total{route="/predict",status="other"} 1.0' in metrics.text().decode()
