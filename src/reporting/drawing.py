"""The pictures of a report: what differs between main and this pull request, and where the model looked."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from src.core import pictures
from src.core.command import UserError
from src.core.inference import Model
from src.reporting import changes
from src.reporting.facts import Facts, Side

_CLASSES = 20  # rows and columns of a confusion that can still be read
_SHOWN = 8
_FEWEST = 5  # examples of a bin of confidence, under which its accuracy is chance
_DPI = 160
_WORSE_BETTER = LinearSegmentedColormap.from_list("worse and better", [pictures.ORANGE, "#ffffff", pictures.BLUE])
# what the evaluation drew of this model alone, for where there is nothing to compare it with
_CHARTS = {
    "confusion": "Confusion of the test examples",
    "curves": "Learning curves: loss, validation accuracy and learning rate over the epochs",
    "calibration": "Calibration: accuracy over confidence",
}
_EXAMPLES = {
    "errors": "The worst errors: what was predicted, then what is true",
    "activation": "Where the model looked: how much less sure it is with a fifth of the side hidden",
}


class Picture(NamedTuple):
    """A picture of the report's folder `pictures`, and what it shows in words."""

    alt: str
    name: str


Drawn = dict[str, Picture]
Explain = Callable[..., NDArray[np.float32]]  # as src/images/occlusion.py has it


def draw(facts: Facts, folder: Path, explain: Explain | None = None) -> Drawn:
    """Draw every picture that has something to show and that report.pictures allows; returns them by their subject.

    `explain` tells where the model looked; without it, examples are drawn alone.
    """
    drawn: Drawn = {}
    if facts.pictures == "none":
        return drawn
    examples = facts.pictures == "all"
    if facts.validation and not facts.validation.passed:
        drawn |= _copy(
            {"profile": "The data: examples of each class, original sizes, brightness"}, facts.paths.profile, folder
        )
    if not facts.has_answers:
        wanted = _CHARTS | (_EXAMPLES if examples else {})
        return drawn | (_copy(wanted, facts.paths.evaluation, folder) if facts.this.metrics else {})
    drawn |= _curves(facts.main, facts.this, folder)
    drawn |= _confusion(facts, folder) | _calibration(facts, folder)
    return drawn | (_answers(facts, folder, explain) if examples else {})


def _figure(width: float, height: float) -> Figure:
    made = pictures.figure(width, height)
    made.set_dpi(_DPI)
    return made


def _copy(wanted: dict[str, str], source: Path, folder: Path) -> Drawn:
    found = {name: alt for name, alt in wanted.items() if (source / f"{name}.png").is_file()}
    for name in found:
        (folder / f"{name}.png").write_bytes((source / f"{name}.png").read_bytes())
    return {name: Picture(alt, f"{name}.png") for name, alt in found.items()}


def _curves(main: Side, this: Side, folder: Path) -> Drawn:
    panels = {"validation_loss": "Validation loss", "validation_accuracy": "Validation accuracy"}
    known = [name for name in panels if this.history and name in this.history[0]]
    if not known:
        return {}
    made = _figure(9, 3.4)
    for axes, name in zip(np.ravel(made.subplots(1, len(known), squeeze=False)), known, strict=True):
        for label, side, colour, style in (
            ("main", main, pictures.ORANGE, "--"),
            ("this pull request", this, pictures.BLUE, "-"),
        ):
            if kept := [(row["epoch"], row[name]) for row in side.history if name in row and "epoch" in row]:
                axes.plot(*zip(*kept, strict=True), color=colour, linestyle=style, label=label)
        axes.set(title=panels[name], xlabel="epoch")
        axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    pictures.save(made, folder / "curves.png")
    alt = "Learning curves: validation loss and accuracy over the epochs, this pull request (solid) and main (dashed)"
    return {"curves": Picture(alt, "curves.png")}


def _confusion(facts: Facts, folder: Path) -> Drawn:
    names, counts = changes.confusion(*facts.answers, facts.this.card.classes if facts.this.card else [])
    difference = counts[1] - counts[0]
    shown = _most_changed(difference)
    if not difference.any():
        return {}
    difference = difference[np.ix_(shown, shown)]
    side = 2.6 + 0.34 * max(6, len(shown))
    made = _figure(side + 0.9, side)
    axes: Any = made.subplots()
    largest = max(1, int(np.abs(difference).max()))
    better = np.where(np.eye(len(shown), dtype=bool), difference, -difference)  # right answers and errors
    image = axes.imshow(better, cmap=_WORSE_BETTER, vmin=-largest, vmax=largest)
    ticks = [pictures.shorten(names[i], 14) for i in shown]
    axes.set_xticks(range(len(shown)), ticks, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(shown)), ticks, fontsize=8)
    for (row, column), value in np.ndenumerate(difference):
        if value:
            colour = "white" if abs(value) > 0.7 * largest else "black"
            axes.text(column, row, f"{value:+d}", ha="center", va="center", fontsize=8, color=colour)
    rest = "" if len(shown) == len(names) else f"\nthe {len(shown)} classes of {len(names)} that changed most"
    axes.set(title=f"This pull request minus main, test examples{rest}", xlabel="predicted", ylabel="actual")
    axes.title.set_fontsize(10)
    bar = made.colorbar(image, ax=axes, shrink=0.7, label="worse          better", ticks=MaxNLocator(5, integer=True))
    bar.ax.tick_params(labelsize=8)
    pictures.save(made, folder / "confusion_difference.png")
    return {"confusion": Picture("Confusion: this pull request minus main", "confusion_difference.png")}


