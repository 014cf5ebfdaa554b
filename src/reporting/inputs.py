"""What this pull request changed of the data that go into a model."""

from typing import Any

import pandas as pd
import pyarrow as pa

from src.core import reference
from src.reporting import changes, words

_FIRST = 10
_MAJOR = 0.25  # a population stability index over it is a major shift: Siddiqi, Credit Risk Scorecards (2006)
_MINOR = 0.1


def compared(main: pa.Table | None, this: pa.Table | None) -> dict[str, Any] | None:
    """Return what the template `data` shows of two manifests; None where there are not both."""
    if main is None or this is None:
        return None
    rows, balance = changes.rows(main, this), changes.balance(main, this)
    in_splits = all(side.column("split").null_count < len(side) for side in (main, this))
    drift = reference.drift(this, reference.summarize(main)) if in_splits else {}
    moved = any(row.main != row.this for row in balance)
    sizes = [max(1, sum(side)) for side in zip(*((row.main, row.this) for row in balance), strict=True)]
    return {
        "main": rows.main,
        "this": rows.this,
        "same": not any(map(len, rows[2:])) and not moved and rows.main == rows.this,
        "changed": {
            "added, by content": _sample(rows.added, label="label", split="split"),
            "removed, by content": _sample(rows.removed, label="label", split="split"),
            "relabelled": _sample(rows.relabelled, **{"label, main": "label_main", "label, this": "label"}),
            "moved to another split": _sample(rows.moved, **{"split, main": "split_main", "split, this": "split"}),
        },
        "balance": [
            (row.name, f"{row.main:,}", f"{row.this:,}", words.signed(row.this - row.main, 0),
             words.points(row.this / sizes[1] - row.main / sizes[0]))
            for row in balance if moved
        ],
        "drift": [(name, value, _shift(value)) for name, value in sorted(drift.items(), key=lambda pair: -pair[1])],
    }  # fmt: skip


def _sample(frame: pd.DataFrame, **columns: str) -> dict[str, Any]:
    """Return the first examples, each with what stands in these columns of it; None is an example in no split."""
    first = [
        (words.place(str(path), int(row)), [cell if isinstance(cell, str) else None for cell in cells])
        for path, row, *cells in frame[["path", "row", *columns.values()]].head(_FIRST).to_numpy()
    ]
    return {"total": len(frame), "columns": [*columns], "first": first}


def _shift(value: float) -> str:
    return "major shift" if value > _MAJOR else "some shift" if value > _MINOR else ""
