"""numbers.json: all that crosses from a fork's run to the job with the write token. Numbers and short names, nothing else.

src.reporting.write checks it with `validate` before writing, src.github.fork_report reads it with `parse`. What does not fit
is refused as a whole, in our own words: a message never repeats a text of the file, for it will be posted.
"""

import json
import math
import re
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from src.core.command import UserError

LARGEST = 256 * 1024  # bytes of numbers.json
SCHEMA = 1
_ROWS = 200
_LABEL_LENGTH = 80
_HUGE = 10**12
_Made = TypeVar("_Made")
# A type and what its values are: the form of a text (none: printable), or the least and the largest number.
Name = Annotated[str, r"[A-Za-z0-9_.-]{1,64}"]
Label = Annotated[str, ""]
Number = Annotated[float, -_HUGE, _HUGE]
Share = Annotated[float, 0, 1]
Count = Annotated[int, 0, _HUGE]
Verdict = Literal["pass", "fail", "investigate"]


class NumbersError(UserError):
    """The file does not fit the schema; the message names the place, never the content."""


@dataclass(frozen=True)
class Metric:
    """One number of the report: the candidate's, main's, and the interval of their difference."""

    name: Name
    candidate: Number | None
    main: Number | None
    low: Number | None
    high: Number | None


@dataclass(frozen=True)
class Gate:
    """One gate's outcome."""

    name: Name
    level: Literal["enforce", "warn", "off"]
    outcome: Literal["pass", "fail", "investigate", "skipped"]
    value: Number | None
    limit: Number | None


@dataclass(frozen=True)
class ClassRow:
    """One class: share of its test examples that were recognised (0 to 1), by the candidate and by main."""

    name: Label
    recall: Share | None
    main: Share | None
    examples: Count


@dataclass(frozen=True)
class Check:
    """One finding about the data: which check, and how serious."""

    name: Name
    level: Literal["error", "warn"]


@dataclass(frozen=True)
class Budget:
    """The epochs that were trained, of those that params.yaml asks for."""

    epochs: Count
    asked: Count


@dataclass(frozen=True)
class Numbers:
    """A whole numbers.json; `schema` is left out, for there is one."""

    commit: Annotated[str, r"[0-9a-f]{40}"]
    verdict: Verdict
    failed_stage: Literal["prepare", "validate", "train", "evaluate"] | None
    budget: Budget | None
    examples: Count | None
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
    if not isinstance(value, dict):
        raise NumbersError("the file is not an object")
    if value.get("schema") != SCHEMA:
        raise NumbersError(f"it is not of schema {SCHEMA}: merge main into the branch, whose template writes that")
    return _object(Numbers, {key: one for key, one in value.items() if key != "schema"}, "the file", "")


def label(text: str) -> str:
    """Make any text fit for a class name: at most 80 signs, each of them printable."""
    return "".join(sign if sign.isprintable() else "?" for sign in text[:_LABEL_LENGTH]) or "?"


def _object(kind: type[_Made], value: Any, at: str, prefix: str) -> _Made:
    """Make a class of an object that has exactly the keys of its fields."""
    if not isinstance(value, dict):
        raise NumbersError(f"{at} is not an object")
    if set(value) != {field.name for field in fields(kind)}:  # type: ignore[arg-type]
        raise NumbersError(f"{at} has an unknown key, or lacks one")
    kinds = get_type_hints(kind, include_extras=True)
    return kind(**{key: _read(kinds[key], value[key], f"{prefix}{key}") for key in kinds})


def _read(kind: Any, value: Any, at: str) -> Any:
    """Return a value that is of a field's type, and within its form or its bounds."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        if not isinstance(value, list) or len(value) > _ROWS:
            raise NumbersError(f"{at} is not a list of at most {_ROWS} entries")
        rows = tuple(_object(arguments[0], entry, f"{at}[{i}]", f"{at}[{i}].") for i, entry in enumerate(value))
        if len({row.name for row in rows}) != len(rows):
            raise NumbersError(f"{at} has one name twice")
        return rows
    if NoneType in arguments:
        return None if value is None else _read(arguments[0], value, at)
    if is_dataclass(kind):
        return _object(kind, value, at, f"{at}.")  # type: ignore[arg-type]
    if origin is Literal:
        fits, words = isinstance(value, str) and value in arguments, f"none of {', '.join(arguments)}"
    elif kind is bool:
        fits, words = isinstance(value, bool), "neither true nor false"
    elif arguments == (str, ""):
        fits = isinstance(value, str) and value.isprintable() and 1 <= len(value) <= _LABEL_LENGTH
        words = f"not a printable text of 1 to {_LABEL_LENGTH} signs"
    elif arguments[0] is str:
        fits, words = isinstance(value, str) and bool(re.fullmatch(arguments[1], value)), f"not of the form {arguments[1]}"
    else:
        number, low, high = arguments
        fits = isinstance(value, int if number is int else int | float) and not isinstance(value, bool)
        fits = fits and math.isfinite(value) and low <= value <= high
        words = f"not a {'whole' if number is int else 'finite'} number from {low:g} to {high:g}"
    if not fits:
        raise NumbersError(f"{at} is {words}")
    return value