def _most_changed(difference: NDArray[np.int64]) -> list[int]:
    """The classes of the largest changes, in their own order; all of them where they can be read."""
    if len(difference) <= _CLASSES:
        return list(range(len(difference)))
    weight = np.abs(difference).sum(axis=0) + np.abs(difference).sum(axis=1)
    return sorted(int(i) for i in np.argsort(-weight, kind="stable")[:_CLASSES] if weight[i])


def _calibration(facts: Facts, folder: Path) -> Drawn:
    made = _figure(5.0, 4.4)
    axes: Any = made.subplots()
    bins = int(facts.number("evaluate.calibration_bins", 15))
    axes.plot([0, 1], [0, 1], color=pictures.GREY, linestyle=":", label="perfect")
    looks = (("main", pictures.ORANGE, -0.4), ("this pull request", pictures.BLUE, 0.0))
    for (name, colour, shift), answers in zip(looks, facts.answers, strict=True):
        curve = [row for row in changes.reliability(answers, bins) if row["examples"] >= _FEWEST]
        places = [min(int(row["confidence"] * bins), bins - 1) + 0.7 + shift for row in curve]
        label = f"{name} (error {changes.overall(answers, bins)['ece']:.3f})"
        right = [row["accuracy"] for row in curve]
        bars = axes.bar([place / bins for place in places], right, 0.4 / bins, color=colour, label=label)
        axes.bar_label(bars, [f"{row['examples']:,.0f}" for row in curve], fontsize=6, rotation=90, padding=2)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.12))
    axes.set_title(f"Calibration (with examples; bins of under {_FEWEST} are hidden)", fontsize=10)
    axes.legend(fontsize=8, loc="upper left")
    pictures.save(made, folder / "calibration.png")
    alt = "Calibration: accuracy over confidence in bins, this pull request beside main"
    return {"calibration": Picture(alt, "calibration.png")}


def _answers(facts: Facts, folder: Path, explain: Explain | None) -> Drawn:
    found = changes.answers(*facts.answers)
    if found is None or facts.test is None or len(facts.test.labels) != len(facts.this.predictions):
        return {}
    try:
        look = partial(explain, probabilities=Model(facts.paths.model).probabilities) if explain else None
    except UserError:  # without it the images are still worth showing
        look = None
    drawn = {}
    for name, rows, words in zip(("wrong", "right"), found, ("newly wrong", "newly right"), strict=True):
        if len(rows):
            _draw_examples(facts, rows[:_SHOWN], look, words, folder / f"newly_{name}.png")
            alt = f"Examples {words}, below each where this pull request's model looked (with a fifth of the side hidden)"
            drawn[name] = Picture(alt if look else f"Examples {words}", f"newly_{name}.png")
    return drawn


def _draw_examples(facts: Facts, rows: NDArray[np.int64], look: Explain | None, words: str, path: Path) -> None:
    """Draw each image with what both models said of it, and under it the same image with where the model looked."""
    assert facts.test is not None
    order = {name: i for i, name in enumerate(facts.this.card.classes if facts.this.card else [])}
    images = np.array(facts.test.examples[rows])
    targets = np.array(facts.this.predictions.iloc[rows]["prediction"].map(order).fillna(0).astype(int))
    lines = 2 if look else 1
    columns = max(4, len(rows))
    made = _figure(1.45 * columns, 1.48 * lines + 0.7)
    made.suptitle(f"{words.capitalize()}: actual, what this pull request says, what main says", fontsize=10)
    squares = made.subplots(lines, columns, squeeze=False)
    for empty in np.ravel(squares):
        empty.set_axis_off()
    for column, row in enumerate(rows):
        colour = pictures.RED if "wrong" in words else "black"
        mine, theirs = (side.predictions.iloc[int(row)] for side in (facts.this, facts.main))
        said = [f"{word} {pictures.shorten(str(one['prediction']), 8)} ({one['confidence']:.0%})"
                for word, one in (("this:", mine), ("main:", theirs))]  # fmt: skip
        title = "\n".join([f"actual: {pictures.shorten(str(mine['label']), 11)}", *said])
        pictures.show_image(squares[0][column], images[column], title, colour)
        if look:
            pictures.show_image(squares[1][column], images[column])
            pictures.show_heat(squares[1][column], look(images[column], int(targets[column])), images[column])
    pictures.save(made, path)
