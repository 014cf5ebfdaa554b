"""A report as one HTML file that needs nothing else: pictures inside, no script, no address it would load from."""

import base64
import re
from html import escape
from pathlib import Path

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

_VERDICTS = ("pass", "fail", "investigate")
_ADDRESS = re.compile(r"https?://\S+")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2530; --soft: #5b6673; --paper: #ffffff; --line: #dfe4ea; --shade: #f5f7f9;
  --accent: #2f6db3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ed; --soft: #9ba7b4; --paper: #14181d; --line: #313942;
  --shade: #1c2228; --accent: #7fb2ea; } }
.pass { --verdict: #1f7a4d; --tint: #e8f5ee; } .fail { --verdict: #b3312f; --tint: #fcedec; }
.investigate { --verdict: #9a5b00; --tint: #fdf4e3; } .skipped { --verdict: var(--soft); --tint: var(--shade); }
@media (prefers-color-scheme: dark) { .pass { --verdict: #5cc796; --tint: #16291f; } .fail { --verdict: #f08a84;
  --tint: #331b1b; } .investigate { --verdict: #e9b35c; --tint: #302514; } }
.mark { color: var(--verdict); background: var(--tint); border: 1px solid var(--verdict); border-radius: 1em;
  padding: 0 .6em; font-weight: 600; white-space: nowrap; font-size: .92em; }
h1 .mark { color: var(--paper); background: var(--verdict); margin-right: .15em; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.25rem 5rem; }
h1 { font-size: 1.45rem; line-height: 1.3; margin: 0; padding: 1rem 1.25rem; background: var(--tint);
  border-left: 6px solid var(--verdict); border-radius: 4px; font-weight: 600; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .75rem; padding-bottom: .35rem; border-bottom: 1px solid var(--line); }
p, ul, .alert { max-width: 48rem; overflow-wrap: anywhere; } ul { padding-left: 1.3rem; } li { margin: .2rem 0; }
a { color: var(--accent); }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .86em; }
code { background: var(--shade); padding: .1em .35em; border-radius: 4px; overflow-wrap: anywhere; }
td code { overflow-wrap: break-word; }
pre { background: var(--shade); border: 1px solid var(--line); border-radius: 6px; padding: .85rem 1rem; overflow-x: auto;
  line-height: 1.45; }
.alert { border-left: 4px solid var(--accent); background: var(--shade); padding: .6rem 1rem; margin: 1rem 0;
  border-radius: 0 4px 4px 0; }
.alert.warning { border-color: #c98300; } .alert b.kind { display: block; font-size: .85rem; color: var(--soft); }
.wide { overflow-x: auto; margin: .75rem 0; } table { border-collapse: collapse; font-size: .92rem; }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line); vertical-align: bottom;
  white-space: nowrap; }
th, td { padding: .38rem 1rem .38rem 0; }
td:first-child { min-width: 8.5rem; }
td { border-bottom: 1px solid var(--line); vertical-align: top; }
th.r, td.r { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.more { color: var(--soft); font-size: .9rem; margin-top: .25rem; }
figure { margin: 1.25rem 0; } img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; padding: .4rem; } figcaption { color: var(--soft); font-size: .9rem; margin-top: .3rem; }
details { margin: .9rem 0; } summary { cursor: pointer; color: var(--accent); }
details[open] > summary { margin-bottom: .5rem; }
"""


def render(document: Document, pictures: Path) -> str:
    """Return the whole page; `pictures` is the folder that the report's picture blocks name files of."""
    verdict = document.verdict if document.verdict in _VERDICTS else "investigate"
    head = "\n".join(_block(block, pictures) for block in document.head)
    sections = "\n".join(_section(section, pictures) for section in document.sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(document.verdict)}: model report</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1 class="{verdict}">{_line(document.headline)}</h1>
{head}
{sections}
</main>
</body>
</html>
"""


def _section(section: Section, pictures: Path) -> str:
    inside = "\n".join(_block(block, pictures) for block in section.blocks)
    return f"<section>\n<h2>{escape(section.title)}</h2>\n{inside}\n</section>"


def _block(block: Block, pictures: Path) -> str:
    match block:
        case Paragraph(line):
            return f"<p>{_line(line)}</p>"
        case Alert(kind, line):
            kind = "warning" if kind == "warning" else "note"
            return f'<div class="alert {kind}"><b class="kind">{kind.capitalize()}</b>{_line(line)}</div>'
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{_line(item)}</li>' for item in items)}</ul>"
        case Table():
            return _table(block)
        case Listing(text):
            return f"<pre>{escape(text)}</pre>"
        case Chart():
            return ""
        case Picture(alt, name):
            return _picture(alt, pictures / name)
        case Fold(summary, blocks):
            inside = "\n".join(_block(inner, pictures) for inner in blocks)
            return f"<details><summary>{escape(summary)}</summary>\n{inside}\n</details>" if inside else ""


def _table(block: Table) -> str:
    def row(cells: tuple[Line, ...], tag: str) -> str:
        sides = zip(cells, block.align, strict=True)
        return "<tr>" + "".join(f'<{tag} class="{side}">{_line(cell)}</{tag}>' for cell, side in sides) + "</tr>"

    head, body = row(block.header, "th"), "\n".join(row(cells, "td") for cells in block.rows)
    more = f'<p class="more">{escape(block.more)}</p>' if block.more else ""
    return f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody></table></div>{more}'


def _picture(alt: str, path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    words = escape(alt)
    return f'<figure><img alt="{words}" src="data:image/png;base64,{content}"><figcaption>{words}</figcaption></figure>'


def _line(line: Line) -> str:
    return "".join(_part(part) for part in parts(line))


def _part(part: Part) -> str:
    match part:
        case Bold(text):
            return f"<strong>{escape(plain(text))}</strong>"
        case Code(text):
            return f"<code>{escape(plain(text))}</code>"
        case Mark(outcome):
            return f'<span class="mark {outcome if outcome in _VERDICTS else "skipped"}">{escape(plain(outcome))}</span>'
        case Link(text, address):
            shown = escape(plain(text))
            return f'<a href="{escape(address)}" rel="noreferrer">{shown}</a>' if _ADDRESS.fullmatch(address) else shown
        case _:
            space = (" " if part[:1].isspace() else "", " " if part[-1:].isspace() else "")
            return f"{space[0]}{escape(plain(part))}{space[1]}"
