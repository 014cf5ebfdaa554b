"""What a pull request may change without a second person is a list: all else is the engine, and protected.

A change of the engine waits for the label `engine: reviewed`. This stands beside tokens that write: standard library alone.
"""

import re
from collections.abc import Iterable

PARAMS = "params.yaml"
FREE = (
    "data/",
    "data.dvc",
    PARAMS,
    "src/data.py",
    "src/model.py",
    "reference.json",
    "dvc.lock",
    "metrics.json",
    "manifest.json",
    "docs/",
    "README.md",
    "tests/test_yours.py",
)
RESULTS = ("dvc.lock", "metrics.json", "manifest.json")  # of one run: they belong together
RULES = ("evaluate", "gates")  # sections of params.yaml that are protected all the same
_FORM = "its form"  # a link, another document, quoted or merged keys, an indented root: what may hide a section
_KEY = re.compile(r"([A-Za-z_]\w*):(?=\s|$)")
_BLANK = " \t"  # of YAML; Python counts more
_QUOTED = r"""(?:"[^"\\]*"|'[^']*')"""
_ITEM = rf"(?:{_QUOTED}|[^\s'\"\[\]{{}},:#]+)"
_ON_ONE_LINE = re.compile(  # no quotes, or those of the whole value: what else has some may go on in the next line
    rf"[^'\"]*(?:[ \t]#.*)?|\s*[\w.-]+:[ \t]+(?:{_QUOTED}|\[ *{_ITEM}(?: *, *{_ITEM})* *\])[ \t]*(?:[ \t]#.*)?"
)


def protected(paths: Iterable[str]) -> list[str]:
    """Return those of a change's paths that are not free. Of a renamed file both names belong into `paths`."""
    folders = tuple(name for name in FREE if name.endswith("/"))
    engine = set()
    for path in paths:
        plain = not {"", ".", ".."} & set(path.split("/"))
        if not (plain and (path in FREE or path.startswith(folders))):
            engine.add(path)
    return sorted(engine)


def rules_changed(before: str, after: str) -> list[str]:
    """Return which protected sections differ between two texts of params.yaml, as `params.yaml: section`.

    YAML is not parsed: whatever stands at the left margin and is no plain key counts as changed with its text, and so does
    whatever may be quoted over several lines. Both texts are as they lie in the commit: not stripped.
    """
    then, now = _rules(before), _rules(after)
    return [f"{PARAMS}: {name}" for name in sorted({*then, *now}) if then.get(name) != now.get(name)]


def _rules(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    name = _FORM
    for line in text.splitlines():
        if not line.strip(_BLANK) or line.lstrip(_BLANK).startswith("#"):
            continue
        if line[0] not in _BLANK:
            key = _KEY.match(line)
            name = key[1] if key else _FORM
        said = re.sub(r"[ \t]+#[^'\"]*$", "", line.rstrip(_BLANK))
        if name in (*RULES, "extends", _FORM):
            found.setdefault(name, []).append(said)
        if name != _FORM and not _ON_ONE_LINE.fullmatch(line):
            found.setdefault(_FORM, []).append(said)
    return found
