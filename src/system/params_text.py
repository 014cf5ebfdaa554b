"""Values put into the text of a params file, of which all else stays as a person wrote it."""

from collections.abc import Mapping
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

Place = tuple[str, ...]
_NOTHING = object()


class _Representer(RoundTripRepresenter):  # type: ignore[misc]
    """Writes null as null, not as nothing."""


_Representer.add_representer(
    type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
)


def put(text: str, values: Mapping[Place, Any]) -> str:
    """Return a text with other values, such as `{("train", "augment", "rotate"): 5}`.

    One single value in place of another changes nothing but its own letters, and the remark behind it stays in its column.
    For a list, a section or a new key the file is written anew: remarks and order stay, spaces and quotes may not. What is
    equal already stays as it is written.
    """
    for path, value in values.items():
        if not same(_found(YAML(typ="safe").load(text), path), value):
            text = _in_place(text, path, value) or _anew(text, path, value)
    return text


def same(one: Any, other: Any) -> bool:
    """Return whether two values of a params file mean the same: 10 and 10.0 do, 1 and true do not."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _in_place(text: str, path: Place, value: Any) -> str | None:
    """Replace the letters of one value; return None where that is not possible."""
    key, node = _node(YAML().compose(text), path)
    if isinstance(value, dict | list) or not isinstance(node, ScalarNode):
        return None
    quote = node.style if isinstance(value, str) and node.style in ("'", '"') else None
    start, end = node.start_mark.index, node.end_mark.index
    if start == end:  # a key without a value
        start = end = text.index(":", key.end_mark.index) + 1
    space = " " if text[start - 1] == ":" else ""
    written = space + _scalar(value, quote)
    result = text[:start] + written + _moved(text[end:], len(written) - (end - start))
    wanted = _with(YAML(typ="safe").load(text), path, value)
    return result if _reads_as(result, wanted) else None  # an alias is another key's value, too


def _moved(rest: str, by: int) -> str:
    """Keep a remark in its column, where there is room for that."""
    gap = len(rest) - len(rest.lstrip(" "))
    return " " * max(1, gap - by) + rest[gap:] if gap and rest[gap : gap + 1] == "#" else rest


def _reads_as(text: str, wanted: Any) -> bool:
    try:
        return bool(YAML(typ="safe").load(text) == wanted)
    except YAMLError:
        return False


def _node(node: Node, path: Place) -> tuple[Node, Node | None]:
    """Return the nodes of a key and of its value."""
    key, value = node, node
    for name in path:
        pairs = value.value if isinstance(value, MappingNode) else []
        key, value = next(((one, other) for one, other in pairs if one.value == name), (key, None))
    return key, value


def _scalar(value: Any, quote: str | None) -> str:
    yaml = _yaml()
    written = StringIO()
    node = yaml.representer.represent_data(value)
    node.style = quote or node.style
    yaml.serialize(node, written)
    return written.getvalue().removesuffix("...\n").strip()


def _anew(text: str, path: Place, value: Any) -> str:
    yaml = _yaml()
    written = StringIO()
    yaml.dump(_with(yaml.load(text), path, value), written)
    return written.getvalue()


def _yaml() -> YAML:
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 4096  # a long list stays on its line
    return yaml


def _found(content: Any, path: Place) -> Any:
    """Return the value at a place; where there is none, what equals nothing."""
    for name in path:
        if not isinstance(content, Mapping) or name not in content:
            return _NOTHING
        content = content[name]
    return content


def _with(content: Any, path: Place, value: Any) -> Any:
    place = content
    for name in path[:-1]:
        place = place.setdefault(name, {})
    place[path[-1]] = value
    return content
