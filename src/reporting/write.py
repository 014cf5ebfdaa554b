"""Write the report of a pull request: report.md, report.html, pictures/ and numbers.json, out of what the run left.

    python -m src report --metrics metrics.json --evaluation out/evaluation --model out/model \
        --manifest out/manifest.parquet --arrays out/arrays --validation out/validation.json --profile out/profile \
        --run out/run.json --main out/main --verdict out/report/verdict.json --lineage manifest.json \
        --params params.yaml --history out/history --out out/report

Only --run and --verdict must exist: a run that stopped early is reported with what there is. Where GITHUB_STEP_SUMMARY
names a file, the report is added to it without its pictures.
"""

import argparse
import os
from dataclasses import MISSING, fields
from pathlib import Path

from src.core.files import replacing, write_bytes, write_json
from src.reporting import costs, drawing, inputs, markdown, moved, numbers, opening, page, repeated, results
from src.reporting.document import Document, Section
from src.reporting.drawing import Drawn
from src.reporting.facts import Facts, Paths, read

_SUMMARY_LIMIT = 2**20  # bytes that GitHub takes of one step's summary
_WHAT = {
    "metrics": "metrics.json of this pull request",
    "evaluation": "folder that evaluate wrote",
    "model": "folder that train wrote",
    "manifest": "manifest that prepare wrote",
    "arrays": "folder that prepare wrote",
    "validation": "validation.json that validate wrote",
    "profile": "folder that validate wrote",
    "run": "run.json that src.system.reproduce wrote",
    "main": "folder that src.judging.compare wrote",
    "verdict": "verdict.json that src.judging.judge wrote",
    "lineage": "manifest.json, the lineage",
    "params": "params.yaml",
    "history": "folder that train wrote speed, memory and energy into",
}


def write(paths: Paths, out: Path, explain: drawing.Explain | None = None) -> None:
    """Write the report into `out`, beside the verdict.

    Raises:
        UserError: the run or the verdict is missing, or a file is damaged.
    """
    facts = read(paths)
    with replacing(out / "pictures") as pictures:
        pictures.mkdir()
        document = compose(facts, drawing.draw(facts, pictures, explain))
        web = page.render(document, pictures)
    text = markdown.render(document)
    write_bytes(out / "report.md", text.encode())
    write_bytes(out / "report.html", web.encode())
    write_json(out / "numbers.json", numbers.collect(facts))
    _summarize(markdown.without_pictures(text))
    print(f"{text.splitlines()[0].removeprefix('## ')}\n\n{out}/report.html is the report to open in a browser")


def compose(facts: Facts, drawn: Drawn) -> Document:
    """Put the report together, the most important first: the end is what a comment without room leaves out."""
    sections: list[Section] = [
        *opening.stopped(facts, drawn),
        *results.sections(facts),
        *repeated.sections(facts),
        *inputs.sections(facts),
        *moved.sections(facts, drawn),
        *results.later_sections(facts, drawn),
        *costs.sections(facts),
    ]
    return Document(str(facts.verdict["verdict"]), opening.headline(facts), opening.head(facts), tuple(sections))


def _summarize(text: str) -> None:
    name = os.environ.get("GITHUB_STEP_SUMMARY")
    if not name:
        return
    path = Path(name)
    before = path.stat().st_size if path.is_file() else 0
    if before + len(text.encode()) > _SUMMARY_LIMIT:
        print(f"the summary of this step has no room for the report ({before:,} bytes are in it already)")
        return
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def main(explain: drawing.Explain | None = None) -> None:
    """Read the command line and write the report; `explain` tells where a model looked."""
    parser = argparse.ArgumentParser(description="Write the report of a pull request.")
    for part in fields(Paths):
        known = {"required": True} if part.default is MISSING else {"default": part.default}
        parser.add_argument(f"--{part.name}", type=Path, help=_WHAT[part.name], **known)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the report into")
    args = parser.parse_args()
    write(Paths(**{part.name: getattr(args, part.name) for part in fields(Paths)}), args.out, explain)
