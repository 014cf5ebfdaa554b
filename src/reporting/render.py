"""A report as Markdown: one template a section, in which every value is escaped unless a filter of this module wrote it."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from src.reporting import words
from src.system import escaping

LARGEST = 60_000  # GitHub takes 65,536 characters; the rest is for the marker and for CML's own line
TEMPLATES = Path(__file__).parent / "templates"
_NONE = "—"  # where a side has no such number
_LINE = "\f"  # ends a line that must stay as it is; no text holds one, as escaping leaves no control character


class Markdown(Markup):
    """What a template shows as it is, since it is escaped."""


def _finalize(value: Any) -> Markup:
    return value if isinstance(value, Markup) else Markdown(_NONE if value is None else escaping.escape(str(value)))


def _number(write: Callable[[float], str]) -> Callable[[float | None], str | None]:
    return lambda value: None if value is None or not math.isfinite(value) else write(value)


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    finalize=_finalize,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
    "bold": lambda value: Markdown(_NONE) if value is None else Markdown(f"**{_finalize(value)}**"),
    "code": lambda text: Markdown(escaping.code(str(text))),
    "fenced": lambda text: Markdown(escaping.fenced(text).replace("\n", _LINE)),
    "link": lambda text, address: Markdown(escaping.link(text, address)),
    "prose": lambda text: Markdown(escaping.prose(text)),
    "count": words.count,
    "listed": words.listed,
    **{write.__name__: _number(write) for write in words.NUMBERS},
}
_ENVIRONMENT.globals |= {"place": words.place, "machine": words.machine}


def section(template: str | Path, **values: Any) -> str:
    """Return the Markdown of a template of ours, by name, or of a file; empty where it has nothing to say."""
    known = isinstance(template, str)
    made = _ENVIRONMENT.get_template(f"{template}.md") if known else _ENVIRONMENT.from_string(Path(template).read_text())
    text = made.render(values)
    return re.sub(r"\n{3,}", "\n\n", text).strip().replace(_LINE, "\n")


def joined(head: str, sections: Sequence[str], largest: int = LARGEST) -> str:
    """Return the report in at most `largest` characters; sections that do not fit are left out from the end, and named."""
    for kept in range(len(sections), -1, -1):
        names = ", ".join(part.partition("\n")[0].lstrip("# ") for part in sections[kept:])
        left_out = [f"Left out, since a comment has no more room: {names}. `report.html` has it all."] if names else []
        text = "\n\n".join([head, *sections[:kept], *left_out]) + "\n"
        if len(text) <= largest:
            return text
    return f"{head.partition(chr(10))[0]}\n\nThe rest does not fit into a comment: it is in `report.html`.\n"
