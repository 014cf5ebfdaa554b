"""Muon: steps whose matrices are orthogonal, so that no direction of a layer learns much faster than another.

Sources: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the iteration is that of
Bernstein and Newhouse, "Old optimizer, new norm" (2024), with the coefficients of the former.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steepest at zero: singular values end between 0.7 and 1.2, not at 1
_ITERATIONS = 3


def orthogonal(matrix: Tensor, iterations: int = _ITERATIONS) -> Tensor:
    """Return about the nearest matrix whose singular values are 1, by Newton-Schulz iteration in bf16.

    Args:
        matrix: (rows, columns), any scale but zero.
        iterations: each brings the smaller singular values nearer to 1; 5 where they must arrive.
    """
    a, b, c = _COEFFICIENTS
    x: Tensor = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(iterations):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    result: Tensor = x.T if tall else x
    return result.to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, Nesterov's way; groups with `orthogonal` set take orthogonal steps, the others plain ones.

    An orthogonal group keeps the norm of each weight as it was at the first step: before a norm layer the length of a
    filter changes nothing but how far a step turns it. So weight decay is for the plain groups alone.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": 0.9, "weight_decay": 0.0, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step from the gradients; those of several processes must have been averaged before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            learning: list[Tensor] = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not learning:
                continue
            gradients: list[Tensor] = [parameter.grad for parameter in learning if parameter.grad is not None]
            if group["weight_decay"] and not group["orthogonal"]:
                gradients = list(torch._foreach_add(gradients, learning, alpha=group["weight_decay"]))  # noqa: SLF001
            steps = self._momentum(learning, gradients, group)
            if group["orthogonal"]:
                for parameter, step in zip(learning, steps, strict=True):
                    length = parameter.norm()
                    parameter.mul_(self.state[parameter].setdefault("norm", length) / length.clamp(min=1e-12))
                    parameter.sub_(orthogonal(step.flatten(1)).view_as(parameter) * group["lr"])
            else:
                torch._foreach_add_(learning, steps, alpha=-group["lr"])
        return loss

    def _momentum(self, learning: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        for parameter in learning:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum"] for parameter in learning]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        return list(torch._foreach_add(gradients, buffers, alpha=group["momentum"]))  # noqa: SLF001
