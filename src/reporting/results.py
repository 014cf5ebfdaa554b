"""The numbers both models reached, gate by gate, and how they came there: metrics, gates, calibration, learning curves."""

import math
from collections.abc import Callable
from typing import NamedTuple

from src.reporting import words
from src.reporting.document import Block, Bold, Chart, Code, Fold, Line, Mark, Paragraph, Section, Table, table
from src.reporting.drawing import Drawn
from src.reporting.facts import Facts, Json
from src.reporting.opening import confidence, gate_of, level, pooled, value_and_limit

_FEW_EPOCHS = 60  # more points than that no chart made of text can show
_ORDER = ("fail", "investigate", "pass", "skipped")


class _Metric(NamedTuple):
    """A line of the table: the key in metrics.json, its words, how it is written, the gate that has its interval."""

    key: str
    name: str
    write: Callable[[float], str]
    differ: Callable[[float], str]
    gate: str = ""
    rises: bool = True  # more is better


_METRICS = (
    _Metric("accuracy", "accuracy", words.percent, words.points, "no_worse_than_main"),
    _Metric("macro_f1", "macro F1", words.decimals, lambda x: words.signed(x, 4)),
    _Metric("log_loss", "log loss", words.decimals, lambda x: words.signed(x, 4), "log_loss", rises=False),
    _Metric("ece", "calibration error", words.decimals, lambda x: words.signed(x, 4), "calibration", rises=False),
)
_PARTS = (("per_class", "recall", "worst class"), ("slices", "accuracy", "worst slice"))


def sections(facts: Facts) -> list[Section]:
    """Return metrics and gates; the gates alone where there are no metrics."""
    measured = [_metrics(facts)] if facts.this.metrics else []
    return [*measured, *_gates(facts)] if measured or not facts.failed else []


def later_sections(facts: Facts, drawn: Drawn) -> list[Section]:
    """Return what explains the numbers: calibration and learning curves."""
    return [*_calibration(facts, drawn), *_curves(facts, drawn)]


def _metrics(facts: Facts) -> Section:
    images = words.count(int(facts.this.metrics.get("examples") or 0), "test image")
    if not facts.has_main:
        return Section("Metrics", (Paragraph(f"On {images}."), _alone(facts)))
    said = f"Both models on the same {images}; differences are this pull request minus main."
    if facts.base.get("same_test_set") is False:
        said += " The test set changed: both were judged on the new one."
    if facts.labels_added:
        shared = "The first rows are of the classes that both know."
        said += f" {shared if facts.has_answers else 'No class is known to both: the first rows are of this model alone.'}"
    return Section("Metrics", (Paragraph(said), _compared(facts), *_disagreement(facts)))


def _compared(facts: Facts) -> Table:
    rows = [row for metric in _METRICS if metric.key in facts.this.metrics for row in _rows(facts, metric)]
    rows += [row for part in _PARTS if (row := _worst_row(facts, *part))]
    if baseline := facts.this.metrics.get("baseline"):
        simple = math.nan if facts.labels_added else facts.main.metrics.get("accuracy", math.nan) - baseline["accuracy"]
        margins = [words.side(value, words.points) for value in (simple, baseline["margin"])]
        rows.append(("accuracy over logistic regression", margins[0], (Bold(margins[1]),), words.NONE, words.NONE, ""))
    return table(("", "main", "this pull request", "difference", "interval", "reading"), rows, "lrrrrl", 20)


def _rows(facts: Facts, metric: _Metric) -> list[tuple[Line, ...]]:
    """Return the line of a metric; the interval of accuracy has its own where it is of more examples than the test split."""
    row = _row(facts, metric)
    over = pooled(facts) if metric.key == "accuracy" else ""
    if not over:
        return [row]
    difference = words.side(gate_of(facts, metric.gate).get("difference"), metric.differ)
    return [(*row[:4], words.NONE, ""), (f"accuracy, {over}", words.NONE, words.NONE, difference, *row[4:])]


