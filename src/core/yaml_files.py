"""YAML that a commit or a person brings, read within bounds: aliases can make a small file stand for endless values."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent

from src.core.command import UserError

_LARGEST = 2**19  # characters, or bytes
_MOST = 100_000  # values, each counted as often as an alias repeats it
_DEEPEST = 50  # collections inside each other


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        FileNotFoundError: it is missing.
        UserError: as `parse_yaml`.
    """
    return parse_yaml(path.read_bytes(), path)


def parse_yaml(text: str | bytes, where: Path | str) -> Any:
    """Read YAML that lies at `where`: mappings, lists, and plain values.

    Raises:
        UserError: it is no YAML, too large, too deep, or stands for too many values by its aliases.
    """
    try:
        fault = _excess(text)
        if not fault:
            return YAML(typ="safe", pure=True).load(text)
    except Exception as error:  # ruamel raises almost any class for odd input
        fault = " ".join(str(error).split())[:200]
    raise UserError(f"{where} is not valid YAML ({fault}): mend it, or restore it with git checkout {where}")


def _excess(text: str | bytes) -> str:
    """Say which bound the text breaks, or nothing: counted as it is parsed, before any value is made."""
    if len(text) > _LARGEST:
        return f"its size is {len(text):,}, allowed are {_LARGEST:,}"
    repeated: dict[str, int] = {}  # values that an anchor stands for
    opened: list[tuple[str | None, int]] = []  # anchor of each collection that has not ended, and the count before it
    count = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, AliasEvent):
            if event.anchor not in repeated:
                return f"the alias *{event.anchor} stands for nothing that ends before it"
            count += repeated[event.anchor]
        elif isinstance(event, NodeEvent):
            count += 1
            if isinstance(event, CollectionStartEvent):
                opened.append((event.anchor, count - 1))
            elif event.anchor:
                repeated[event.anchor] = 1
        elif isinstance(event, CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor:
                repeated[anchor] = count - before
        if count > _MOST:
            return f"with its aliases it holds more than {_MOST:,} values"
        if len(opened) > _DEEPEST:
            return f"more than {_DEEPEST} lists and mappings lie inside each other"
    return ""
