"""A report as GitHub's Markdown: every text escaped, no line that GitHub would read as more than it is, never too long.

Sources: GitHub Flavored Markdown 0.29; what GitHub makes of text after that (mentions, issue numbers, addresses, emoji,
mathematics) is in "Basic writing and formatting syntax" of its documentation.
"""

import re

from src.reporting.document import (
    Alert,
    Block,
    Bold,
    Bullets,
    Chart,
    Code,
    Document,
    Fold,
    Line,
    Link,
    Listing,
    Mark,
    Paragraph,
    Part,
    Picture,
    Section,
    Table,
    parts,
    plain,
)

LARGEST = 60_000  # GitHub takes 65,536 characters; the rest is for the marker and for CML's own line
_ICONS = {"pass": "✅", "fail": "❌", "investigate": "🔎"}

_ADDRESS = re.compile(r"https?://[A-Za-z0-9.\-:\[\]]+(/[A-Za-z0-9._~/\-?=&%#+]*)?")
_PICTURE_LINE = re.compile(r"!\[[^\]\n]*\]\(pictures/[A-Za-z0-9_.-]+\)")
_SIMPLE_CODE = re.compile(r"[^`|\\<>&\s][^`|\\<>&]*")
_SIGNS = {**{sign: f"\\{sign}" for sign in "\\`*[]~"}, "|": "\\|", "<": "&lt;", ">": "&gt;", "&": "&amp;", "$": "&#36;"}
_JOINT = "&#8203;"  # a space of no width: ends a word for what GitHub looks for in finished text


def render(document: Document, largest: int = LARGEST) -> str:
    """Return the report in at most `largest` characters; sections that do not fit are left out from the end, and named."""
    head = "\n\n".join([f"## {_line(document.headline)}", *(_block(block) for block in document.head)])
    sections = [_section(section) for section in document.sections]
    for kept in range(len(sections), -1, -1):
        text = "\n\n".join([head, *sections[:kept], *_left_out(document.sections[kept:])]) + "\n"
        if len(text) <= largest:
            return text
    return f"## {_line(document.headline)}\n\nThe rest does not fit into a comment: it is in `report.html`.\n"


def _left_out(sections: tuple[Section, ...]) -> list[str]:
    names = ", ".join(section.title for section in sections)
    return [f"Left out, since a comment has no more room: {escape(names)}. `report.html` has it all."] if sections else []


def without_pictures(text: str) -> str:
    """Return the Markdown without its picture lines."""
    return re.sub(rf"(?m)^{_PICTURE_LINE.pattern}\n\n?", "", text)


def escape(text: str) -> str:
    """Return text that GitHub shows as it is, on one line."""
    shown = "".join(_SIGNS.get(sign, sign) for sign in plain(text))
    shown = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", shown)
    shown = re.sub(r"@(?=\S)", f"@{_JOINT}", shown)
    shown = re.sub(r"(?<!&)#(?=[A-Za-z0-9])", f"#{_JOINT}", shown)
    shown = re.sub(r"(?i)\b(GH-)(?=\d)|(:)(?=//)|(www)(?=\.)", rf"\g<0>{_JOINT}", shown)
    return re.sub(r":(?!\d\d:)(?=[a-z0-9_+\\-]+:)", f":{_JOINT}", shown)


def _section(section: Section) -> str:
    return "\n\n".join([f"### {escape(section.title)}", *(_block(block) for block in section.blocks)])


def _block(block: Block) -> str:
    match block:
        case Paragraph(line):
            return _opening(line)
        case Alert(kind, line):
            return f"> [!{'WARNING' if kind == 'warning' else 'NOTE'}]\n> {_opening(line)}"
        case Bullets(items):
            return "\n".join(f"- {_opening(item)}" for item in items)
        case Table():
            return _table(block)
        case Listing(text, language):
            return _fenced(text, language)
        case Chart(source):
            return _fenced(source, "mermaid")
        case Picture(alt, name):
            return f"![{escape(alt).replace('!', '')}](pictures/{name})"
        case Fold(summary, blocks):
            inside = "\n\n".join(_block(inner) for inner in blocks)
            return f"<details><summary>{_html(summary)}</summary>\n\n{inside}\n\n</details>"


def _table(block: Table) -> str:
    rule = ["---:" if side == "r" else "---" for side in block.align]
    rows = [[escape(name) for name in block.header], rule, *([_line(cell) for cell in row] for row in block.rows)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + (f"\n\n{_opening(block.more)}" if block.more else "")


def _opening(line: Line) -> str:
    """A line that opens a block: one that begins like a list, a heading or a rule must not become it."""
    return re.sub(r"^(?=[-+=#]|\d+[.)])", _JOINT, _line(line))


def _line(line: Line) -> str:
    return "".join(_part(part) for part in parts(line))


def _part(part: Part) -> str:
    match part:
        case Bold(text):
            return f"**{escape(text)}**"
        case Code(text):
            return _code(text)
        case Mark(outcome):
            return f"{_ICONS.get(outcome, '')} {escape(outcome)}".strip()
        case Link(text, address):
            return f"[{escape(text)}]({address})" if _ADDRESS.fullmatch(address) else escape(text)
        case _:
            # the space that parts two parts of a line is not the end of a text
            before, after = part[: len(part) - len(part.lstrip())], part[len(part.rstrip()) :]
            return f"{' ' if before else ''}{escape(part)}{' ' if after and part.strip() else ''}"


def _code(text: str) -> str:
    """Between back-ticks where nothing in the text could end them or a table's cell, else as the HTML tag."""
    text = plain(text)
    if _SIMPLE_CODE.fullmatch(text) and not text.endswith(" "):
        return f"`{text}`"
    return f"<code>{_html(text)}</code>"


def _html(text: str) -> str:
    """Escape for inside an HTML tag, where Markdown still reads along: everything that is no letter or digit."""
    return "".join(sign if sign.isalnum() or sign in " ,()+-%" else f"&#{ord(sign)};" for sign in plain(text))


def _fenced(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
