"""card.json: what a model takes, what it answers, and from which data and params it was trained."""

from dataclasses import dataclass, field

from src.core.records import Record
from src.core.shape import Spec


@dataclass(frozen=True, kw_only=True)
class Trained(Record):
    """What the card says of a model whatever its examples are: judging reads nothing else of it."""

    network: str
    model_sha256: str
    width: int = 1
    epoch: int | None = None
    epochs: int | None = None
    seed: int | None = None
    parameters: int | None = None
    flops: int | None = None
    manifest_sha256: str | None = None
    weights_sha256: str | None = None
    start_weights_sha256: str | None = None
    torch: str = ""
    temperature: float | None = None
    validation: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Card(Trained):
    """The card beside a model. Classes are in the order of the probabilities; equal trainings have equal cards."""

    classes: list[str]
    spec: Spec
    tta: str = "none"
