"""metrics.json: the numbers of a model on the test split, which Git keeps."""

from dataclasses import dataclass, field
from typing import Any

from src.core.records import Record


@dataclass(frozen=True, kw_only=True)
class MetricsFile(Record):
    """What evaluate writes; `folds` and `repeats` are there where several models were trained."""

    accuracy: float
    macro_f1: float
    log_loss: float
    ece: float
    examples: int = 0
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    slices: dict[str, dict[str, float]] = field(default_factory=dict)
    baseline: dict[str, float] | None = None
    model_bytes: int | None = None
    parity: float | None = None
    folds: dict[str, Any] | None = None
    repeats: dict[str, Any] | None = None

    def headline(self) -> dict[str, float]:
        """Return the four numbers that a lineage and a release repeat."""
        return {name: getattr(self, name) for name in ("accuracy", "macro_f1", "log_loss", "ece")}
