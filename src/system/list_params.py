"""Print every key of params.yaml with its value and what it means, as YAML: `make params`.

    python -m src params [--params params/cifar10.yaml]

What a file sets is marked `set` behind its value; all else has its default.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from src.core.params import content
from src.system.params import filled, load, remark
from src.system.params_text import Place, same, written


def listing(path: Path) -> str:
    """Return all params of a file; as a file of params the text says the same as that file.

    Raises:
        UserError: the file cannot be used.
    """
    load(path)
    own = content(path)
    head = f"# Every key, its value and what it means. Those marked `set` stand in {path}; the others have their defaults."
    return "\n".join([head, *_lines(filled(own), own, filled({}))]) + "\n"


def _lines(values: Mapping[str, Any], own: Any, defaults: Mapping[str, Any], above: Place = ()) -> Iterator[str]:
    indent = "  " * len(above)
    for key, value in values.items():
        mine = own.get(key) if isinstance(own, dict) else None
        if isinstance(value, dict) and key != "space":
            yield from ([] if above else [""])
            yield f"{f'{indent}{key}:':27}  # {remark((*above, key))}"
            yield from _lines(value, mine, defaults[key], (*above, key))
            continue
        is_set = isinstance(own, dict) and key in own
        default = "" if same(value, defaults[key]) else f", default {written(defaults[key])}"
        told = f"set{default}: {remark((*above, key))}" if is_set else remark((*above, key))
        yield f"{f'{indent}{key}: {written(value)}':27}  # {told}"


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description="Print every key of params.yaml, with its value and what it means.")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="another file of params, such as a recipe")
    print(listing(parser.parse_args().params), end="")
