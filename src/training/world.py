"""The processes that train one model together over torch.distributed; alone, a world of one that costs nothing.

with joined() as world:
    fit(task, params, checkpoints, world=world)
"""

import ctypes
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from src.core.command import UserError

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
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


def several() -> bool:
    """Return whether torchrun has started this process."""
    return "RANK" in os.environ


def become_torchrun(processes: int, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by torchrun with so many processes of this machine, each `python -m src arguments`."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "src", *arguments]
    os.execv(sys.executable, [sys.executable, *command])  # noqa: S606 - no shell is wanted


@contextmanager
def joined() -> Iterator[World]:
    """Enter the world that torchrun's variables describe, and leave it; without them, a world of one.

    Rank 0 alone prints. A fault that all ranks meet is told by rank 0; the others end without a word.

    Raises:
        UserError: another process was lost, and the run with it.
    """
    if not several():
        yield World()
        return
    if sys.platform == "linux":  # end when torchrun is killed: an orphan would train on in secret. Source: prctl(2)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    rank, size, local_rank, local_size = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_rank < gpus:
        torch.cuda.set_device(local_rank)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(sys.stdout if rank == 0 else nowhere):
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=_TIMEOUT)
        try:
            yield World(rank, size, local_rank, local_size)
        except UserError:
            if rank:
                sys.exit(1)
            raise
        except (dist.DistError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "/gloo/" not in str(error) and not isinstance(error, dist.DistError):
                raise
            raise UserError(
                "another process of this training was lost, and the run with it; its last checkpoint is kept. Run the same "
                "command again, and training goes on from there"
            ) from None
        dist.destroy_process_group()  # after a failure it could wait for who is lost