def _row(facts: Facts, metric: _Metric) -> tuple[Line, ...]:
    main, this = facts.compared(metric.key)
    difference = this - main if main is not None and this is not None else None
    gate = gate_of(facts, metric.gate)
    low, high = gate.get("low"), gate.get("high")
    interval, reading = words.NONE, ""
    if low is not None and high is not None:
        bounds = [metric.differ(bound).removesuffix(" points") for bound in (low, high)]
        interval = " to ".join(bounds) + (f" ({level(gate).strip()})" if level(gate) else "")
        reading = "within noise" if low or high else "same"
        if low > 0 or high < 0:
            reading = "better" if (low > 0) == metric.rises else "worse"
    cells = [words.side(main, metric.write), words.side(this, metric.write), words.side(difference, metric.differ)]
    return (metric.name, cells[0], (Bold(cells[1]),), cells[2], interval, reading)


def _worst_row(facts: Facts, part: str, number: str, name: str) -> tuple[Line, ...] | None:
    """Return this pull request's worst class or slice, beside what main makes of the same one."""
    which, this = _worst(facts.this.metrics.get(part) or {}, number)
    if this is None:
        return None
    main = ((facts.main.metrics.get(part) or {}).get(which) or {}).get(number)
    difference = words.side(None if main is None else this - main, words.points)
    shown = (Bold(words.percent(this)),)
    return (f"{name}, {number} ({which})", words.side(main, words.percent), shown, difference, words.NONE, "")


def _worst(parts: Json, number: str) -> tuple[str, float | None]:
    found = [(name, scores[number]) for name, scores in parts.items() if scores.get("examples", 1) and number in scores]
    return min(found, key=lambda pair: pair[1]) if found else ("", None)


def _alone(facts: Facts) -> Table:
    found = facts.this.metrics
    baseline = found.get("baseline") or {}
    rows: list[tuple[Line, ...]] = [
        (metric.name, (Bold(metric.write(found[metric.key])),), words.side(baseline.get(metric.key), metric.write))
        for metric in _METRICS
        if metric.key in found
    ]
    for part, number, name in _PARTS:
        which, value = _worst(found.get(part) or {}, number)
        if value is not None:
            rows.append((f"{name}, {number}", (Bold(f"{words.percent(value)} ({which})"),), words.NONE))
    if {"accuracy_low", "accuracy_high"} <= found.keys():
        low, high = (words.percent(found[key]) for key in ("accuracy_low", "accuracy_high"))
        rows.insert(1, (f"accuracy, {confidence(facts)} interval", f"{low} to {high}", words.NONE))
    return table(("", "this pull request", "logistic regression"), rows, "lrr", 20)


def _disagreement(facts: Facts) -> list[Block]:
    paired, churn = facts.verdict.get("mcnemar"), facts.verdict.get("churn")
    if not paired:
        return []
    said = "Both models are right on the same images."
    if paired["only_main_right"] or paired["only_candidate_right"]:
        lost, won = (words.count(int(paired[key]), "image") for key in ("only_main_right", "only_candidate_right"))
        said = f"{won} only this pull request has right, {lost} only main (exact McNemar test: {words.chance(paired['p'])})."
    return [Paragraph(f"{said} {words.percent(churn)} of the predictions changed." if churn else said)]


def _gates(facts: Facts) -> list[Section]:
    gates = sorted(facts.verdict["gates"], key=lambda gate: _ORDER.index(gate["outcome"]))
    asked = [gate for gate in gates if gate["outcome"] in ("fail", "investigate")]
    rest = [gate for gate in gates if gate["outcome"] not in ("fail", "investigate")]
    if not gates:
        return []
    holds = f"{words.count(sum(gate['outcome'] == 'pass' for gate in rest), 'gate holds', 'gates hold')}"
    blocks: list[Block] = [_gate_table(asked)] if asked else []
    skipped = sum(gate["outcome"] == "skipped" for gate in rest)
    if rest:
        blocks.append(Fold(f"{holds}, {skipped} skipped" if skipped else holds, (_gate_table(rest),)))
    where = ("Levels and limits: section ", Code("gates"), " of ", Code("params.yaml"))
    return [Section("Gates", (*blocks, Paragraph((*where, ". Only gates of level enforce decide."))))]


