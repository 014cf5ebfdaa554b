"""The processes that train one model together, started by torchrun; alone, a world of one that costs nothing."""

import os
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """The place of this process among those that train one model: rank 0 alone writes."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def writes(self) -> bool:
        """True for the one process that writes files, talks to MLflow and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        return values

    def share(self, value: Any) -> Any:
        """Return rank 0's value on every process (tensors on the CPU and plain values)."""
        return value

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module that averages its gradients over all processes."""
        return module


def joined() -> World:
    """Return the world that torchrun's variables describe."""
    return World(
        int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    )
