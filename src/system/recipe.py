"""Put a recipe, a file that `extends` params.yaml, into params.yaml itself. Called by `make reproduce PARAMS=...`.

DVC watches params.yaml alone: so the pipeline runs what the recipe says, and committing the file makes it the project's.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.core.files import replacing
from src.core.params import content
from src.system.params import filled, load, remark
from src.system.params_text import Place, put, same


def adopt(recipe: Path, target: Path) -> list[str]:
    """Write the values of a recipe into a file of params, whose remarks stay.

    Returns:
        A line for each key that changed: name, value before, value now.

    Raises:
        UserError: either file is missing, no YAML or not valid; nothing has been changed then.
    """
    load(recipe)
    load(target)
    text = target.read_text()
    values = dict(_changes(filled(content(target)), content(recipe)))
    if values:
        with replacing(target) as fresh:
            fresh.write_text(put(text, {path: now for path, (_, now) in values.items()}, remark))
    return [f"{'.'.join(path)}: {_shown(before)} -> {_shown(now)}" for path, (before, now) in values.items()]


def _changes(
    present: dict[str, Any], wanted: dict[str, Any], section: Place = ()
) -> Iterator[tuple[Place, tuple[Any, Any]]]:
    """Yield place, value before and value now of each key that is wanted otherwise."""
    for key, value in wanted.items():
        before, path = present[key], (*section, key)
        if isinstance(before, dict) and key != "space":
            yield from _changes(before, value or {}, path)
        elif not same(before, value):
            yield path, (before, value)


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
