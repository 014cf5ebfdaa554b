"""Typed JSON files: a frozen dataclass says which keys a file has, of which types; fields that it does not know are ignored.

The standard library alone: what stands beside a token reads them too.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Self, Union, get_args, get_origin, get_type_hints

from src.core.command import UserError
from src.core.files import read_json


@dataclass(frozen=True)
class Record:
    """An object of a JSON file; a field without a default is a key that must be there."""

    @classmethod
    def read(cls, path: Path, made_by: str) -> Self:
        """Read a file that the stage `made_by` wrote.

        Raises:
            UserError: it is missing or no JSON, lacks a key, or a key holds another type.
        """
        required = [field.name for field in fields(cls) if field.default is MISSING and field.default_factory is MISSING]
        return cls.from_json(read_json(path, made_by, required), str(path))

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """Read the text of a file that lies at `where`, as in another commit.

        Raises:
            UserError: as for `read`.
        """
        try:
            value = json.loads(text)
        except ValueError as error:
            raise UserError(f"{where} is not valid JSON ({error}): restore it, or make it again") from None
        return cls.from_json(value, where)

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """Check a value that lies at `where`, a file and perhaps a key in it.

        Raises:
            UserError: a key is missing or holds another type.
        """
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {_shown(value)}, expected an object: restore the file, or make it again")
        types, found = get_type_hints(cls), {}
        for field in fields(cls):
            if field.name in value:
                found[field.name] = _checked(value[field.name], types[field.name], f"{where}: {field.name}")
            elif field.default is MISSING and field.default_factory is MISSING:
                raise UserError(f"{where} lacks {field.name}: restore the file, or make it again")
        return cls(**found)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, by the names of the fields."""
        return {one.name: _plain(getattr(self, one.name)) for one in fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _checked(value: Any, kind: Any, where: str) -> Any:
    """Return a JSON value as the type `kind`; UserError where it is of another."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        return _checked(value, next(one for one in arguments if one is not NoneType), where)
    if is_dataclass(kind) and isinstance(kind, type) and issubclass(kind, Record):
        return kind.from_json(value, where)
    if origin is dict and isinstance(value, dict):
        return {key: _checked(one, arguments[1], f"{where}.{key}") for key, one in value.items()}
    if origin is list and isinstance(value, list):
        return [_checked(one, arguments[0], f"{where}[{row}]") for row, one in enumerate(value)]
    if origin is tuple and isinstance(value, list | tuple):
        parts = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(value) == len(parts):
            return tuple(_checked(one, part, where) for one, part in zip(value, parts, strict=True))
    expected = (int, float) if kind is float else (origin or kind)
    finite = not isinstance(value, float) or math.isfinite(value)  # no comparison refuses NaN
    if origin is not tuple and finite and isinstance(value, expected) and (kind is bool or not isinstance(value, bool)):
        return value
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    raise UserError(f"{where} is {_shown(value)}, expected {name}: restore the file, or make it again")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
