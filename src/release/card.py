"""The model card: what a registered version is, how good, where weak, and where it came from, as Markdown for MLflow.

Its sections, in card.md.jinja, follow "Model Cards for Model Reporting" (Mitchell et al., 2019).
"""

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from src.core.card import Card
from src.core.metrics_file import ClassScores, MetricsFile, SliceScores
from src.release.reviewed import Release
from src.system.escaping import escape
from src.system.judged import Hardware, Lineage

LARGEST = 5000  # characters; the column of MLflow's database
_SHOWN = 20  # classes that are named
_FEW = 20  # test examples of a class under which its number says little


def write(release: Release, card: Card, metrics: MetricsFile, manifest: Lineage) -> str:
    """Return the model card in at most LARGEST characters; lines that do not fit are left out from the end."""
    # Markdown, each text of which is escaped by its filter
    loader = FileSystemLoader(Path(__file__).parent)
    templates = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # noqa: S701
    templates.filters |= {"named": _named, "shown": _shown, "percent": "{:.2%}".format}
    text = templates.get_template("card.md.jinja").render(
        release=release,
        card=card,
        metrics=metrics,
        manifest=manifest,
        hardware=manifest.hardware or Hardware(),
        weakest_class=_weakest(metrics.per_class, "recall"),
        weakest_slice=_weakest(metrics.slices, "accuracy"),
        few=[name for name, row in metrics.per_class.items() if row.examples < _FEW],
    )
    note = "\n\nMore is in the report of the run.\n"
    return text if len(text) <= LARGEST else text[: LARGEST - len(note)].rpartition("\n")[0] + note


def _weakest(rows: Mapping[str, ClassScores] | Mapping[str, SliceScores], number: str) -> str:
    """Name the row whose number is lowest; empty without rows."""
    found = sorted((getattr(row, number), name, row.examples) for name, row in rows.items())
    return f"{_shown(found[0][1])}, {number} {found[0][0]:.2%} of {found[0][2]} examples" if found else ""


def _named(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(map(_shown, names[:_SHOWN])) + (f" and {rest} more" if rest > 0 else "")


def _shown(text: object, longest: int = 60) -> str:
    return escape(str(text), longest)
