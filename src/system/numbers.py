"""numbers.json: all that crosses from a fork's run to the job with the write token. Numbers and short names, nothing else.

src.reporting.write checks it with `validate` before writing, src.github.fork_report reads it with `parse`. What does not fit
is refused as a whole, in our own words: a message never repeats a text of the file, for it will be posted.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
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
_Got = TypeVar("_Got")


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
    images: int


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
    images: int | None
    baseline: bool
    metrics: tuple[Metric, ...]
    gates: tuple[Gate, ...]
    classes: tuple[ClassRow, ...]
    checks: tuple[Check, ...]


_Row = TypeVar("_Row", Metric, Gate, ClassRow, Check)


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
    fields = _fields(value, "the file", ("schema", *Numbers.__dataclass_fields__))
    return Numbers(
        commit=_matches(fields["commit"], "commit", r"[0-9a-f]{40}"),
        verdict=_one_of(fields["verdict"], "verdict", VERDICTS),
        failed_stage=_optional(fields["failed_stage"], lambda word: _one_of(word, "failed_stage", STAGES)),
        budget=_optional(fields["budget"], _budget),
        images=_optional(fields["images"], lambda number: _count(number, "images")),
        baseline=_flag(fields["baseline"], "baseline"),
        metrics=_rows(fields["metrics"], "metrics", _metric),
        gates=_rows(fields["gates"], "gates", _gate),
        classes=_rows(fields["classes"], "classes", _class),
        checks=_rows(fields["checks"], "checks", _check),
    )


def label(text: str) -> str:
    """Make any text fit for a class name: at most 80 signs, each of them printable."""
    return "".join(sign if sign.isprintable() else "?" for sign in text[:_LABEL_LENGTH]) or "?"


def _budget(value: Any) -> Budget:
    fields = _fields(value, "budget", Budget.__dataclass_fields__)
    return Budget(_count(fields["epochs"], "budget.epochs"), _count(fields["asked"], "budget.asked"))


def _metric(value: Any, at: str) -> Metric:
    fields = _fields(value, at, Metric.__dataclass_fields__)
    numbers = [_optional_number(fields[key], f"{at}.{key}") for key in ("candidate", "main", "low", "high")]
    return Metric(_name(fields["name"], at), *numbers)


def _gate(value: Any, at: str) -> Gate:
    fields = _fields(value, at, Gate.__dataclass_fields__)
    return Gate(
        _name(fields["name"], at),
        _one_of(fields["level"], f"{at}.level", ("enforce", "warn", "off")),
        _one_of(fields["outcome"], f"{at}.outcome", (*VERDICTS, "skipped")),
        _optional_number(fields["value"], f"{at}.value"),
        _optional_number(fields["limit"], f"{at}.limit"),
    )


def _class(value: Any, at: str) -> ClassRow:
    fields = _fields(value, at, ClassRow.__dataclass_fields__)
    name = fields["name"]
    if not isinstance(name, str) or not name.isprintable() or not 1 <= len(name) <= _LABEL_LENGTH:
        raise NumbersError(f"{at}.name is not a printable text of 1 to {_LABEL_LENGTH} signs")
    recall, main = (_optional_share(fields[key], f"{at}.{key}") for key in ("recall", "main"))
    return ClassRow(name, recall, main, _count(fields["images"], f"{at}.images"))


def _check(value: Any, at: str) -> Check:
    fields = _fields(value, at, Check.__dataclass_fields__)
    return Check(_name(fields["name"], at), _one_of(fields["level"], f"{at}.level", ("error", "warn")))


def _fields(value: Any, at: str, keys: Iterable[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise NumbersError(f"{at} is not an object")
    if set(value) != set(keys):
        raise NumbersError(f"{at} has an unknown key, or lacks one")
    return value


def _rows(value: Any, at: str, read: Callable[[Any, str], _Row]) -> tuple[_Row, ...]:
    if not isinstance(value, list) or len(value) > _ROWS:
        raise NumbersError(f"{at} is not a list of at most {_ROWS} entries")
    rows = tuple(read(entry, f"{at}[{i}]") for i, entry in enumerate(value))
    if len({row.name for row in rows}) != len(rows):
        raise NumbersError(f"{at} has one name twice")
    return rows


def _optional(value: Any, read: Callable[[Any], _Got]) -> _Got | None:
    return None if value is None else read(value)


def _name(value: Any, at: str) -> str:
    return _matches(value, f"{at}.name", r"[A-Za-z0-9_.-]{1,64}")


def _matches(value: Any, at: str, pattern: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise NumbersError(f"{at} is not of the form {pattern}")
    return value


def _one_of(value: Any, at: str, words: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in words:
        raise NumbersError(f"{at} is none of {', '.join(words)}")
    return value


def _flag(value: Any, at: str) -> bool:
    if not isinstance(value, bool):
        raise NumbersError(f"{at} is neither true nor false")
    return value


def _count(value: Any, at: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _HUGE:
        raise NumbersError(f"{at} is not a whole number from 0 to {_HUGE:.0e}")
    return value


def _optional_share(value: Any, at: str) -> float | None:
    number = _optional_number(value, at)
    if number is not None and not 0 <= number <= 1:
        raise NumbersError(f"{at} is not a number from 0 to 1")
    return number


def _optional_number(value: Any, at: str) -> float | None:
    return _optional(value, lambda number: _number(number, at))


def _number(value: Any, at: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or abs(value) > _HUGE:
        raise NumbersError(f"{at} is not a finite number within {_HUGE:.0e}")
    return value
