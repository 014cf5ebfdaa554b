"""The processes that train one model together over torch.distributed; alone, a world of one that costs nothing.

with joined() as world:
    fit(task, params, checkpoints, world=world)
"""

import atexit
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, TCPStore, rendezvous  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from src.core.command import Stopped, UserError

LIFELINE = "TRAIN_LIFELINE"  # set by launch.py, whose end closes the standard input of the processes that it started
LOST = os.EX_TEMPFAIL  # exit status of a process that could not go on without another one
TOLD = "told"  # key of the store: how many processes had something to say about the end
_SENTENCES = (UserError, OSError, Stopped, KeyboardInterrupt)  # what src/system/command_line.py ends a command with
_STATUS: dict[type[BaseException], int] = {KeyboardInterrupt: 128 + signal.SIGINT, Stopped: 128 + signal.SIGTERM}
_TIMEOUT = timedelta(minutes=10)  # what one process may do alone, such as saving, while the others wait for it
_FEW = 32  # images a process normalises over; with fewer, batch norm errs more. Source: Wu and He, "Group Normalization"


@dataclass(frozen=True)
class World:
    """The place of this process among those that train one model: rank 0 alone writes."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1  # processes on this machine, which share its cores

    @property
    def writes(self) -> bool:
        """True for the one process that writes files, talks to MLflow and prints."""
        return self.rank == 0

    def headline(self, batch_size: int) -> str:
        """Say how a batch is divided, and warn where batch norm sees too little of it."""
        share = batch_size // self.size
        advice = f"; batch norm sees few: train.batch_size {_FEW * self.size} would be steadier" if share < _FEW else ""
        return f"{self.size} processes, {share} images of each batch in each{advice}"

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes; bit for bit the same on each."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def share(self, value: Any) -> Any:
        """Return rank 0's value on every process (tensors on the CPU and plain values; no code is unpickled)."""
        if self.size == 1:
            return value
        content = io.BytesIO()
        if self.writes:
            torch.save(value, content)
        length = torch.tensor([content.tell()])
        dist.broadcast(length, 0)
        raw = torch.empty(int(length), dtype=torch.uint8)
        if self.writes:
            raw = torch.frombuffer(content.getbuffer(), dtype=torch.uint8)
        dist.broadcast(raw, 0)
        return value if self.writes else torch.load(io.BytesIO(raw.numpy().data), map_location="cpu", weights_only=True)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module that averages its gradients over all processes, and begins with rank 0's weights on each."""
        if self.size == 1:
            return module
        device = next(module.parameters()).device
        return DistributedDataParallel(
            module,
            device_ids=[device] if device.type == "cuda" else None,
            forward_sync_buffers=False,  # `level` gives them their mean, once an epoch
            gradient_as_bucket_view=True,
        )

    @torch.no_grad()
    def level(self, *modules: nn.Module) -> None:
        """Give the floating-point buffers, such as batch norm's statistics, their mean over all processes.

        The sum is taken in float64, so that a buffer which is equal everywhere stays as it is to the last bit.
        """
        buffers = {id(buffer): buffer for module in modules for buffer in module.buffers() if buffer.is_floating_point()}
        if self.size == 1 or not buffers:
            return
        mean = self.sum(torch.cat([buffer.double().flatten() for buffer in buffers.values()])) / self.size
        parts = torch.split(mean, [buffer.numel() for buffer in buffers.values()])
        for buffer, part in zip(buffers.values(), parts, strict=True):
            buffer.copy_(part.view_as(buffer))


@contextmanager
def joined() -> Iterator[World]:
    """Enter the world that torchrun's variables (or launch.py's) describe, and leave it; without them, a world of one.

    However it ends, one process says so, the first that has something to say; the others exit in silence.

    Raises:
        UserError: another process was lost, and the run with it.
    """
    rank, size, local_rank, local_size = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
    )
    if size == 1:
        yield World()
        return
    if LIFELINE in os.environ:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_rank < gpus:
        torch.cuda.set_device(local_rank)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(sys.stdout if rank == 0 else nowhere):
        store = _store()
        with _one_voice(store, local_rank):
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if gpus else "gloo",
                store=PrefixStore("group", store),
                rank=rank,
                world_size=size,
                timeout=_TIMEOUT,
            )
            yield World(rank, size, local_rank, local_size)
            dist.destroy_process_group()  # after a failure it could wait for who is lost


def _store() -> Store:
    """Connect to where the processes find each other: launch.py holds it, or torchrun."""
    if LIFELINE in os.environ:
        return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    store: Store
    store, *_ = next(rendezvous("env://", timeout=_TIMEOUT))
    return store


@contextmanager
def _one_voice(store: Store, local_rank: int) -> Iterator[None]:
    """Let the first process that fails say why, and the others exit without a word; a bug keeps its traceback."""
    try:
        yield
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # all is written: no traceback out of the last moments
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # who ends those that are left must not cut the sentence short
        lost, status = _lost(error), _STATUS.get(type(error), 1)
        if lost and LIFELINE in os.environ:  # launch.py knows better who was lost
            _leave(LOST)
        if (lost or isinstance(error, _SENTENCES)) and not _first(store, local_rank):
            _leave(status)
        atexit.register(_leave, status)
        if not lost:
            raise
        raise UserError(
            f"another process of this training was lost ({lost}), and the run with it; its last checkpoint is kept. "
            "Run the same command again, and training goes on from there"
        ) from None


def _lost(error: BaseException) -> str:
    """Return how the connection to another process was lost, where that is what an error says; else nothing."""
    says_so = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))
    return str(error).split("] ", 1)[-1].split(". ")[0].splitlines()[0] if says_so else ""


def _leave(status: int) -> NoReturn:
    """End without the interpreter's last steps, which would wait for the connections to who was lost, or die of them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _first(store: Store, local_rank: int) -> bool:
    """Tell whether no other process has spoken; where the store is lost too, one process of each machine speaks."""
    try:
        return bool(store.add(TOLD, 1) == 1)
    except RuntimeError:
        return local_rank == 0


def _end_with_parent() -> None:
    """End this process, whatever it is at, when the one that started it is gone: an orphan would train on in secret."""
    while os.read(0, 1):
        pass
    os._exit(LOST)
