"""The one comment of a pull request: made once, updated after that, never a second one, never somebody else's.

    NUMBER=7 python3 -m src comment comment.md

Our comment is known by its first line and by its author. CML posts it (src/github/cml.py) where CML would touch the right
comment; else, and when CML is missing, fails or hangs, GitHub's API posts the same text, and the result says why.
"""

import argparse
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from src.core.command import UserError
from src.github import cml
from src.github.api import GitHub
from src.github.git import BOT
from src.github.status import run_url

MARKER = "<!-- model-report -->"
LARGEST = 65_536  # characters of a comment

_SPARE = 1_000  # for the sentence that says that it was cut, and for what must be closed

Comment = Mapping[str, Any]


@dataclass(frozen=True)
class PostResult:
    """Where the comment is, what posted it, and, if that was not CML, why not."""

    url: str
    by: Literal["cml", "api"]
    why: str


def post(api: GitHub, number: int, markdown: str) -> PostResult:
    """Create or update the one comment of pull request `number`.

    Raises:
        ApiError: GitHub's API refuses, or does not answer.
    """
    text, path = fitted(markdown), f"issues/{number}/comments"
    comments = list(api.pages(path))
    ours = next(filter(_is_ours, comments), None)
    why = _against_cml(ours, comments)
    if not why:
        said = ""
        try:
            folder = Path(os.environ.get("RUNNER_TEMP") or Path.home() / ".cache") / f"cml-{cml.COMMIT[:12]}"
            command = cml.find_or_install(folder)
            with tempfile.TemporaryDirectory(prefix="comment-") as place:
                file = Path(place) / "report.md"
                file.write_text(text, encoding="utf-8")
                said = cml.post(command, api, number, file)
        except UserError as error:
            why = str(error)
        comments = list(api.pages(path))
        printed = re.search(rf"/{number}#issuecomment-(\d+)", said)  # which a list can lag behind
        if printed and int(printed[1]) not in [comment["id"] for comment in comments]:
            comments.append(api.get(f"issues/comments/{printed[1]}"))
        ours = next(filter(_is_ours, comments), None)
        is_there = ours and str(ours["body"] or "").replace("\r\n", "\n").startswith(text.replace("\r\n", "\n").rstrip())
        if ours and is_there and not why:
            return PostResult(str(ours["html_url"]), "cml", "")
        why = why or "CML ended well, but our comment has not this text"
    body = {"body": f"{text.rstrip()}\n\n{cml.watermark()}"}
    made = api.patch(f"issues/comments/{ours['id']}", body) if ours else api.post(path, body)
    return PostResult(str(made["html_url"]), "api", why)


def fitted(markdown: str) -> str:
    """Return the text of the comment: the marker first, and cut at a line where it is longer than a comment may be."""
    whole = markdown if _first_line(markdown) == MARKER else f"{MARKER}\n{markdown}"
    room = LARGEST - len(cml.watermark()) - 2
    if _length(whole) <= room:
        return whole
    kept, used = [], 0
    for line in whole.splitlines():
        used += _length(line) + 1
        if used > room - _SPARE:
            break
        kept.append(line)
    where = f"[the run]({run_url()})" if os.environ.get("GITHUB_RUN_ID") else "the run"
    kept.append(f"{_closings(kept)}\n\n**This comment has no room for the rest of the report: see the summary of {where}.**")
    return "\n".join(kept) + "\n"


def _length(text: str) -> int:
    """Count as UTF-16 does, which is never less than GitHub counts."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _closings(lines: Sequence[str]) -> str:
    """Close a code block and the foldings that a cut left open, so that what follows is read as text."""
    fence, depth = "", 0
    for line in lines:
        found = re.match(r" {0,3}(`{3,}|~{3,})(.*)", line)
        if found and not fence:
            fence = found[1]
        elif found and found[1].startswith(fence) and not found[2].strip():
            fence = ""
        elif not fence:
            depth += line.count("<details") - line.count("</details>")
    return fence + "\n\n</details>" * max(depth, 0)


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0].strip()


def _is_ours(comment: Comment) -> bool:
    return _first_line(comment.get("body")) == MARKER and (comment.get("user") or {}).get("login") == BOT


def _against_cml(ours: Comment | None, comments: Sequence[Comment]) -> str:
    """Say why CML must not be let loose, or nothing: it looks at one page of comments, and at nobody's name."""
    choice = cml.chosen([comment for comment in comments if not _is_ours(comment) or comment is ours])
    if choice is ours:  # also when there is neither: then CML creates it
        return ""
    if choice is not None:
        author = (choice.get("user") or {}).get("login")
        return f"a comment of {author} carries CML's mark, and CML would change that one"
    if ours is not None and cml.has_mark(ours):
        return f"our comment is not among the first {cml.FIRST_PAGE}, and CML looks at no others"
    return "our comment lacks CML's mark, and CML would make a second one"


def main() -> None:
    """Post a file; what keeps it from being posted changes no verdict, and the summary has the report too."""
    parser = argparse.ArgumentParser(description="Post the report as the one comment of pull request NUMBER.")
    parser.add_argument("file", type=Path, help="the comment")
    text = parser.parse_args().file.read_text(encoding="utf-8")
    try:
        result = post(GitHub.from_environment(), int(os.environ["NUMBER"]), text)
        by = "by CML" if result.by == "cml" else f"by GitHub's API, not by CML: {result.why}"
        print(f"{result.url} posted {by}")
    except UserError as error:
        print(f"::warning::the comment could not be posted: {error}")
