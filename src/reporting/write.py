"""Write the report of a pull request: report.md, report.html, pictures/ and numbers.json, out of what the run left.

    python -m src report

Only run.json and verdict.json must exist: a run that stopped early is reported with what there is. Where GITHUB_STEP_SUMMARY
names a file, the report is added to it without its pictures.
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path

from src.core.files import replacing, write_bytes, write_json
from src.reporting import changes, costs, drawing, inputs, moved, numbers, opening, page, render, results
from src.reporting.drawing import Drawn
from src.reporting.facts import STAGES, Facts, Paths, read
from src.system.escaping import last_lines

_SUMMARY_LIMIT = 2**20  # bytes that GitHub takes of one step's summary


def write(paths: Paths, out: Path, explain: drawing.Explain | None = None) -> None:
    """Write the report into `out`, beside the verdict.

    Raises:
        UserError: the run or the verdict is missing, or a file is damaged.
    """
    facts = read(paths)
    with replacing(out / "pictures") as pictures:
        pictures.mkdir()
        drawn = drawing.draw(facts, pictures, explain)
    head, *sections = compose(facts, drawn)
    write_bytes(out / "report.md", render.joined(head, sections).encode())
    page.write(out / "report.html", "\n\n".join([head, *sections]), facts.verdict.verdict)
    write_json(out / "numbers.json", numbers.collect(facts))
    plain_head, *plain = compose(facts, {})
    _summarize(render.joined(plain_head, plain))
    print(f"{head.splitlines()[0].removeprefix('## ')}\n\n{out}/report.html is the report to open in a browser")


def compose(facts: Facts, drawn: Drawn) -> list[str]:
    """Return head and sections, the most important first: the end is what a comment without room leaves out."""
    section = partial(render.section, facts=facts, drawn=drawn)
    what = _same if facts.is_main else _judged
    return [part for parts in (_opening, what) for part in parts(facts, section) if part]


def _opening(facts: Facts, section: "partial[str]") -> Iterator[str]:
    yield section("head", **opening.view(facts))
    bad_data = any(finding.level == "error" for finding in opening.findings(facts))
    if bad_data or (facts.failed and (facts.failed in STAGES or facts.run.said)):
        faults = facts.validation.faults if facts.validation else {}
        yield section("stopped", bad_data=bad_data, faults=faults, said=last_lines(facts.run.said))


def _same(facts: Facts, section: "partial[str]") -> Iterator[str]:
    """Yield what is left to say of a model that is main's."""
    gates = results.gates(facts)  # the reasons above have said what the asking ones ask
    told = {"asked": [], "rest": [*gates["asked"], *gates["rest"]], "summary": f"All {len(facts.verdict.gates)} gates"}
    yield section("gates", **gates | told)
    changed, compared = (
        changes.values(facts.main.params, facts.this.params),
        inputs.compared(facts.main.rows, facts.this.rows),
    )
    if changed:
        yield section("parameters", changed=changed)
    if opening.findings(facts) or (compared and not compared["same"]):
        yield section("data", compared=compared)
    yield section("same", changed=changed, compared=compared or {"same": True})


def _inputs(facts: Facts, section: "partial[str]") -> Iterator[str]:
    if facts.main.params and facts.this.params:
        yield section("parameters", changed=changes.values(facts.main.params, facts.this.params))
    compared = inputs.compared(facts.main.rows, facts.this.rows)
    if compared or (facts.validation and facts.validation.passed):
        yield section("data", compared=compared)


def _judged(facts: Facts, section: "partial[str]") -> Iterator[str]:
    found = facts.this.metrics
    if found:
        yield section("metrics", **results.metrics(facts, found))
    if facts.verdict.gates and (found or not facts.failed):
        yield section("gates", **results.gates(facts))
    for kind, told in (("fold", found and found.folds), ("seed", found and found.repeats)):
        if told:
            yield section("repeated", **results.repeated(facts, kind, told))
    yield from _inputs(facts, section)
    if found:
        yield from _answers(facts, section)
        yield section("calibration", **results.calibration(facts))
    if facts.this.history:
        yield section("curves", **results.curves(facts))
    if found:
        yield section("serving", serving=costs.serving(facts), timed=facts.this.latency.p50 is not None)
    if training := costs.training(facts):
        yield section("training", training=training)
    yield section("lineage", digests=costs.digests(facts))


def _answers(facts: Facts, section: "partial[str]") -> Iterator[str]:
    """Yield where the two models differ; where there is no main, where this one is weak."""
    if not facts.has_answers:
        yield section("weak", weak=moved.weak(facts))
        return
    yield section("examples", **moved.examples(facts))
    for kinds in moved.KINDS:
        if found := moved.parts(facts, *kinds):
            yield section("parts", **found)
    if pairs := moved.confusion(facts):
        yield section("confusion", pairs=pairs)


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
        parser.add_argument(f"--{part.name}", type=Path, default=part.default, help="where it lies, if not at %(default)s")
    parser.add_argument("--out", type=Path, default=Path("out/report"), help="folder to write the report into")
    args = parser.parse_args()
    write(Paths(**{part.name: getattr(args, part.name) for part in fields(Paths)}), args.out, explain)
