"""A network on trial: what it is tried with, a short training that is watched, and what a check has to say."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.training.classifier import Classifier

EARLY = 10  # steps in which every parameter must have had a gradient
ENOUGH = 100  # steps after which a loss that has not halved is a fault
LEARNT = 0.1  # a loss that counts as none: 90 % sure of the right class of every image
REPEATED = 3  # steps that a second training takes
BATCHES = (1, 2, 7)  # one, two and an odd number of images
_RATE = 0.003  # of AdamW, the same for all networks: what is asked is the wiring, not the recipe


class Finding(NamedTuple):
    """What one check found; `advice` is for what is not ok. "not shown": too few steps to tell."""

    check: str
    result: Literal["ok", "warn", "not shown", "FAIL"]
    told: str
    advice: str = ""


@dataclass(frozen=True)
class Subject:
    """A network and what it is tried with. `build` returns it with fresh weights, the same ones each time.

    `images` are uint8 (n, channels, height, width), and `labels` int64 (n,), on `device`.
    """

    build: Callable[[], Classifier]
    images: Tensor
    labels: Tensor
    classes: list[str]
    device: torch.device
    bf16: bool

    def autocast(self) -> torch.autocast:
        """Return the context that training computes in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


@dataclass
class Lesson:
    """What a short training on the subject's images showed."""

    classifier: Classifier
    losses: list[float] = field(default_factory=list)
    accuracy: float = 0.0  # of the last step, in training mode
    gradients: dict[str, float] = field(default_factory=dict)  # the largest of each parameter; NaN where one was not finite
    ratios: dict[str, float] = field(default_factory=dict)  # update over weight, by norm, after the early steps


def learn(subject: Subject, steps: int) -> Lesson:
    """Train on the same images, unaugmented, until there is hardly a loss, or the steps run out."""
    lesson = Lesson(subject.build())
    classifier = lesson.classifier
    learning = {name: value for name, value in classifier.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(learning.values(), lr=_RATE, weight_decay=0.0)
    torch.manual_seed(0)
    for step in range(steps):
        with subject.autocast():
            logits = classifier(subject.images).float()
        loss = F.cross_entropy(logits, subject.labels)
        optimizer.zero_grad(set_to_none=True)
        if not loss.requires_grad:
            break
        loss.backward()  # type: ignore[no-untyped-call]
        lesson.losses.append(loss.item())
        lesson.accuracy = (logits.argmax(dim=1) == subject.labels).float().mean().item()
        if step < EARLY:
            _note(lesson, learning)
        before = {name: value.detach().clone() for name, value in learning.items()} if step == EARLY - 1 else {}
        optimizer.step()
        for name, value in before.items():
            change, size = (value - learning[name].detach()).norm(), value.norm()
            lesson.ratios[name] = (change / size).item() if size else math.inf
        settled = step >= EARLY and max(lesson.losses[-3:]) < LEARNT / 2
        if settled or not math.isfinite(lesson.losses[-1]):
            break
    return lesson


def _note(lesson: Lesson, learning: dict[str, nn.Parameter]) -> None:
    """Remember the largest gradient that each parameter has had."""
    for name, value in learning.items():
        if value.grad is not None:
            largest = value.grad.abs().max().item()
            known = lesson.gradients.get(name, 0.0)
            lesson.gradients[name] = math.nan if not math.isfinite(largest) else max(known, largest)


@contextmanager
def watched(classifier: Classifier, see: Callable[[str, Any, Any], object]) -> Iterator[None]:
    """Call `see` with name, input and output of each layer without layers of its own, as it answers."""
    handles = [
        part.register_forward_hook(lambda _, given, out, name=name: see(plain(name), given, out) and None)
        for name, part in classifier.named_modules()
        if not list(part.children())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def some(subject: Subject, n: int) -> Tensor:
    return subject.images[torch.arange(n) % len(subject.images)]


def is_finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or not value.is_floating_point() or bool(torch.isfinite(value).all())


def is_zero(value: Any) -> bool:
    return isinstance(value, Tensor) and not bool(value.any())


def plain(name: str) -> str:
    return name.removeprefix("network.")


def listed(names: Sequence[str]) -> str:
    rest = len(names) - 4
    return ", ".join(map(plain, names[:4])) + (f" and {rest} more" if rest > 0 else "")


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
