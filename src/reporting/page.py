"""Markdown of ours as one HTML file that needs nothing else: pictures inside, no script, no address it would load from."""

import base64
import re
from html import escape, unescape
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from src.core.files import write_bytes
from src.reporting.render import TEMPLATES

_TAGS = re.compile(r"(</?(?:details|summary|code)>)")  # what our templates write as HTML; all else is shown as text
_ALERT = re.compile(r"\[!(NOTE|WARNING)\]\n")


def write(path: Path, text: str, verdict: str = "") -> None:
    """Write `path`, a page of Markdown with the pictures that lie beside it; `verdict` colours its first line."""
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = [token for token in reader.parse(text) if token.info != "mermaid"]  # which GitHub alone draws
    for place, token in enumerate(tokens):
        if token.type.startswith("heading_") and text.startswith("## "):
            token.tag = f"h{int(token.tag[1]) - 1}"  # of a comment, whose headings begin at the second level
        elif token.type == "blockquote_open" and (found := _ALERT.match(tokens[place + 2].content)):
            token.attrSet("class", found[1].lower())
            tokens[place + 2].children = (tokens[place + 2].children or [])[2:]
    for token in [*tokens, *(inner for block in tokens for inner in block.children or [])]:
        if token.type in ("html_block", "html_inline"):
            parts = enumerate(_TAGS.split(token.content))
            token.content = "".join(part if i % 2 else escape(unescape(part)) for i, part in parts)
        elif token.type == "image":
            token.type, token.content = "html_inline", _picture(token, path.parent)
    content = reader.renderer.render(tokens, reader.options, {})
    title, style = (f"{verdict}: model report" if verdict else path.stem), (TEMPLATES / "page.css").read_text()
    filled = {"title": escape(title), "kind": escape(verdict), "style": style, "content": content}
    frame = (TEMPLATES / "page.html").read_text()
    write_bytes(path, re.sub(r"\{(title|kind|style|content)\}", lambda found: filled[found[1]], frame).encode())


def _picture(token: Token, folder: Path) -> str:
    """Return a picture as data with its words below; the words alone where it is no file of ours."""
    alt, path = escape(unescape(token.content)), folder / str(token.attrs["src"])
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        return alt
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{alt}" src="data:image/png;base64,{content}"><small>{alt}</small>'
