"""The trusted template of a fork's report: validated numbers in, Markdown out. A text of the fork stays a text."""

from collections.abc import Sequence
from dataclasses import dataclass

from src.github.comment import MARKER
from src.system.escaping import code
from src.system.numbers import Numbers

_SHOWN = 50
_SHOWN_CLASSES = 20
_TRUSTED = "this trains exactly this commit on the trusted runner and sets `model-gate`"


@dataclass(frozen=True)
class Run:
    """What GitHub says of the finished run: the only facts about the pull request that are believed."""

    id: int
    url: str
    conclusion: str
    sha: str
    owner: str
    branch: str
    head_repository: int
    base: str


def render(found: Numbers | str, number: int, run: Run, protected: Sequence[str]) -> str:
    """Return the comment: the fork's numbers, or in our own words why there are none to show."""
    if isinstance(found, str):
        head = ["## ❔ This fork's report cannot be shown", f"Its numbers were refused, or there are none: {found}."]
    else:
        icon = {"pass": "✅", "fail": "❌", "investigate": "🔎"}[found.verdict]
        head = [f"## {icon} This fork reports of itself: {found.verdict}", _claim(found, run)]
    blocks = [
        *head,
        f"[The run]({run.url}) has the log and its summary.",
        *_warning(protected),
        f"For a maintainer: once you have read the changes, {_TRUSTED}.",
        f"```bash\ngh workflow run report.yml -f pull_request={number} -f sha={run.sha}\n```",
    ]
    if isinstance(found, Numbers):
        blocks += _tables(found)
    return f"{MARKER}\n" + "\n\n".join(blocks) + "\n"


def unchanged(files: Sequence[str], run: Run, protected: Sequence[str], reviewer: str, refused: str) -> str:
    """Return the comment on a pull request that changes nothing the model depends on.

    `reviewer` gave the label that its change of the engine needs; `refused` says why one does not count.
    """
    held = bool(protected) and not reviewer
    by = f" `{reviewer}` has read what it changes of the engine." if protected and reviewer else ""
    blocks = [
        f"## {'🔎 investigate' if held else '✅ pass'}: nothing that the model depends on changed",
        f"Nothing was trained at `{run.sha}`; the model of main stays as it is. Changed: {_names(files)}.{by}",
        *(_warning(protected) if held else []),
        *([f"`model-gate` waits for the label `engine: reviewed`. {code(refused) if refused else ''}"] if held else []),
        f"[The run]({run.url})",
    ]
    return f"{MARKER}\n" + "\n\n".join(blocks) + "\n"


def _names(paths: Sequence[str]) -> str:
    rest = len(paths) - _SHOWN_CLASSES
    return ", ".join(code(path[:120]) for path in paths[:_SHOWN_CLASSES]) + (f" and {rest} more" if rest > 0 else "")


def figure(value: float | None) -> str:
    """Return a number in six digits at most; a dash where there is none."""
    return "—" if value is None else f"{value:.6g}"


def _claim(found: Numbers, run: Run) -> str:
    budget = "a small budget"
    if found.budget:
        budget += f" ({found.budget.epochs} of {found.budget.asked} epochs)"
    sentences = [
        f"**The numbers were computed by the pull request's own code at `{run.sha}`** on a hosted runner, with {budget}.",
        "They are a claim, not a proof: `model-gate` does not count them.",
    ]
    if found.failed_stage:
        sentences.append(f"The pipeline failed in the stage `{found.failed_stage}`.")
    if found.examples is not None:
        sentences.append(f"Judged on {found.examples} test examples.")
    if not found.baseline:
        sentences.append("There was no model of main to compare with.")
    return "> [!NOTE]\n> " + " ".join(sentences)


def _warning(protected: Sequence[str]) -> list[str]:
    if not protected:
        return []
    said = "This pull request touches the engine: a person with write access must read this and add the label"
    return [f"> [!WARNING]\n> {said} `engine: reviewed`, which counts for this commit: {_names(protected)}."]


def _tables(found: Numbers) -> list[str]:
    metrics = [
        [
            code(row.name),
            figure(row.main),
            figure(row.candidate),
            "—" if None in (row.low, row.high) else f"{figure(row.low)} to {figure(row.high)}",
        ]
        for row in found.metrics
    ]
    gates = [[code(row.name), row.level, row.outcome, figure(row.value), figure(row.limit)] for row in found.gates]
    ordered = sorted(found.classes, key=lambda row: 2.0 if row.recall is None else row.recall)
    classes = [[code(row.name), str(row.examples), figure(row.main), figure(row.recall)] for row in ordered]
    checks = [[code(row.name), row.level] for row in found.checks]
    heads = ["class", "test examples", "recall of main", "of this fork"]
    return [
        *_table("Metrics", ["metric", "main", "this fork", "interval of the difference"], metrics, _SHOWN),
        *_table("Gates", ["gate", "level", "outcome", "value", "limit"], gates, _SHOWN),
        *_table("Classes, the worst first", heads, classes, _SHOWN_CLASSES),
        *_table("Findings in the data", ["check", "level"], checks, _SHOWN),
    ]


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], most: int) -> list[str]:
    if not rows:
        return []
    lines = [header, ["---"] * len(header), *rows[:most]]
    more = [f"and {len(rows) - most} more"] if len(rows) > most else []
    return [f"### {title}", "\n".join(f"| {' | '.join(line)} |" for line in lines), *more]
