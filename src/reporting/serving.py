"""How fast the service is, as ratios to the textbook's in the same run, beside those of main's service."""

from collections.abc import Iterator
from typing import Any

from src.reporting import words
from src.reporting.document import Block, Code, Fold, Line, Paragraph, Section, table
from src.reporting.facts import Facts, Json

_TITLE = "The service under load"
_NAMES = {
    "service": "this pull request",
    "main": "main's service",
    "textbook": "the textbook's: FastAPI, JSON lists",
    "bentoml": "BentoML's own image endpoint",
}


def sections(facts: Facts) -> list[Section]:
    """Return the section; nothing where the service was not measured with this model."""
    told = facts.serving
    if not told:
        return []
    if "servers" not in told:
        return [Section(_TITLE, (_unmeasured(told),))]
    blocks: list[Block] = [
        table(("", "main", "this pull request", "difference"), [*_ratios(told), *_own(told)], "lrrr", 20),
        Paragraph(_about(told)),
    ]
    if "main" not in told["servers"]:
        blocks.append(
            Paragraph(f"There is no figure of main's service: {(told.get('base') or {}).get('why') or 'unknown why'}.")
        )
    return [Section(_TITLE, (*blocks, Fold("All figures", (_figures(told),))))]


def _unmeasured(told: Json) -> Block:
    again = Code("make bench-serve")
    return Paragraph((f"It could not be measured: {told.get('failed') or 'unknown why'}. To see it: ", again))


def _ratios(told: Json) -> Iterator[tuple[Line, ...]]:
    """Yield how many times the requests of the others both services answer, at each concurrency."""
    for other in ("textbook", "bentoml"):
        for connections in _at(told, other):
            sides = [_value(told["ratios"].get(one), other, connections) for one in ("main", "service")]
            yield _row(f"times the requests of {_NAMES[other]}, {_connections(connections)}", sides, _times)


def _own(told: Json) -> Iterator[tuple[Line, ...]]:
    """Yield what is told of both services alone."""
    for connections in list(_at(told, "service"))[1:]:
        sides = [_value(_at(told, one), connections, "share_of_raw") for one in ("main", "service")]
        yield _row(f"share of decode and session.run alone, {_connections(connections)}", sides, words.percent)
    pairs = [told["servers"].get(one, {}) for one in ("main", "service")]
    yield _row("added to decode and inference, p50", [_value(one, "added_ms") for one in pairs], words.milliseconds)
    yield _row("memory, all processes", [one.get("memory_mib") for one in pairs], words.mebibytes)
    yield _row("failed or wrong answers", [_failed(one) for one in pairs], words.general)


def _at(told: Json, name: str) -> Json:
    """Return a server's figures, from few connections to many."""
    found = (told["servers"].get(name) or {}).get("at") or {}
    return {connections: found[connections] for connections in sorted(found, key=int)}


def _value(found: Any, *keys: str) -> float | None:
    """Return the median of what lies under some keys."""
    for key in (*keys, "median"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, int | float) else None


def _failed(server: Json) -> int | None:
    entries = (server.get("at") or {}).values()
    return sum(entry["failed"] + entry["wrong"] for entry in entries) if entries else None


def _row(name: str, sides: list[float | None], write: words.Writer) -> tuple[Line, ...]:
    main, this = sides
    difference = words.NONE if main is None or this is None else f"{'+' if this >= main else '-'}{write(abs(this - main))}"
    return (name, words.side(main, write), words.side(this, write), difference)


def _times(ratio: float) -> str:
    return f"{ratio:.1f}"


def _connections(number: str) -> str:
    return words.count(int(number), "connection")


def _about(told: Json) -> str:
    upload, count = told.get("upload") or {}, told.get("rounds")
    sent = f"{str(upload.get('format')).upper()} uploads of {upload.get('side')}x{upload.get('side')}"
    return (
        f"All servers ran with this pull request's model on one machine, in turns, {words.count(int(count or 1), 'round')}; "
        f"{sent}; load by {told.get('load')}. Ratios are comparable between machines, rates are not."
    )


def _figures(told: Json) -> Block:
    rows: list[tuple[Line, ...]] = [
        (
            _NAMES[name],
            connections,
            words.side(_value(at, "per_second"), words.general),
            *(words.side(at.get(f"p{percentile}_ms"), words.milliseconds) for percentile in (50, 95, 99)),
            f"{at['failed'] + at['wrong']:,} of {at['requests'] + at['checked']:,}",
        )
        for name in _NAMES
        for connections, at in _at(told, name).items()
    ]
    return table(("server", "connections", "requests/s", "p50", "p95", "p99", "failed"), rows, "lrrrrrr", 20)
