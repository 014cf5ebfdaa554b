"""A text of somewhere else as Markdown that GitHub shows as it is: no mention, reference, link, tag or table border."""

import re

from src.github.fork_words import shown

_JOINT = "&#8203;"  # a space of no width: ends a word for what GitHub looks for in finished text
_HARMLESS = " ,.()%/;'\"=?!-"


def prose(text: str) -> str:
    """Return a text on one line; what stands between back-ticks in it, as a command does, stays code."""
    parts = re.split(r"`([^`]+)`", " ".join(text.split()))
    for i, part in enumerate(parts):
        if i % 2:  # between back-ticks nothing is read but a table's border, which even there would end the cell
            whole = part.isprintable() and "|" not in part and part.strip() == part
            parts[i] = f"`{part}`" if whole else shown(part)
        else:
            parts[i] = _plain(part)
    return "".join(parts)


def _plain(text: str) -> str:
    signs = (sign if sign.isprintable() else "?" for sign in text)
    coded = "".join(sign if sign.isalnum() or sign in _HARMLESS else f"&#{ord(sign)};" for sign in signs)
    coded = re.sub(r"&#(64|35|58);", rf"&#\1;{_JOINT}", coded)  # @ # :
    coded = re.sub(r"(?i)\b(GH)(?=-\d)|\b(www)(?=\.)", rf"\g<0>{_JOINT}", coded)
    return re.sub(r"^(?=[-=]|\d+[.)])", _JOINT, coded)  # a line that begins like a list or a rule
