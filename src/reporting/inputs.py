"""What this pull request changed of what goes into a model: parameters and data."""

from typing import Any

import pandas as pd
import pyarrow as pa

from src.core import reference
from src.reporting import changes, words
from src.reporting.changes import Rows
from src.reporting.document import Block, Code, Fold, Line, Paragraph, Section, Table, table
from src.reporting.facts import Facts
from src.reporting.opening import findings, findings_table

_FIRST = 10
_FOLDED = 40
_MAJOR = 0.25  # a population stability index over it is a major shift: Siddiqi, Credit Risk Scorecards (2006)
_MINOR = 0.1


def sections(facts: Facts) -> list[Section]:
    """Return parameters and data; each says so where nothing changed, and nothing where there is no main."""
    return [*_params(facts), *_data(facts)]


def _params(facts: Facts) -> list[Section]:
    if not facts.main.params or not facts.this.params:
        return []
    changed = changes.values(facts.main.params, facts.this.params)
    if not changed:
        return [Section("Parameters", (Paragraph(("No value of ", Code("params.yaml"), " differs from main.")),))]

    def value(text: str | None) -> Line:
        return "not there" if text is None else (Code(text if len(text) <= 100 else f"{text[:99]}…"),)

    rows: list[tuple[Line, ...]] = [((Code(key),), value(old), value(new)) for key, old, new in changed]
    header = ("key", "main", "this pull request")
    blocks: list[Block] = [table(header, rows[:_FIRST], "lll", _FIRST)]
    if len(rows) > _FIRST:
        rest = table(header, rows[_FIRST:], "lll", _FOLDED, "params.yaml")
        blocks.append(Fold(f"{words.count(len(rows) - _FIRST, 'more value')} that differ", (rest,)))
    return [Section("Parameters", tuple(blocks))]


def _data(facts: Facts) -> list[Section]:
    blocks: list[Block] = []
    if facts.main.rows is not None and facts.this.rows is not None:
        blocks += _compared(facts.main.rows, facts.this.rows)
    warned = findings(facts)
    if warned and facts.validation.get("passed"):
        blocks += [Paragraph("The checks of the data passed with warnings:"), findings_table(warned)]
    elif facts.validation.get("passed"):
        blocks.append(Paragraph("All checks of the data passed."))
    faults = (facts.validation.get("faults") or {}).get("count", 0)
    if faults and facts.validation.get("passed"):
        blocks.append(Paragraph(f"{words.count(faults, 'file')} could not be used; out/validation.json names them."))
    return [Section("Data", tuple(blocks))] if blocks else []


def _compared(main: pa.Table, this: pa.Table) -> list[Block]:
    rows = changes.rows(main, this)
    in_splits = all(side.column("split").null_count < len(side) for side in (main, this))
    drift = reference.drift(this, reference.summarize(main)) if in_splits else {}
    balance = changes.balance(main, this)
    moved = [row for row in balance if row.main != row.this]
    if not any(map(len, rows[2:])) and not moved and rows.main == rows.this:
        return [Paragraph(f"The same {rows.this:,} images as main, with the same labels and splits.")]
    blocks: list[Block] = [_counts(rows), *_samples(rows)]
    if moved:
        blocks.append(Fold("Images of each class, before and after", (_balance(balance),)))
    if drift:
        blocks += _drifted(drift)
    return blocks


def _counts(rows: Rows) -> Table:
    changed = [(len(rows.added), "added"), (len(rows.removed), "removed"), (len(rows.relabelled), "relabelled")]
    lines = [
        ("rows in all", f"{rows.main:,}", f"{rows.this:,}", words.signed(rows.this - rows.main, 0)),
        *((f"images {name}, by content", "", f"{number:,}", "") for number, name in changed),
        ("images moved to another split", "", f"{len(rows.moved):,}", ""),
    ]
    return table(("", "main", "this pull request", "difference"), lines, "lrrr", 10)


def _samples(rows: Rows) -> list[Block]:
    made: list[Block] = []
    if len(rows.relabelled):
        header = ("image", "label, main", "label, this")
        made += [Paragraph("Relabelled:"), _sample(rows.relabelled, header, ("label_main", "label"))]
    if len(rows.moved):
        header = ("image", "split, main", "split, this")
        made.append(Fold("Moved to another split", (_sample(rows.moved, header, ("split_main", "split")),)))
    for name, frame in (("Added", rows.added), ("Removed", rows.removed)):
        if len(frame):
            shown = _sample(frame, ("image", "label", "split"), ("label", "split"))
            made.append(Fold(f"{name}: {words.count(len(frame), 'image')}", (shown,)))
    return made


def _sample(frame: pd.DataFrame, header: tuple[str, ...], columns: tuple[str, ...]) -> Table:
    """Return the first images, each with what stands in these columns of it."""

    def shown(row: Any) -> tuple[Line, ...]:
        values = [getattr(row, column) for column in columns]
        cells = [value if isinstance(value, str) else "none (left out)" for value in values]
        return ((Code(words.place(str(row.path), int(row.row))),), *cells)

    lines = [shown(row) for row in frame.head(_FIRST).itertuples()]
    return table(header, lines, "lll", _FIRST, total=len(frame))


def _balance(balance: list[changes.Change]) -> Table:
    sizes = [max(1, sum(side)) for side in zip(*((row.main, row.this) for row in balance), strict=True)]
    rows = [
        (row.name, f"{row.main:,}", f"{row.this:,}", words.signed(row.this - row.main, 0),
         words.points(row.this / sizes[1] - row.main / sizes[0]))
        for row in balance
    ]  # fmt: skip
    return table(("class", "main", "this", "images", "share"), rows, "lrrrr", _FOLDED)


def _drifted(drift: dict[str, float]) -> list[Block]:
    name, most = max(drift.items(), key=lambda pair: pair[1])
    if most <= _MINOR:
        return [Fold("Drift against main: none to speak of", (_drift_table(drift),))]
    said = f"Drift against main: {name} moved most (population stability index {most:.2f}, {_shift(most)})."
    return [Paragraph(said), _drift_table(drift)]


def _drift_table(drift: dict[str, float]) -> Table:
    rows = [(name, f"{value:.3f}", _shift(value)) for name, value in sorted(drift.items(), key=lambda pair: -pair[1])]
    return table(("statistic", "stability index", "reading"), rows, "lrl", 10)


def _shift(value: float) -> str:
    return "major shift" if value > _MAJOR else "some shift" if value > _MINOR else "none to speak of"
