"""numbers.json: all that crosses from a fork's run to the job with the write token. Numbers and short names, nothing else.

src.reporting.write checks it with `validate` before writing, src.github.fork_report reads it with `parse`. What does not fit
is refused as a whole, in our own words: a message never repeats a text of the file, for it will be posted.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from src.core.command import UserError

LARGEST = 256 * 1024  # bytes of numbers.json
SCHEMA = 1
STAGES = ("prepare", "validate", "train", "evaluate")
VERDICTS = ("pass", "fail", "investigate")
_ROWS = 200
_LABEL_LENGTH = 80
_HUGE = 1e12
_Made = TypeVar("_Made")
Reader = Callable[[Any, str], Any]  # takes a value and its place in the file


class NumbersError(UserError):
    """The file does not fit the schema; the message names the place, never the content."""


@dataclass(frozen=True)
class Metric:
    """One number of the report: the candidate's, main's, and the interval of their difference."""

    name: str
    candidate: float | None
    main: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Gate:
    """One gate's outcome."""

    name: str
    level: str
    outcome: str
    value: float | None
    limit: float | None


@dataclass(frozen=True)
class ClassRow:
    """One class: share of its test images that were recognised (0 to 1), by the candidate and by main."""

    name: str
    recall: float | None
    main: float | None
    examples: int


@dataclass(frozen=True)
class Check:
    """One finding about the data: which check, and how serious."""

    name: str
    level: str


@dataclass(frozen=True)
class Budget:
    """The epochs that were trained, of those that params.yaml asks for."""

    epochs: int
    asked: int


@dataclass(frozen=True)
class Numbers:
    """A whole numbers.json; `schema` is left out, for there is one."""

    commit: str
    verdict: str
    failed_stage: str | None
    budget: Budget | None
    examples: int | None
    baseline: bool
    metrics: tuple[Metric, ...]
    gates: tuple[Gate, ...]
    classes: tuple[ClassRow, ...]
    checks: tuple[Check, ...]


def parse(content: bytes) -> Numbers:
    """Read numbers.json strictly: UTF-8, no key twice, no NaN, nothing beyond the schema.

    Raises:
        NumbersError: anything else.
    """
    if len(content) > LARGEST:
        raise NumbersError(f"it is larger than {LARGEST // 1024} KiB")
    try:
        value = json.loads(
            content.decode("utf-8"), object_pairs_hook=_once, parse_constant=_not_finite, parse_int=_short_integer
        )
    except UnicodeDecodeError:
        raise NumbersError("it is not UTF-8") from None
    except RecursionError:
        raise NumbersError("it is nested too deep") from None
    except ValueError:
        raise NumbersError("it is not JSON") from None
    return validate(value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise NumbersError("one object has a key twice")
    return dict(pairs)


def _not_finite(_: str) -> float:
    raise NumbersError("a number in it is NaN or infinite")


def _short_integer(digits: str) -> int:
    if len(digits) > 20:
        raise NumbersError("a number in it is far too large")
    return int(digits)


def validate(value: Any) -> Numbers:
    """Check keys, types, ranges and lengths of a numbers.json already parsed.

    Raises:
        NumbersError: the first place that does not fit.
    """
    if isinstance(value, dict) and value.get("schema") != SCHEMA:
        raise NumbersError(f"it is not of schema {SCHEMA}: merge main into the branch, whose template writes that")
    return _object(Numbers, _FILE, value, "the file", "")


def label(text: str) -> str:
    """Make any text fit for a class name: at most 80 signs, each of them printable."""
    return "".join(sign if sign.isprintable() else "?" for sign in text[:_LABEL_LENGTH]) or "?"


def _object(kind: type[_Made], readers: Mapping[str, Reader], value: Any, at: str, prefix: str) -> _Made:
    """Make a class of an object that has exactly the keys of its readers."""
    if not isinstance(value, dict):
        raise NumbersError(f"{at} is not an object")
    if set(value) != set(readers):
        raise NumbersError(f"{at} has an unknown key, or lacks one")
    found = {key: read(value[key], f"{prefix}{key}") for key, read in readers.items()}
    return kind(**{key: found[key] for key in found if key != "schema"})


def _rows(kind: type[Any], readers: Mapping[str, Reader]) -> Reader:
    def read(value: Any, at: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) > _ROWS:
            raise NumbersError(f"{at} is not a list of at most {_ROWS} entries")
        rows = tuple(_object(kind, readers, entry, f"{at}[{i}]", f"{at}[{i}].") for i, entry in enumerate(value))
        if len({row.name for row in rows}) != len(rows):
            raise NumbersError(f"{at} has one name twice")
        return rows

    return read


def _optional(read: Reader) -> Reader:
    return lambda value, at: None if value is None else read(value, at)


def _matching(pattern: str) -> Reader:
    def read(value: Any, at: str) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise NumbersError(f"{at} is not of the form {pattern}")
        return value

    return read


def _one_of(*words: str) -> Reader:
    def read(value: Any, at: str) -> str:
        if not isinstance(value, str) or value not in words:
            raise NumbersError(f"{at} is none of {', '.join(words)}")
        return value

    return read


def _flag(value: Any, at: str) -> bool:
    if not isinstance(value, bool):
        raise NumbersError(f"{at} is neither true nor false")
    return value


def _label(value: Any, at: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 1 <= len(value) <= _LABEL_LENGTH:
        raise NumbersError(f"{at} is not a printable text of 1 to {_LABEL_LENGTH} signs")
    return value


def _count(value: Any, at: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _HUGE:
        raise NumbersError(f"{at} is not a whole number from 0 to {_HUGE:.0e}")
    return value


def _number(value: Any, at: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or abs(value) > _HUGE:
        raise NumbersError(f"{at} is not a finite number within {_HUGE:.0e}")
    return value


def _share(value: Any, at: str) -> float:
    if not 0 <= _number(value, at) <= 1:
        raise NumbersError(f"{at} is not a number from 0 to 1")
    return value  # type: ignore[no-any-return]


_NAME, _NUMBER, _SHARE = _matching(r"[A-Za-z0-9_.-]{1,64}"), _optional(_number), _optional(_share)
_METRIC = {"name": _NAME, "candidate": _NUMBER, "main": _NUMBER, "low": _NUMBER, "high": _NUMBER}
_GATE = {
    "name": _NAME,
    "level": _one_of("enforce", "warn", "off"),
    "outcome": _one_of(*VERDICTS, "skipped"),
    "value": _NUMBER,
    "limit": _NUMBER,
}
_CLASS = {"name": _label, "recall": _SHARE, "main": _SHARE, "examples": _count}
_BUDGET = {"epochs": _count, "asked": _count}
_FILE = {
    "schema": _count,
    "commit": _matching(r"[0-9a-f]{40}"),
    "verdict": _one_of(*VERDICTS),
    "failed_stage": _optional(_one_of(*STAGES)),
    "budget": _optional(lambda value, at: _object(Budget, _BUDGET, value, at, f"{at}.")),
    "examples": _optional(_count),
    "baseline": _flag,
    "metrics": _rows(Metric, _METRIC),
    "gates": _rows(Gate, _GATE),
    "classes": _rows(ClassRow, _CLASS),
    "checks": _rows(Check, {"name": _NAME, "level": _one_of("error", "warn")}),
}
