"""Values put into the text of a params file, of which remarks, order and empty lines stay as a person wrote them."""

from collections.abc import Callable, Mapping
from functools import reduce
from io import StringIO
from operator import getitem
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.nodes import MappingNode, Node
from ruamel.yaml.representer import RoundTripRepresenter

Place = tuple[str, ...]
_REMARKS = 29  # column of the remark behind a new key


class _Representer(RoundTripRepresenter):  # type: ignore[misc]
    """Writes null as null, not as nothing."""


_Representer.add_representer(
    type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
)


def put(text: str, values: Mapping[Place, Any], remark: Callable[[Place], str] = lambda _: "") -> str:
    """Return a text with other values, such as `{("train", "augment", "rotate"): 5}`.

    A new key gets a line of its own at the begin of its section, with what `remark` says of it; a new section comes last.
    What is equal already stays as it is written; else the text gets the spaces of ruamel.yaml.
    """
    content = _yaml().load(text)
    for path, value in values.items():
        *sections, key = path
        place = content
        for name in sections:
            if place is content and name not in place:
                place[name] = CommentedMap()
                place.yaml_set_comment_before_after_key(name, before="\n")
            elif name not in place:
                place.insert(0, name, CommentedMap())
            elif not isinstance(place[name], Mapping):
                place[name] = CommentedMap()
            place = place[name]
        wanted = _yaml().load(written(value)) if isinstance(value, dict | list) else value
        if key not in place:
            place.insert(0, key, wanted)
            if remark(path):
                place.yaml_add_eol_comment(remark(path), key, column=_REMARKS)
        elif same(place[key], value):
            continue
        else:
            place[key] = wanted
        text = ""
    return text or _dumped(content)


def taken_out(text: str, path: Place) -> str:
    """Return a text without a key and what is below it; all other lines stay as they are."""
    key = value = YAML().compose(text)
    for name in path:
        pairs = value.value if isinstance(value, MappingNode) else []
        key, value = next(((one, other) for one, other in pairs if one.value == name), (key, None))
    if value is None:
        return text
    content, wanted = _yaml().load(text), YAML(typ="safe").load(text)
    for each in (content, wanted):
        del reduce(getitem, path[:-1], each)[path[-1]]
    lines = text.split("\n")
    result = "\n".join(lines[: key.start_mark.line] + lines[_last_line(value) + 1 :])
    return result if YAML(typ="safe").load(result) == wanted else _dumped(content)  # several keys on one line


def same(one: Any, other: Any) -> bool:
    """Return whether two values of a params file mean the same: 10 and 10.0 do, 1 and true do not."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def written(value: Any) -> str:
    """Return a value as it stands on one line."""
    yaml, target = _yaml(), StringIO()
    yaml.default_flow_style = True
    yaml.dump(value, target)
    return target.getvalue().removesuffix("...\n").strip()


def _last_line(node: Node) -> int:
    """Return the line on which a node ends, without the remarks and empty lines below it."""
    if isinstance(node, MappingNode) and not node.flow_style and node.value:
        key, value = node.value[-1]
        return max(int(key.start_mark.line), _last_line(value))
    return int(node.end_mark.line)


def _yaml() -> YAML:
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 4096  # a long list stays on its line
    return yaml


def _dumped(content: Any) -> str:
    target = StringIO()
    _yaml().dump(content, target)
    return target.getvalue()
