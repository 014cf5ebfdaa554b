"""What a report is made of before it is Markdown or a page: lines of text and a handful of blocks.

Text is always text here. Whoever draws it (markdown.py, page.py) escapes every string, so that a class
name, a path or a line of a log cannot become a mention, a link, a tag or the end of a code block.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_LONGEST = 500  # characters of one piece of text
_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")  # colours, cursor moves, titles
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn"}  # controls, direction marks, half characters: they hide what a text says


@dataclass(frozen=True)
class Bold:
    """What matters most in a line."""

    text: str


@dataclass(frozen=True)
class Code:
    """A name that is typed as it stands: a path, a key, a command."""

    text: str


@dataclass(frozen=True)
class Link:
    """A link; an address that is not plain http is drawn as its text alone."""

    text: str
    address: str


@dataclass(frozen=True)
class Mark:
    """The outcome of a gate or of all: pass, fail, investigate or skipped, so that it is seen from afar."""

    outcome: str


Part = str | Bold | Code | Link | Mark
Line = str | tuple[Part, ...]


@dataclass(frozen=True)
class Paragraph:
    """One paragraph."""

    line: Line


@dataclass(frozen=True)
class Alert:
    """A sentence that must not be overlooked; `kind` is note or warning."""

    kind: str
    line: Line


@dataclass(frozen=True)
class Bullets:
    """A short list."""

    items: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """A table; `align` has one letter a column, l or r. `more` says what is left out below it."""

    header: tuple[str, ...]
    rows: tuple[tuple[Line, ...], ...]
    align: str
    more: str = ""


@dataclass(frozen=True)
class Listing:
    """Lines to be read or copied exactly as they are."""

    text: str
    language: str = "text"


@dataclass(frozen=True)
class Chart:
    """A Mermaid diagram: Markdown only, the page has the picture. Its source holds numbers and our own words, no data."""

    source: str


@dataclass(frozen=True)
class Picture:
    """A picture of the report's `pictures` folder, and what it shows in words."""

    alt: str
    name: str


@dataclass(frozen=True)
class Fold:
    """Blocks that are shown on demand."""

    summary: str
    blocks: "tuple[Block, ...]"


Block = Paragraph | Alert | Bullets | Table | Listing | Chart | Picture | Fold


@dataclass(frozen=True)
class Section:
    """A heading with what belongs to it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A report: the verdict, the line that says it, what follows at once, and sections, the most important first."""

    verdict: str
    headline: Line
    head: tuple[Block, ...]
    sections: tuple[Section, ...]


def table(
    header: Sequence[str], rows: Iterable[Sequence[Line]], align: str, largest: int, more: str = "", total: int = 0
) -> Table:
    """Return a table of at most `largest` rows.

    Args:
        header: one name a column.
        rows: all of them, or the first of `total`.
        align: one letter a column, l or r.
        largest: how many rows are shown.
        more: where the rest is to be found.
        total: how many rows there are, where not all are given.
    """
    cells = [tuple(row) for row in rows]
    left = max(total, len(cells)) - min(largest, len(cells))
    note = f"and {left:,} more{f': {more}' if more else ''}" if left > 0 else ""
    return Table(tuple(header), tuple(cells[:largest]), align, note)


def parts(line: Line) -> tuple[Part, ...]:
    """Return a line as its parts."""
    return (line,) if isinstance(line, str) else line


def plain(text: str, longest: int = _LONGEST) -> str:
    """Return text on one line, without what cannot be seen, cut at `longest` characters."""
    text = " ".join(_visible(text[: 4 * longest]).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def last_lines(text: str, count: int = 40, longest: int = 4000) -> str:
    """Return the last lines of a log as a terminal would show them, without colours and control characters."""
    lines = text[-4 * longest :].replace("\r\n", "\n").strip("\n").split("\n")
    kept: list[str] = []
    for line in reversed(lines[-count:]):
        shown = _visible(line.rstrip("\r").rsplit("\r", 1)[-1])[:_LONGEST].rstrip()  # a progress bar's last state
        longest -= len(shown) + 1
        if longest < 0:
            break
        kept.append(shown)
    return "\n".join(reversed(kept))


def _visible(text: str) -> str:
    shown = _TERMINAL.sub("", text).replace("\t", "    ").replace("\n", " ")
    return "".join("\ufffd" if unicodedata.category(sign) in _UNSEEN else sign for sign in shown)
