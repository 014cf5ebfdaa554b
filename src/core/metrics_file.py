"""metrics.json: the numbers of a model on the test split, which Git keeps."""

from dataclasses import dataclass, field
from typing import Any

from src.core.records import Record


@dataclass(frozen=True, kw_only=True)
class Scores(Record):
    """The four numbers that a lineage and a release repeat, with the interval of accuracy."""

    accuracy: float
    macro_f1: float
    log_loss: float
    ece: float
    accuracy_low: float | None = None
    accuracy_high: float | None = None

    def headline(self) -> dict[str, float]:
        """Return the four numbers by their names."""
        return {name: getattr(self, name) for name in ("accuracy", "macro_f1", "log_loss", "ece")}


@dataclass(frozen=True, kw_only=True)
class Baseline(Record):
    """The logistic regression; `margin` is the model's accuracy less its own."""

    accuracy: float
    margin: float
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    macro_f1: float | None = None
    log_loss: float | None = None
    ece: float | None = None


@dataclass(frozen=True, kw_only=True)
class ClassScores(Record):
    """One class, over so many test examples of it."""

    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    examples: int = 0


@dataclass(frozen=True, kw_only=True)
class SliceScores(Record):
    """One slice of the test split: accuracy with its interval, over so many examples."""

    accuracy: float
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    examples: int = 0


@dataclass(frozen=True, kw_only=True)
class SpreadOf(Record):
    """Mean of several trainings, their standard deviation, and the interval of the mean."""

    mean: float
    deviation: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Run(Record):
    """One training of several: its numbers on `examples` that it did not see, after learning from `training_examples`."""

    name: str = ""
    seed: int
    epoch: int | None = None
    accuracy: float
    macro_f1: float
    log_loss: float
    ece: float
    examples: int
    training_examples: int


@dataclass(frozen=True, kw_only=True)
class Series(Record):
    """Several trainings of one recipe, folds or seeds: their spread and each run, numbered from 1.

    `overlap` is held-out over training examples for folds, 0 for seeds; the digest is of what was scored.
    """

    accuracy: SpreadOf
    macro_f1: SpreadOf
    log_loss: SpreadOf
    ece: SpreadOf
    overlap: float
    runs: dict[str, Run]
    split_sha256: str


@dataclass(frozen=True, kw_only=True)
class MetricsFile(Scores):
    """What evaluate writes; `folds` and `repeats` are there where several models were trained."""

    examples: int = 0
    per_class: dict[str, ClassScores] = field(default_factory=dict)
    slices: dict[str, SliceScores] = field(default_factory=dict)
    baseline: Baseline | None = None
    model_bytes: int | None = None
    parity: float | None = None
    folds: Series | None = None
    repeats: Series | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; what was not measured is left out."""
        return {name: value for name, value in super().to_json().items() if value is not None}
