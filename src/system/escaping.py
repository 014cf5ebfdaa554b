"""Text of somewhere else as Markdown that GitHub shows as it is: no mention, reference, link, tag, table border or heading.

The one escaper of the house, of the standard library alone: what stands beside a token uses it too. Sources: GitHub Flavored
Markdown 0.29; what GitHub makes of text after that (mentions, issue numbers, addresses, emoji, mathematics) is in "Basic
writing and formatting syntax" of its documentation.
"""

import re
import unicodedata

_LONGEST = 500  # characters of one piece of text
_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")  # colours, cursor moves, titles
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn"}  # controls, direction marks, half characters: they hide what a text says
_JOINT = "&#8203;"  # a space of no width: ends a word for what GitHub looks for in finished text
_MARKUP = re.compile(r"[\\`*\[\]~|<>&$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_REFERENCE = re.compile(
    r"@(?=\S)|#(?=[A-Za-z0-9])|\bGH(?=-\d)|:(?=//)|\bwww(?=\.)|:(?!\d\d:)(?=[a-z0-9_+-]+:)", re.IGNORECASE
)
_OPENING = re.compile(r"(?=[-+](?:\s|$)|--|=|#|\d+[.)](?:\s|$))")  # a list, a rule, a heading
_ADDRESS = re.compile(r"https?://[A-Za-z0-9.\-:\[\]]+(/[A-Za-z0-9._~/\-?=&%#+]*)?")


def escape(text: str, longest: int = _LONGEST) -> str:
    """Return text for a line, a table's cell or the inside of an HTML tag, on one line, cut at `longest` characters."""
    signs: list[str] = []
    text, end = plain(text, longest), 0
    for found in re.finditer(f"(?P<markup>{_MARKUP.pattern})|{_REFERENCE.pattern}", text, re.IGNORECASE):
        coded = f"&#{ord(found[0])};" if len(found[0]) == 1 else found[0]
        signs += [text[end : found.start()], coded, "" if found["markup"] else _JOINT]
        end = found.end()
    return (_JOINT if _OPENING.match(text) else "") + "".join(signs) + text[end:]


def code(text: str, longest: int = _LONGEST) -> str:
    """Return text as code on one line: between back-ticks where nothing in it could end them, else as the HTML tag."""
    text = plain(text, longest)
    return f"`{text}`" if text and not {"`", "|"} & set(text) else f"<code>{escape(text, longest)}</code>"


def prose(text: str, longest: int = 4 * _LONGEST) -> str:
    """Return a sentence on one line; what stands between back-ticks in it, as a command does, stays code."""
    parts = re.split(r"`([^`]+)`", plain(text, longest))
    if len(parts) == 1:
        return escape(text, longest)
    escaped = (code(part) if i % 2 else _spaced(part, longest) for i, part in enumerate(parts))
    return "".join(escaped)


def _spaced(part: str, longest: int) -> str:
    """Escape a part of a line; the space that parts it from its neighbours is not the end of a text."""
    return f"{' ' if part[:1] == ' ' else ''}{escape(part, longest)}{' ' if part.strip() and part[-1:] == ' ' else ''}"


def link(text: str, address: str) -> str:
    """Return a link; an address that is not plain http is no link, and its text stands alone."""
    return f"[{escape(text)}]({address})" if _ADDRESS.fullmatch(address) else escape(text)


def fenced(text: str, language: str = "text") -> str:
    """Return lines as a block of code that no line of them can end."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def plain(text: str, longest: int = _LONGEST) -> str:
    """Return text on one line, without what cannot be seen, cut at `longest` characters."""
    text = " ".join(_visible(text[: 4 * longest]).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def last_lines(text: str, count: int = 40, longest: int = 4000) -> str:
    """Return the last lines of a log as a terminal would show them, without colours and control characters."""
    kept: list[str] = []
    for line in reversed(text[-4 * longest :].replace("\r\n", "\n").strip("\n").split("\n")[-count:]):
        shown = _visible(line.rstrip("\r").rsplit("\r", 1)[-1])[:_LONGEST].rstrip()  # a progress bar's last state
        longest -= len(shown) + 1
        if longest < 0:
            break
        kept.append(shown)
    return "\n".join(reversed(kept))


def _visible(text: str) -> str:
    shown = _TERMINAL.sub("", text).replace("\t", "    ").replace("\n", " ")
    return "".join("\ufffd" if unicodedata.category(sign) in _UNSEEN else sign for sign in shown)
