"""numbers.json: what a fork's run hands to the job that may comment. Numbers and short names, nothing else."""

import re
from collections.abc import Iterable
from typing import Any

from src.reporting import changes
from src.reporting.facts import STAGES, Facts, Json
from src.reporting.opening import findings
from src.system import numbers as schema

_ROWS = 200  # of each list: what the schema allows
_METRICS = {
    "accuracy": "no_worse_than_main",
    "macro_f1": "",
    "log_loss": "log_loss",
    "ece": "calibration",
    "model_bytes": "",
}


def collect(facts: Facts) -> Json:
    """Return the content of numbers.json, checked against the schema that its reader holds it to.

    Raises:
        NumbersError: a bug here; the reader would refuse the file.
    """
    budget = facts.run.budget
    content = {
        "schema": schema.SCHEMA,
        "commit": facts.at.commit,
        "verdict": facts.verdict.verdict,
        "failed_stage": facts.failed if facts.failed in STAGES else None,
        "budget": {key: int(budget[key]) for key in ("epochs", "asked")} if budget else None,
        "examples": facts.this.metrics.examples if facts.this.metrics else None,
        "baseline": facts.has_main,
        "metrics": _metrics(facts),
        "gates": _once(
            {
                "name": _name(gate.name),
                "level": gate.level,
                "outcome": gate.outcome,
                "value": gate.compared,
                "limit": gate.limit,
            }
            for gate in facts.verdict.gates
        ),
        "classes": _once(_classes(facts)),
        "checks": _once({"name": _name(found.check), "level": found.level} for found in findings(facts)),
    }
    schema.validate(content)
    return content


def _metrics(facts: Facts) -> list[Json]:
    made = []
    for key, gate_name in _METRICS.items():
        main, this = facts.compared(key)
        gate = facts.verdict.gate("" if key == "accuracy" and facts.pooled else gate_name)  # else not of this difference
        if this is not None:
            made.append({"name": key, "candidate": this, "main": main, "low": gate.low, "high": gate.high})
    for name in ("p50", "p95", "p99"):
        main, this = (getattr(side.latency, name) for side in (facts.main, facts.this))
        if this is not None:
            made.append({"name": f"latency_{name}_ms", "candidate": this, "main": main, "low": None, "high": None})
    return made


def _classes(facts: Facts) -> Iterable[Json]:
    """The classes, those that moved most first: there may be more than fit."""
    main, this = (side.parts("per_class") for side in (facts.main, facts.this))
    shares = changes.shares(main if facts.has_main else {}, this, "recall")
    for share in sorted(shares, key=lambda share: -abs(share.difference)):
        recalls = {"recall": share.this, "main": share.main}
        yield {"name": schema.label(share.name), **recalls, "examples": share.examples}


def _once(rows: Iterable[Json]) -> list[Json]:
    """At most _ROWS rows, each name once: shortened names may meet."""
    kept: dict[str, Json] = {}
    for row in rows:
        kept.setdefault(row["name"], row)
    return list(kept.values())[:_ROWS]


def _name(text: Any) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", str(text))[:64] or "_"
