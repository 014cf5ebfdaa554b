"""Read data/ by `examples` of src/data.py, a team's reader of its own raw format: faults of the code become sentences.

A fault of the function (an exception, something that is no Example) is a UserError, since what comes after it would be
lost. A fault of one example becomes that example's `fault`.
"""

import posixpath
import traceback
from collections.abc import Iterator
from numbers import Integral, Real
from pathlib import Path, PurePath
from typing import Any

from src.core.command import UserError
from src.core.example import Example

_FILE = "src/data.py"
_LARGEST_ROW = 2**63 - 1


def custom_examples(root: Path) -> Iterator[Example] | None:
    """Return the examples of src/data.py with plain values; None where it leaves data/ to the built-in forms.

    Raises:
        UserError: src/data.py cannot be imported, or has no function `examples` that returns examples. The iterator raises
            it too.
    """
    try:
        from src import data

        found = data.examples(root)
        iterator = None if found is None else iter(found)
    except UserError:
        raise
    except Exception as error:  # the code is the team's: it may raise anything
        raise UserError(f"{_place(error)}: correct examples() there") from None
    return None if iterator is None else _checked(iterator)


def _checked(iterator: Iterator[Any]) -> Iterator[Example]:
    count, last = 0, ""
    while True:
        try:
            example = next(iterator)
        except StopIteration:
            return
        except UserError:
            raise
        except Exception as error:  # likewise
            after = f" after {count} examples, the last of them {last}" if count else ""
            raise UserError(f"{_place(error)}{after}: correct examples() there; nothing was left out") from None
        count += 1
        if not isinstance(example, Example):
            raise UserError(
                f"{_FILE} yields a {type(example).__name__} as example {count}, expected Example(path, label) of "
                "src.core.example: correct examples() there"
            )
        checked = _plain(example)
        last = checked.path
        yield checked


def _place(error: Exception) -> str:
    """Say which line of src/data.py raised an error, and what it was."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(_FILE)]
    where = f"{_FILE}, line {lines[-1]}" if lines else _FILE
    return f"{where}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _plain(example: Example) -> Example:
    """Return an example of plain values that any process can receive; a value that is none becomes its fault."""
    values: dict[str, Any] = example._asdict()
    faults = [str(example.fault)] if example.fault is not None else []

    def refuse(name: str, expected: str) -> None:
        faults.append(f"{name} that {_FILE} yields is of type {type(values[name]).__name__}, expected {expected}")
        values[name] = None

    for name in ("label", "group", "split"):
        try:
            values[name] = _text(values[name])
        except TypeError:
            refuse(name, "text")
    if not isinstance(values["path"], str | PurePath):
        refuse("path", "text")
    path = posixpath.normpath(str(values["path"]))
    if path.startswith("/") or path.split("/")[0] == ".." or "\0" in path:
        faults.append(f"outside data/: {_FILE} has to yield a path below data/ and relative to it")
    if not isinstance(values["row"], Integral) or not -1 <= int(values["row"]) <= _LARGEST_ROW:
        refuse("row", "a number from 0 to 2**63 - 1, or -1")
    if isinstance(values["content"], bytearray | memoryview):
        values["content"] = bytes(values["content"])
    if not isinstance(values["content"], bytes | None):
        refuse("content", "bytes, or None for the file at its path")
    row = -1 if values["row"] is None else int(values["row"])
    return Example(**values | {"path": path, "row": row, "fault": faults[0] if faults else None})


def _text(value: object) -> str | None:
    """Return text or a number as text, and None for what stands for a missing value: empty text, not a number.

    Raises:
        TypeError: it is neither.
    """
    if value is None or isinstance(value, str):
        return str(value) if value else None
    if isinstance(value, Integral):
        return str(int(value))
    if not isinstance(value, Real):
        raise TypeError
    number = float(value)
    return None if number != number else str(int(number)) if number.is_integer() else str(number)  # noqa: PLR0124 - NaN
