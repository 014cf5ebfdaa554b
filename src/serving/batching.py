"""Images wait here for the model: what has come while it computed is its next batch. Nothing ever waits for company.

So a lone request at an idle server is computed at once, and under load batches grow by themselves, up to what fits into
the time that one batch may take. Dynamic batching by a timer would delay the lone request and gain nothing for the others.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from src.serving.problems import RETRY, ProblemError, late

Images = NDArray[np.uint8]
Probabilities = NDArray[np.float32]
Compute = Callable[[Images], Probabilities]


class _Item(NamedTuple):
    """Images of one request, at most one batch of them, and who waits for their probabilities until when."""

    images: Images
    answer: "asyncio.Future[Probabilities]"
    since: float
    deadline: float


class Observed(NamedTuple):
    """What one batch took: its images, the seconds to compute them, and the seconds that the first of them had waited."""

    images: Images
    seconds: float
    waited: float


_Result = tuple[list[Probabilities | Exception], Observed | None]


class Batcher:
    """The queue of one process, used from its event loop only."""

    def __init__(
        self,
        compute: Compute,
        limit: int,
        capacity: int,
        observe: Callable[[Observed], None],
        lanes: int = 0,
        wide: Compute | None = None,
    ) -> None:
        """Prepare an empty queue.

        Args:
            compute: gives probabilities, float32 (n, classes), for images, uint8 (n, height, width, channels).
            limit: images of one batch.
            capacity: images that may wait.
            observe: told of every batch.
            lanes: batches that are computed at once, each in a thread; 0: one after the other, right in the event loop, for
                a model that takes less time than the way into a thread and back.
            wide: computes the same on the processors of all lanes: for a batch that is alone here. A lone image is answered
                soonest so; many are when each lane has its own, for no thread waits for another then.
        """
        self._compute, self._limit, self._capacity, self._observe = compute, limit, capacity, observe
        self._lanes, self._wide = lanes, wide
        self._threads = ThreadPoolExecutor(lanes, thread_name_prefix="infer") if lanes else None
        self._items: deque[_Item] = deque()
        self._taken = 0  # lanes
        self._scheduled = False
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
            raise ProblemError(429, f"{self.waiting} images wait already: try again in a second", RETRY)
        if len(images) <= self._limit:
            return await self._enqueue(images, deadline)
        pieces = [images[start : start + self._limit] for start in range(0, len(images), self._limit)]
        return np.concatenate(await asyncio.gather(*(self._enqueue(piece, deadline) for piece in pieces)))

    def _enqueue(self, images: Images, deadline: float) -> "asyncio.Future[Probabilities]":
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Probabilities] = loop.create_future()
        self._items.append(_Item(images, answer, time.monotonic(), deadline))
        self.waiting += len(images)
        self._schedule(loop)
        return answer

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._next, loop)  # after the requests that came in the same turn of the loop

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Compute what waits, as far as there are lanes for it."""
        self._scheduled = False
        if self._threads is None:
            if batch := self._take(self._limit):
                self._answer(batch, self._run(batch, self._compute))
            if self._items:
                self._schedule(loop)
            return
        while self._taken < self._lanes:
            share = -(-self.waiting // (self._lanes - self._taken))  # so that the other lanes get some too
            if not (batch := self._take(min(self._limit, share))):
                return
            self._begin(loop, batch, self._threads)

    def _begin(self, loop: asyncio.AbstractEventLoop, batch: list[_Item], threads: ThreadPoolExecutor) -> None:
        alone = self._taken == 0 and not self._items
        compute, lanes = (self._wide, self._lanes) if alone and self._wide else (self._compute, 1)
        self._taken += lanes

        def computed(result: _Result) -> None:
            self._taken -= lanes
            self._answer(batch, result)
            self._schedule(loop)

        threads.submit(self._run, batch, compute).add_done_callback(
            lambda done: loop.call_soon_threadsafe(computed, done.result())
        )

    def _take(self, most: int) -> list[_Item]:
        """Take a batch of so many images out of the queue, without those for whose answer nobody waits any more."""
        batch: list[_Item] = []
        size, now = 0, time.monotonic()
        while self._items and (not batch or size + len(self._items[0].images) <= most):
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

    def _run(self, batch: list[_Item], compute: Compute) -> _Result:
        """Compute a batch; where that fails, each item by itself, so that none pays for another."""
        began = time.monotonic()
        images = batch[0].images if len(batch) == 1 else np.concatenate([item.images for item in batch])
        try:
            probabilities = compute(images)
        except Exception as error:  # whatever it is, who waits is told
            if len(batch) == 1:
                return [error], None
            return [self._run([item], compute)[0][0] for item in batch], None
        observed = Observed(images, time.monotonic() - began, began - batch[0].since)
        if len(batch) == 1:
            return [probabilities], observed
        ends = list(accumulate(len(item.images) for item in batch))
        return [probabilities[end - len(item.images) : end] for item, end in zip(batch, ends, strict=True)], observed

    def _answer(self, batch: list[_Item], result: _Result) -> None:
        results, observed = result
        if observed:
            self._observe(observed)
        for item, given in zip(batch, results, strict=True):
            if item.answer.done():
                continue
            if isinstance(given, Exception):
                item.answer.set_exception(given)
            else:
                item.answer.set_result(given)