def _gate_table(gates: list[Json]) -> Table:
    rows: list[tuple[Line, ...]] = []
    for gate in gates:
        name, numbers = str(gate["name"]), (words.side(number, _writer(gate)) for number in value_and_limit(gate))
        told = (name.replace("_", " "), str(gate.get("level")), (Mark(gate["outcome"]),))
        rows.append((*told, *numbers, str(gate.get("sentence") or "")))
    return table(("gate", "level", "outcome", "value", "limit", "why"), rows, "lllrrl", 40)


def _writer(gate: Json) -> Callable[[float], str]:
    name = gate["name"]
    kinds = {
        **dict.fromkeys(("accuracy", "worst_class", "worst_slice", "churn"), words.percent),
        "baseline_margin": words.points,
        "log_loss": lambda rise: words.signed(rise, 4),
        "macro_f1": words.decimals,
        "calibration": words.decimals,
        "latency": words.milliseconds,
        "model_size": words.mebibytes,
    }
    return kinds.get(name, words.points if name.startswith("no_worse_than_") else words.general)


def _calibration(facts: Facts, drawn: Drawn) -> list[Section]:
    if "ece" not in facts.this.metrics:
        return []
    header = ("", "main", "this pull request", "difference")
    rows = [_row(facts, metric)[:4] for metric in reversed(_METRICS) if metric.key in ("ece", "log_loss")]
    temperatures = [side.card.get("temperature") for side in (facts.main, facts.this)]
    rows.append(("temperature, fitted", *(words.side(value, words.general) for value in temperatures), words.NONE))
    said = "How far confidence can be believed: the error is the mean gap between confidence and accuracy, 0 is perfect."
    shown = [drawn["calibration"]] if "calibration" in drawn else []
    return [Section("Calibration", (Paragraph(said), table(header, rows, "lrrr", 5), *shown))]


def _curves(facts: Facts, drawn: Drawn) -> list[Section]:
    this = facts.this.history
    if not this:
        return []
    written = {"epoch": words.general, "validation_accuracy": words.percent, "validation_loss": words.decimals}
    rows = [
        (name, f"{len(side.history):,}", *(words.side(side.kept_epoch.get(key), write) for key, write in written.items()))
        for name, side in (("this pull request", facts.this), ("main", facts.main))
        if side.history
    ]
    ends = table(("", "epochs", "epoch kept", "its validation accuracy", "its validation loss"), rows, "lrrrr", 2)
    shown = [drawn["curves"]] if "curves" in drawn else []
    return [Section("Learning curves", (ends, *shown, *_chart(this, facts.main.history)))]


def _chart(this: list[dict[str, float]], main: list[dict[str, float]]) -> list[Block]:
    """Draw validation accuracy as text, so that it is there without pictures; main only where it has as many epochs."""
    mine, theirs = (
        [100 * row["validation_accuracy"] for row in side if "validation_accuracy" in row] for side in (this, main)
    )
    if not 2 <= len(mine) <= _FEW_EPOCHS:
        return []
    lines = [mine] + ([theirs] if len(theirs) == len(mine) else [])
    low = max(0, math.floor(min(map(min, lines)) - 1))
    drawn = [f"    line [{', '.join(f'{value:.2f}' for value in line)}]" for line in lines]
    colours = '%%{init: {"themeVariables": {"xyChart": {"plotColorPalette": "#2f6db3, #d9822b"}}}}%%'
    axes = [f'    x-axis "epoch" 1 --> {len(mine)}', f'    y-axis "validation accuracy, %" {low} --> 100']
    title = "Validation accuracy by epoch: this pull request blue" + (", main orange" if len(lines) == 2 else "")
    return [Fold(title, (Chart("\n".join([colours, "xychart-beta", *axes, *drawn])),))]
