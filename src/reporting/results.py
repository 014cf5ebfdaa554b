"""The numbers both models reached, gate by gate, and how they came there: metrics, gates, folds, calibration, curves."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from src.core.metrics_file import ClassScores, MetricsFile, Series, SliceScores
from src.reporting import words
from src.reporting.facts import Facts
from src.system.judged import GateRow

_FEW_EPOCHS = 60  # more points than that no chart made of text can show
_ICONS = {"fail": "❌", "investigate": "🔎", "pass": "✅", "skipped": ""}  # in the order in which gates are shown
_PARTS = (("per_class", "recall", "worst class"), ("slices", "accuracy", "worst slice"))
_WRITERS: dict[str, words.Writer] = {
    **dict.fromkeys(("accuracy", "worst_class", "worst_slice", "churn"), words.percent),
    **dict.fromkeys(("baseline_margin", "no_worse_than_main", "no_worse_than_anchor"), words.points),
    **dict.fromkeys(("macro_f1", "calibration"), words.decimals),
    "log_loss": words.change,
    "latency": words.milliseconds,
    "model_size": words.mebibytes,
}


class _Metric(NamedTuple):
    """A line of the table: the key in metrics.json, its words, how it is written, the gate that has its interval."""

    key: str
    name: str
    write: Callable[[float], str]
    differ: Callable[[float], str]
    gate: str = ""
    rises: bool = True  # more is better


class Row(NamedTuple):
    """A number of both sides as it is written; None where a side does not have it."""

    name: str
    main: str | None
    this: str | None
    difference: str | None
    interval: str | None = None
    reading: str = ""


_METRICS = (
    _Metric("accuracy", "accuracy", words.percent, words.points, "no_worse_than_main"),
    _Metric("macro_f1", "macro F1", words.decimals, words.change),
    _Metric("log_loss", "log loss", words.decimals, words.change, "log_loss", rises=False),
    _Metric("ece", "calibration error", words.decimals, words.change, "calibration", rises=False),
)


def metrics(facts: Facts, found: MetricsFile) -> dict[str, Any]:
    """Return what the template `metrics` shows: both models beside each other, or this one beside the baseline."""
    return {
        "examples": words.count(found.examples, "test example"),
        "compared": _compared(facts, found),
        "alone": _alone(facts, found),
        "paired": _paired(facts),
    }


def _compared(facts: Facts, found: MetricsFile) -> list[Row]:
    rows = [row for metric in _METRICS for row in _rows(facts, metric)]
    for kind, number, name in _PARTS:  # this pull request's worst class or slice, beside what main makes of the same one
        which, this = _worst(facts.this.parts(kind), number)
        if this is not None:
            main = getattr(facts.main.parts(kind).get(which), number, None)
            rows.append(_written(f"{name}, {number} ({which})", (main, this), words.percent, words.points))
    if found.baseline and facts.main.metrics:
        main = None if facts.base.labels_added else facts.main.metrics.accuracy - found.baseline.accuracy
        margin = _written("accuracy over logistic regression", (main, found.baseline.margin), words.points, words.points)
        rows.append(margin._replace(difference=None))
    return rows


def _rows(facts: Facts, metric: _Metric) -> list[Row]:
    """Return the line of a metric; the interval of accuracy has its own where it is of more examples than the test split."""
    gate, row = (
        facts.verdict.gate(metric.gate),
        _written(metric.name, facts.compared(metric.key), metric.write, metric.differ),
    )
    interval, reading = None, ""
    if gate.low is not None and gate.high is not None:
        bounds = [metric.differ(bound).removesuffix(" points") for bound in (gate.low, gate.high)]
        interval = " to ".join(bounds) + (f" ({gate.confidence * 100:.3g}%)" if gate.confidence else "")
        reading = "within noise" if gate.low or gate.high else "same"
        if gate.low > 0 or gate.high < 0:
            reading = "better" if (gate.low > 0) == metric.rises else "worse"
    if metric.key != "accuracy" or not facts.pooled:
        return [row._replace(interval=interval, reading=reading)]
    difference = words.written(gate.difference, metric.differ)
    return [row, Row(f"accuracy, {facts.pooled}", None, None, difference, interval, reading)]


def _written(name: str, sides: tuple[float | None, float | None], write: words.Writer, differ: words.Writer) -> Row:
    main, this = sides
    difference = None if main is None or this is None else words.written(this - main, differ)
    return Row(name, words.written(main, write), words.written(this, write), difference)


def _worst(parts: Mapping[str, ClassScores | SliceScores], number: str) -> tuple[str, float | None]:
    found = [(name, value) for name, row in parts.items() if row.examples and (value := getattr(row, number)) is not None]
    return min(found, key=lambda pair: pair[1]) if found else ("", None)


def _alone(facts: Facts, found: MetricsFile) -> list[tuple[str, str, str | None]]:
    rows: list[tuple[str, str, str | None]] = [
        (
            metric.name,
            metric.write(getattr(found, metric.key)),
            words.written(getattr(found.baseline, metric.key, None), metric.write),
        )
        for metric in _METRICS
    ]
    for kind, number, name in _PARTS:
        which, value = _worst(facts.this.parts(kind), number)
        if value is not None:
            rows.append((f"{name}, {number}", f"{words.percent(value)} ({which})", None))
    if found.accuracy_low is not None and found.accuracy_high is not None:
        bounds = f"{words.percent(found.accuracy_low)} to {words.percent(found.accuracy_high)}"
        rows.insert(1, (f"accuracy, {_confidence(facts)} interval", bounds, None))
    return rows


def _paired(facts: Facts) -> str:
    paired, churn = facts.verdict.mcnemar, facts.verdict.churn
    if not paired:
        return ""
    said = "Both models are right on the same examples."
    if paired.only_main_right or paired.only_candidate_right:
        lost, won = (words.count(number, "example") for number in (paired.only_main_right, paired.only_candidate_right))
        said = f"{won} only this pull request has right, {lost} only main (exact McNemar test: {words.chance(paired.p)})."
    return f"{said} {words.percent(churn)} of the predictions changed." if churn else said


def _confidence(facts: Facts) -> str:
    """Return the level of the intervals of metrics.json, such as 95%."""
    return f"{facts.number('evaluate.confidence', 0.95):.0%}"


def gates(facts: Facts) -> dict[str, Any]:
    """Return what the template `gates` shows: those that ask for something, and behind a fold the rest."""

    def shown(gate: GateRow) -> tuple[GateRow, str | None, str | None]:
        write = _WRITERS.get(gate.name, words.general)
        return gate, words.written(gate.compared, write), words.written(gate.limit, write)

    ordered = sorted(facts.verdict.gates, key=lambda gate: [*_ICONS].index(gate.outcome))
    asked = [shown(gate) for gate in ordered if gate.outcome in ("fail", "investigate")]
    rest = [shown(gate) for gate in ordered if gate.outcome not in ("fail", "investigate")]
    skipped = sum(gate.outcome == "skipped" for gate in ordered)
    holds = words.count(len(rest) - skipped, "gate holds", "gates hold")
    summary = f"{holds}, {skipped} skipped" if skipped else holds
    return {"asked": asked, "rest": rest, "summary": summary, "icons": _ICONS}


def repeated(facts: Facts, kind: str, told: Series) -> dict[str, Any]:
    """Return what the template `repeated` shows of the folds or seeds that were trained beside the model."""

    def values(name: str) -> list[str]:
        return [metric.write(getattr(getattr(told, metric.key), name)) for metric in _METRICS]

    runs = [told.runs[number] for number in sorted(told.runs, key=int)]
    return {
        "kind": kind,
        "examples": sum(run.examples for run in runs),
        "deviation": told.accuracy.deviation,
        "mean": values("mean"),
        "deviations": values("deviation"),
        "bounds": [" to ".join(pair) for pair in zip(values("low"), values("high"), strict=True)],
        "confidence": _confidence(facts),
        "runs": [
            (run.name, f"{run.examples:,}", *(metric.write(getattr(run, metric.key)) for metric in _METRICS)) for run in runs
        ],
    }


def calibration(facts: Facts) -> dict[str, Any]:
    """Return what the template `calibration` shows."""
    rows = [_written(m.name, facts.compared(m.key), m.write, m.differ) for m in _METRICS[:1:-1]]
    temperatures = [side.card and side.card.temperature for side in (facts.main, facts.this)]
    return {"calibration": rows, "temperatures": temperatures}


def curves(facts: Facts) -> dict[str, Any]:
    """Return what the template `curves` shows: validation accuracy also as numbers, for where there are no pictures."""
    sides = [(name, side) for name, side in (("this pull request", facts.this), ("main", facts.main)) if side.history]
    lines = [[100 * row["validation_accuracy"] for row in side.history if "validation_accuracy" in row] for _, side in sides]
    lines = [line for line in lines if len(line) == len(lines[0])] if 2 <= len(lines[0]) <= _FEW_EPOCHS else []
    lowest = max(0, math.floor(min(map(min, lines)) - 1)) if lines else 0
    return {"sides": sides, "lines": lines, "lowest": lowest}
