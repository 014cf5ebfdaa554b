"""How fast a run trains and what holds it up: images/s, time waiting for data, FLOP/s utilisation, memory, energy."""

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch

from src.files import rounded
from src.training.world import World

T = TypeVar("T")


class Meter:
    """Listens to the epochs of one run. Nothing in it makes the device wait."""

    def __init__(self, device: torch.device, training_flops: int, bf16: bool, world: World) -> None:
        """Start measuring.

        Args:
            device: where the run computes.
            training_flops: floating-point operations of one image, forwards and backwards.
            bf16: the precision of the run.
            world: the processes that train together; images and operations are those of all of them.
        """
        self._device, self._flops, self._bf16, self._world = device, training_flops, bf16, world
        self._waited = 0.0
        self._started = time.perf_counter()
        self.rows: list[dict[str, Any]] = []

    def begin(self) -> None:
        """An epoch's training steps begin."""
        self._waited, self._started = 0.0, time.perf_counter()

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass batches on, and count how long each was waited for."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self._waited += time.perf_counter() - asked
            yield batch

    def end(self, epoch: int, images: int) -> dict[str, Any]:
        """The epoch's steps have ended on the device too: return and keep its row."""
        seconds = time.perf_counter() - self._started
        row = {
            "epoch": epoch,
            "seconds": rounded(seconds, 4),
            "images_per_second": rounded(images / seconds, 1),
            "data_wait_share": rounded(self._waited / seconds, 5),
        }
        self.rows.append(row)
        return row

    def summary(self) -> dict[str, Any]:
        """Return what the whole run amounts to."""
        return {"rows": len(self.rows)}
