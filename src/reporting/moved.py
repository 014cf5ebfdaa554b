"""Where the two models differ: classes, slices, pairs that are confused, examples newly wrong and newly right."""

from typing import Any

import numpy as np

from src.reporting import changes, words
from src.reporting.facts import Facts

KINDS = (("Classes", "class", "per_class", "recall"), ("Slices", "slice", "slices", "accuracy"))
_FIRST = 10  # rows shown at once


def examples(facts: Facts) -> dict[str, Any]:
    """Return what the template `examples` shows: the first that are newly wrong and newly right, with both answers."""

    def shown(row: int) -> tuple[str, ...]:
        theirs, mine = (side.predictions.iloc[row] for side in (facts.main, facts.this))
        said = (f"{one['prediction']} ({one['confidence']:.0%})" for one in (theirs, mine))
        return (words.place(mine["path"], int(mine["row"])), str(mine["label"]), *said)

    found = changes.answers(*facts.answers)
    if found is None:
        return {"wrong": None, "right": None}
    sides = ({"total": len(rows), "first": [shown(int(row)) for row in rows[:_FIRST]]} for rows in found)
    return dict(zip(("wrong", "right"), sides, strict=True))


def parts(facts: Facts, title: str, kind: str, key: str, number: str) -> dict[str, Any] | None:
    """Return what the template `parts` shows of classes or slices; None where there are none."""
    found = changes.shares(facts.main.parts(key), facts.this.parts(key), number)
    moved = [share for share in found if share.difference or not share.is_compared]
    fell = sum(share.difference < 0 for share in moved)
    if not found:
        return None
    return {
        "title": title,
        "kind": kind,
        "number": number,
        "compared": sum(share.is_compared for share in found),
        "fell": fell,
        "rose": sum(share.difference > 0 for share in moved),
        "moved": len(moved),
        "ends": [*moved[:fell][:_FIRST], *moved[fell:][:_FIRST]],  # the largest falls, then the largest rises
        "stayed": [share for share in found if share not in moved],
    }


def confusion(facts: Facts) -> list[tuple[str, str, str, str, str]]:
    """Return the pairs of classes that are confused more or less often, those that changed most first."""
    names, counts = changes.confusion(*facts.answers, facts.this.card.classes if facts.this.card else [])
    difference = counts[1] - counts[0]
    np.fill_diagonal(difference, 0)  # the table is of errors; right answers are the classes' recall
    places = np.argwhere(difference)
    order = np.argsort(-np.abs(difference[tuple(places.T)]), kind="stable")
    return [
        (names[actual], names[said], f"{counts[0, actual, said]:,}", f"{counts[1, actual, said]:,}",
         f"{difference[actual, said]:+,}")
        for actual, said in places[order]
    ]  # fmt: skip


def weak(facts: Facts) -> list[tuple[str, str, list[tuple[str, str | None, str]]]]:
    """Return the classes and slices of this model, the worst first."""
    made = []
    for _, kind, key, number in KINDS:
        found = changes.shares({}, facts.this.parts(key), number)
        found.sort(key=lambda share: (share.this is None, share.this or 0.0))
        rows = [(share.name, words.written(share.this, words.percent), f"{share.examples:,}") for share in found]
        made += [(kind, number, rows)] if rows else []
    return made
