"""What is different between main and this pull request: pure functions over what both left behind."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from src.core.metrics_file import ClassScores, SliceScores

Scored = ClassScores | SliceScores
_STATE = ["path", "row", "digest", "label", "split"]


class Change(NamedTuple):
    """One named value on both sides; None where a side does not have it."""

    name: str
    main: Any
    this: Any


class Share(NamedTuple):
    """The share of right answers of a class or slice on both sides, in 0..1; None where a side does not have it."""

    name: str
    main: float | None
    this: float | None
    examples: int

    @property
    def is_compared(self) -> bool:
        """True where both sides have it."""
        return self.main is not None and self.this is not None

    @property
    def difference(self) -> float:
        """How much better it got; 0 where one side is missing."""
        return 0.0 if self.main is None or self.this is None else self.this - self.main


class Rows(NamedTuple):
    """The examples that differ, by content. Each frame has path, row, label and split; two-sided ones also *_main."""

    main: int
    this: int
    added: pd.DataFrame
    removed: pd.DataFrame
    relabelled: pd.DataFrame
    moved: pd.DataFrame


def values(main: Mapping[str, Any], this: Mapping[str, Any]) -> list[Change]:
    """Return the keys whose value differs, those of `this` in its order first, then those only main has."""
    keys = [*this, *(key for key in main if key not in this)]
    return [Change(key, main.get(key), this.get(key)) for key in keys if main.get(key) != this.get(key)]


def rows(main: pa.Table, this: pa.Table) -> Rows:
    """Compare two manifests by the digest of each example; copies of one count once, faulty files not at all."""
    then, now = (_by_digest(table) for table in (main, this))
    both = now.merge(then, left_index=True, right_index=True, suffixes=("", "_main"))
    same = _text(both["label"]) == _text(both["label_main"])
    stayed = _text(both["split"]) == _text(both["split_main"])
    return Rows(
        main=len(main),
        this=len(this),
        added=now[~now.index.isin(then.index)],
        removed=then[~then.index.isin(now.index)],
        relabelled=both[~same],
        moved=both[same & ~stayed],
    )


def same_examples(main: pa.Table | None, this: pa.Table | None, split: str) -> int:
    """Return how many examples a split has where it holds the same, with the same labels, on both sides; else 0."""
    if main is None or this is None:
        return 0
    then, now = (_by_digest(table) for table in (main, this))
    then, now = (frame[frame["split"] == split].sort_index()[["label"]] for frame in (then, now))
    return len(now) if now.equals(then) else 0


def _by_digest(table: pa.Table) -> pd.DataFrame:
    frame = table.select(_STATE).to_pandas()
    frame = frame[frame["digest"].notna()]
    # of several copies the one that is kept in a split stands for all
    order = np.argsort(frame["split"].isna().to_numpy(), kind="stable")
    kept: pd.DataFrame = frame.iloc[order].drop_duplicates("digest").sort_index().set_index("digest")
    return kept


def _text(column: Any) -> Any:
    return column.astype("object").where(column.notna(), "")


def balance(main: pa.Table, this: pa.Table) -> list[Change]:
    """Return the examples of each class that are in a split, on both sides, the largest change of share first."""
    then, now = (_counts(table) for table in (main, this))
    names = [*now, *(name for name in then if name not in now)]
    sizes = [max(1, sum(counts.values())) for counts in (then, now)]
    changed = [Change(name, then.get(name, 0), now.get(name, 0)) for name in names]
    return sorted(changed, key=lambda row: -abs(row.this / sizes[1] - row.main / sizes[0]))


def _counts(table: pa.Table) -> dict[str, int]:
    labels = table.filter(table.column("split").is_valid()).column("label").to_pandas()
    return {str(name): int(count) for name, count in labels.value_counts(sort=False).sort_index().items()}


def shares(main: Mapping[str, Scored], this: Mapping[str, Scored], number: str) -> list[Share]:
    """Return `number` of each class or slice, the largest fall first, then the largest rise, then those that stayed.

    Args:
        main: name to numbers, such as `per_class` or `slices` of a metrics.json; empty where there is no main.
        this: likewise.
        number: which of the numbers, `recall` or `accuracy`.
    """
    found = []
    for name in [*this, *(name for name in main if name not in this)]:
        sides = [side.get(name) for side in (main, this)]
        then, now = (getattr(side, number) if side and side.examples else None for side in sides)
        found.append(Share(name, then, now, next(side.examples for side in reversed(sides) if side)))
    return sorted(found, key=lambda share: (share.difference >= 0, -abs(share.difference)))


def confusion(main: pd.DataFrame, this: pd.DataFrame, order: list[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Count what each model made of each class.

    Returns:
        The names, and counts of shape (2, classes, classes): main and this, rows true labels, columns predictions.
    """
    known = dict.fromkeys(order)
    for frame in (this, main):
        known |= dict.fromkeys([*frame["label"].unique(), *frame["prediction"].unique()])
    names = list(known)
    place = {name: i for i, name in enumerate(names)}
    counts = np.zeros((2, len(names), len(names)), dtype=np.int64)
    for side, frame in enumerate((main, this)):
        np.add.at(counts[side], (frame["label"].map(place).to_numpy(), frame["prediction"].map(place).to_numpy()), 1)
    return names, counts


def answers(main: pd.DataFrame, this: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Return the index of what is newly wrong and newly right, the most confident first; None where the examples differ."""
    if len(main) != len(this) or not (main["digest"].to_numpy() == this["digest"].to_numpy()).all():
        return None
    then, now = ((frame["prediction"] == frame["label"]).to_numpy() for frame in (main, this))
    sure = this["confidence"].to_numpy()
    wrong, right = np.flatnonzero(then & ~now), np.flatnonzero(~then & now)
    ordered = (rows[np.argsort(-sure[rows], kind="stable")] for rows in (wrong, right))
    wrong, right = (this.index.to_numpy()[rows] for rows in ordered)
    return wrong, right


def overall(predictions: pd.DataFrame, bins: int) -> dict[str, float]:
    """Return accuracy, macro F1, log loss and calibration error of some predictions; empty where there are none."""
    if predictions.empty:
        return {}
    curve, labels = reliability(predictions, bins), predictions["label"]
    macro = f1_score(labels, predictions["prediction"], labels=labels.unique(), average="macro", zero_division=0)
    return {
        "accuracy": float((predictions["prediction"] == labels).mean()),
        "macro_f1": float(macro),
        "log_loss": float(predictions["log_loss"].mean()),
        "ece": sum(row["examples"] * abs(row["confidence"] - row["accuracy"]) for row in curve) / len(predictions),
    }


def reliability(predictions: pd.DataFrame, bins: int) -> list[dict[str, float]]:
    """Return mean confidence, accuracy and examples of each bin of confidence that holds any.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017): the reliability diagram.
    """
    sure = predictions["confidence"].to_numpy(dtype=float)
    right = (predictions["prediction"] == predictions["label"]).to_numpy()
    places = np.minimum((sure * bins).astype(int), bins - 1)
    return [
        {"confidence": sure[mine].mean(), "accuracy": right[mine].mean(), "examples": int(mine.sum())}
        for mine in (places == place for place in np.unique(places))
    ]
