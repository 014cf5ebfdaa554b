"""Images wait here for the model: what has come while it computed is its next batch. Nothing ever waits for company.

So a lone request at an idle server is computed at once, and under load batches grow by themselves, up to what fits into
the time that one batch may take. Dynamic batching by a timer would delay the lone request and gain nothing for the others.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from src.serving.problems import ProblemError, late

Images = NDArray[np.uint8]
Probabilities = NDArray[np.float32]


class _Item(NamedTuple):
    """Images of one request, at most one batch of them, and who waits for their probabilities until when."""

    images: Images
    answer: "asyncio.Future[Probabilities]"
    since: float
    deadline: float


class Observed(NamedTuple):
    """What one batch took: its images, the seconds to compute them, and the seconds that each item had waited."""

    images: Images
    seconds: float
    waited: list[float]


class Batcher:
    """The queue of one process, used from its event loop only."""

    def __init__(
        self,
        compute: Callable[[Images], Probabilities],
        limit: int,
        capacity: int,
        thread: Executor | None,
        observe: Callable[[Observed], None],
    ) -> None:
        """Prepare an empty queue.

        Args:
            compute: gives probabilities, float32 (n, classes), for images, uint8 (n, height, width, channels).
            limit: images of one batch.
            capacity: images that may wait.
            thread: where batches are computed, one at a time; None: right in the event loop, for a model that takes less
                time than the way into a thread and back.
            observe: told of every batch.
        """
        self._compute, self._limit, self._capacity = compute, limit, capacity
        self._thread, self._observe = thread, observe
        self._items: deque[_Item] = deque()
        self._busy = False  # a batch is being computed, or is about to be
        self.waiting = 0  # images

    async def submit(self, images: Images, deadline: float) -> Probabilities:
        """Return the probabilities of one request's images, float32 (n, classes).

        Args:
            images: uint8 of shape (n, height, width, channels), n at least 1.
            deadline: `time.monotonic()` after which nobody waits for the answer.

        Raises:
            ProblemError: too many images wait already (429), or time is over (504).
        """
        if self.waiting + len(images) > self._capacity and self.waiting:
            sentence = f"{self.waiting} images wait already: try again in a second"
            raise ProblemError(429, sentence, {"Retry-After": "1"})
        if len(images) <= self._limit:
            return await self._enqueue(images, deadline)
        pieces = [images[start : start + self._limit] for start in range(0, len(images), self._limit)]
        return np.concatenate(await asyncio.gather(*(self._enqueue(piece, deadline) for piece in pieces)))

    def _enqueue(self, images: Images, deadline: float) -> "asyncio.Future[Probabilities]":
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Probabilities] = loop.create_future()
        self._items.append(_Item(images, answer, time.monotonic(), deadline))
        self.waiting += len(images)
        if not self._busy:
            self._busy = True
            loop.call_soon(self._next, loop)  # after the requests that came in the same turn of the loop
        return answer

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Compute the next batch, if there is one."""
        batch = self._take()
        if not batch:
            self._busy = False
        elif self._thread is None:
            self._answer(batch, *self._run(batch))
            loop.call_soon(self._next, loop)
        else:
            self._thread.submit(self._run, batch).add_done_callback(
                lambda done: loop.call_soon_threadsafe(self._computed, loop, batch, done.result())
            )

    def _computed(self, loop: asyncio.AbstractEventLoop, batch: list[_Item], result: "_Result") -> None:
        self._answer(batch, *result)
        self._next(loop)

    def _take(self) -> list[_Item]:
        """Take what fits into one batch out of the queue, without those for whose answer nobody waits any more."""
        batch: list[_Item] = []
        size, now = 0, time.monotonic()
        while self._items and size + len(self._items[0].images) <= self._limit:
            item = self._items.popleft()
            self.waiting -= len(item.images)
            if item.answer.done():  # its client has gone
                continue
            if item.deadline < now:
                item.answer.set_exception(late())
                continue
            size += len(item.images)
            batch.append(item)
        return batch

    def _run(self, batch: list[_Item]) -> "_Result":
        """Compute a batch; where that fails, each item by itself, so that none pays for another."""
        began = time.monotonic()
        images = batch[0].images if len(batch) == 1 else np.concatenate([item.images for item in batch])
        try:
            probabilities = self._compute(images)
        except Exception as error:  # whatever it is, who waits is told
            if len(batch) == 1:
                return [error], None
            return [self._run([item])[0][0] for item in batch], None
        observed = Observed(images, time.monotonic() - began, [began - item.since for item in batch])
        if len(batch) == 1:
            return [probabilities], observed
        ends = list(accumulate(len(item.images) for item in batch))
        return [probabilities[end - len(item.images) : end] for item, end in zip(batch, ends, strict=True)], observed

    def _answer(self, batch: list[_Item], results: "list[Probabilities | Exception]", observed: Observed | None) -> None:
        if observed:
            self._observe(observed)
        for item, result in zip(batch, results, strict=True):
            if item.answer.done():
                continue
            if isinstance(result, Exception):
                item.answer.set_exception(result)
            else:
                item.answer.set_result(result)


_Result = tuple[list[Probabilities | Exception], Observed | None]


def fitting(compute: Callable[[Images], Probabilities], example: Images, seconds: float, most: int) -> tuple[int, float]:
    """Measure how many images fit into one batch of so many seconds; return that and the seconds of a single one.

    Args:
        compute: as for `Batcher`.
        example: one image, uint8 of shape (1, height, width, channels).
        seconds: that a batch may take.
        most: images of the largest batch.
    """
    compute(example)  # the first run of a size makes its memory
    single = _time(compute, example)
    size = 1
    while size < most:
        larger = min(2 * size, most)
        images = np.repeat(example, larger, axis=0)
        compute(images)
        if _time(compute, images) > seconds:
            break
        size = larger
    return size, single


def _time(compute: Callable[[Images], Probabilities], images: Images) -> float:
    began = time.perf_counter()
    compute(images)
    return time.perf_counter() - began
