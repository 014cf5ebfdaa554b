"""Put a recipe, a file that `extends` params.yaml, into params.yaml itself. Called by `make reproduce PARAMS=...`.

DVC watches params.yaml alone: so the pipeline runs what the recipe says, and committing the file makes it the project's.
"""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter

from src.files import replacing
from src.params import content, load


class _Representer(RoundTripRepresenter):  # type: ignore[misc]
    """Writes null as null, not as nothing."""


_Representer.add_representer(
    type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
)


def adopt(recipe: Path, target: Path) -> list[str]:
    """Write the values of a recipe into a file of params, whose remarks stay.

    Returns:
        A line for each key that changed: name, value before, value now.

    Raises:
        UserError: either file is missing, no YAML or not valid; nothing has been changed then.
    """
    load(recipe)
    load(target)
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.width = 4096  # a long list stays on its line
    values = yaml.load(target.read_text())
    told = _put(values, content(recipe), "")
    if told:
        with replacing(target) as fresh:
            yaml.dump(values, fresh)
    return told


def _put(values: dict[str, Any], wanted: dict[str, Any], section: str) -> list[str]:
    """Bring a section up to what is wanted, and say what that changed."""
    told = []
    for key, value in wanted.items():
        before = values.get(key)
        if isinstance(value, dict) and isinstance(before, dict) and key != "space":
            told += _put(before, value, f"{section}{key}.")
        elif before != value:
            told.append(f"{section}{key}: {_shown(before)} -> {_shown(value)}")
            values[key] = value
    return told


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
