"""A text of somewhere else stays a text in a comment of GitHub: python -m pytest tests/system/test_escaping.py"""

import html
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from src.system.escaping import code, escape, fenced, last_lines, link, prose

EVIL = (
    "@team <img src=x onerror=alert(1)> | `a` ](javascript:alert(1)) ![p](http://evil/x.png) **b** $x$ :smile: #12 www.e.org"
)
VOID = ("meta", "img", "br", "hr")
HOSTILE = [
    EVIL,
    "# heading", "- item", "-", "+ item", "1. item", "2)", "> quote", "---", "===", "=", "    code", "<!-- -->", "a|b|c",
    "a\\|b|c", "x\\", "`", "``` `", "``x``", "[a]: http://evil/", "[a][b]", "a\n\n# b", "a\r\n- b", "</details><script>",
    "&lt;b&gt;", "&#64;team", "javascript:alert(1)", "http://evil/", "https://evil/)", "\u202ecod.exe", "\x1b[31mred",
    "\ud800", "", "*a* _b_ ~c~", "[x](y)", "snake_case", "a@b.com", "GH-12", "`a` - b", "`a | b`", "</code><b>",
    "```\n# free\n```",
]  # fmt: skip
PLACES: dict[str, Callable[[str], str]] = {
    "paragraph": lambda text: f"{escape(text)}\n",
    "after a line": lambda text: f"> [!NOTE]\n> {prose(text)}\n",
    "heading": lambda text: f"## so: {escape(text)}\n",
    "list": lambda text: f"- {prose(text)}\n- {code(text)}\n",
    "table": lambda text: f"| {escape(text)} | b |\n| --- | --- |\n| {prose(text)} | {code(text)} |\n",
    "summary": lambda text: f"<details><summary>{escape(text)}</summary>\n\n{escape(text)}\n\n</details>\n",
    "link": lambda text: f"{link(text, 'https://github.com/a/b')} and {link('x', text)}\n",
    "code": lambda text: f"see {code(text)}.\n",
    "fence": lambda text: f"{fenced(last_lines(text))}\n",
}
TAGS = {
    "paragraph": {"p"}, "after a line": {"blockquote", "p"}, "heading": {"h2"}, "list": {"ul", "li"},
    "table": {"table", "thead", "tbody", "tr", "th", "td"}, "summary": {"details", "summary", "p"}, "link": {"p", "a"},
    "code": {"p"}, "fence": {"pre"},
}  # fmt: skip


class Page(HTMLParser):
    """Collects tags, those that stay open, every address, and the words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def rendered(text: str) -> Page:
    """What Markdown becomes, with HTML and tables allowed as GitHub does."""
    return Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_stays_a_text(place: str, text: str) -> None:
    made = PLACES[place](text)
    made.encode()
    told = rendered(f"{made}\nthe end\n")
    assert told.open == []
    assert set(told.tags) <= TAGS[place] | {"code", "p"}
    assert told.tags.count("td") == (2 if place == "table" else 0)
    assert told.tags.count("li") == (2 if place == "list" else 0)
    assert told.tags.count("a") <= (2 if text == "http://evil/" else 1) * (place == "link")
    assert "the end" in told.words
    if place not in ("fence", "link"):
        outside = re.sub(r"`[^`\n]+`|<code>.*?</code>", "", made)
        assert not re.search(r"@\w|(?<!&)#\d|www\.|:smile:|\$x\$|GH-\d", outside)


@pytest.mark.parametrize("text", [text for text in HOSTILE if text.isprintable() and text == text.strip()])
def test_a_text_reads_as_it_was(text: str) -> None:
    told = rendered(f"| n |\n| --- |\n| {escape(text)} |\n| {code(text)} |\n\nso: {escape(text)}\n").words.replace(
        "\u200b", ""
    )
    assert told.count(text) >= 3


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("ask @team", "ask @\u200bteam"),
        ("see #12 and GH-12", "see #\u200b12 and GH\u200b-12"),
        ("<img src=x> [a](javascript:x) | **b**", "<img src=x> [a](javascript:x) | **b**"),
        ("line\none\u202etwo", "line one\ufffdtwo"),
        ("- a list", "\u200b- a list"),
        ("www.evil.org", "www\u200b.evil.org"),
        ("at 12:30:45: a snake_case, -0.5 points", "at 12:30:45: a snake_case, -0.5 points"),
    ],
)
def test_what_github_looks_for_in_finished_text_is_broken_by_a_joint(text: str, seen: str) -> None:
    assert html.unescape(prose(text)) == seen
    assert not re.search(r"[<>\[\]|*@]|#(?!\d+;)", prose(text))


def test_a_command_in_a_sentence_can_be_copied() -> None:
    command = "git switch -c x && gh issue list --search 'a@b #1'"
    assert prose(f"run `{command}` now") == f"run `{command}` now"
    assert "|" not in prose("`a | b`")


def test_an_address_that_is_no_plain_one_is_no_link() -> None:
    assert link("the run", "https://github.com/a/b/actions/runs/7") == "[the run](https://github.com/a/b/actions/runs/7)"
    for address in ("javascript:alert(1)", "https://evil/)", "https://evil/ x", "file:///etc/passwd"):
        assert link("the run", address) == "the run"


def test_a_log_is_what_a_terminal_shows_of_its_last_lines() -> None:
    lines = [f"line {i}" for i in range(100)]
    told = last_lines("\n".join([*lines, "10%\r50%\r100%", "\x1b[31mout of memory\x1b[0m \u202e"]))
    assert told.splitlines()[-3:] == ["line 99", "100%", "out of memory \ufffd"]
    assert len(told.splitlines()) == 40
    assert len(last_lines("x" * 300 + "\n" + "y" * 9000)) <= 4000
