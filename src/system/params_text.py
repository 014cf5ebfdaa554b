"""Values put into the text of a params file, of which all else stays as a person wrote it."""

from collections.abc import Callable, Mapping
from functools import reduce
from io import StringIO
from operator import getitem
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


def put(text: str, values: Mapping[Place, Any], remark: Callable[[Place], str] = lambda _: "") -> str:
    """Return a text with other values, such as `{("train", "augment", "rotate"): 5}`.

    One single value in place of another changes nothing but its own letters, and the remark behind it stays in its column.
    A new key gets a line of its own at the end of its section, with what `remark` says of it. For a list or a section the
    file is written anew: remarks and order stay, spaces and quotes may not. What is equal already stays as it is written.
    """
    for path, value in values.items():
        if not same(_found(YAML(typ="safe").load(text), path), value):
            text = _in_place(text, path, value) or _added(text, path, value, remark(path)) or _anew(text, path, value)
    return text


def taken_out(text: str, path: Place) -> str:
    """Return a text without a key and what is below it; all other lines stay as they are."""
    key, node = _node(YAML().compose(text), path)
    if node is None:
        return text
    wanted = YAML(typ="safe").load(text)
    del reduce(getitem, path[:-1], wanted)[path[-1]]
    lines = text.split("\n")
    result = "\n".join(lines[: key.start_mark.line] + lines[_last_line(node) + 1 :])
    if _reads_as(result, wanted):
        return result
    yaml, target = _yaml(), StringIO()
    content = yaml.load(text)
    del reduce(getitem, path[:-1], content)[path[-1]]
    yaml.dump(content, target)
    return target.getvalue()


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


def _added(text: str, path: Place, value: Any, remark: str) -> str | None:
    """Add a line for a new key at the end of its section, and lines for new sections; None where that is not possible."""
    there, key, section = 0, None, YAML().compose(text)
    while isinstance(section, MappingNode) and there < len(path):
        pair = next((pair for pair in section.value if pair[0].value == path[there]), None)
        if pair is None:
            break
        (key, section), there = pair, there + 1
    lines = text.rstrip("\n").split("\n")
    if isinstance(section, MappingNode) and section.value and not section.flow_style:
        column, after = section.value[0][0].start_mark.column, _last_line(section)
    elif key is not None and isinstance(section, ScalarNode) and section.start_mark.index == section.end_mark.index:
        column, after = key.start_mark.column + 2, key.start_mark.line  # a section with nothing below it
    else:
        return None
    if there == len(path):
        return None
    if there == 0:  # a new section: at the end, under an empty line
        after, lines = len(lines), [*lines, ""]
    new = [f"{' ' * (column + 2 * depth)}{name}:" for depth, name in enumerate(path[there:])]
    new[-1] += f" {written(value)}"
    new[-1] = f"{new[-1]:27}  # {remark}" if remark else new[-1]
    result = "\n".join([*lines[: after + 1], *new, *lines[after + 1 :], ""])
    return result if _reads_as(result, _with(YAML(typ="safe").load(text), path, value)) else None


def _last_line(node: Node) -> int:
    """Return the line on which a node ends, without the remarks and empty lines below it."""
    if isinstance(node, MappingNode) and not node.flow_style and node.value:
        key, value = node.value[-1]
        return max(int(key.start_mark.line), _last_line(value))
    return int(node.end_mark.line)


def written(value: Any) -> str:
    """Return a value as it stands on one line."""
    yaml, target = _yaml(), StringIO()
    yaml.default_flow_style = True
    yaml.dump(value, target)
    return target.getvalue().removesuffix("...\n").strip()


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
        if place.get(name) is None:
            place[name] = {}
        place = place[name]
    place[path[-1]] = value
    return content
