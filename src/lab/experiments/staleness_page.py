"""The page of a staleness study: the answer, what each month added, whether old data still help, what more would buy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.core import metrics, pictures
from src.lab.experiments import page
from src.lab.experiments.crossed import Effect
from src.lab.experiments.learning_curve import Gain
from src.lab.experiments.parts import Outcome
from src.lab.experiments.purchases import Bought, Step
from src.system.params import Params
from src.training.task import Task

_AHEAD = 4  # times the images there are: as far as the curve is drawn
_NO_LAW = (
    "The errors follow no power law here (it misses that of all the data), so what more would buy cannot be told: with few "
    "epochs, small shares are not trained to the end. Take more epochs or seeds."
)
_ONE_VERSION = (
    "The history of dvc.lock knows one version of the data, so nothing can be said of its age. Commit data as they "
    "come (`dvc add data`, `dvc repro`, commit), and this page will show what each month added."
)


def write(out: Path, task: Task, found: Bought, notes: Sequence[str], params: Params, seeds: int) -> None:
    """Write staleness.md, staleness.csv and staleness.png into `out`."""
    confidence = params.evaluate.confidence
    page.write_csv(out / "staleness.csv", _rows(found, confidence))
    _draw(out / "staleness.png", found, confidence)
    blocks = [
        "# How much newer and more data buy",
        answer(found),
        _facts(task, found, params, seeds),
        *_history(found, confidence),
        *_curve(found, confidence),
        "![Test accuracy over the data's date, and the learning curve](staleness.png)",
        _reading(confidence),
        "\n".join(f"- {note[:1].upper()}{note[1:]}." for note in notes),
    ]
    page.write(out / "staleness.md", blocks)


def answer(found: Bought) -> str:
    """Say in a few sentences what newer and more data buy."""
    said = []
    if found.added:
        step = found.added[-1]
        said.append(
            f"The data that came last ({found.last}, {step.images:+,} training images) added "
            f"{page.points(step.accuracy)} points of test accuracy{_sure(step.accuracy)}."
        )
    if not found.error.fits:
        return " ".join([*said, _NO_LAW])
    gain, now = found.error.gains[0], float(1 - found.shares[-1].right.mean())
    pace = (
        f"Another month at {found.rate:,.0f} images a month" if found.rate else f"A tenth more data ({gain.more:,} images)"
    )
    said.append(
        f"{pace} is expected to take {_fall(gain)} points off an error of {now:.2%}"
        f"{'' if gain.low > 0 else ': the curve cannot tell that from nothing'}."
    )
    return " ".join(said)


def _sure(change: Effect) -> str:
    return "" if change.low > 0 or change.high < 0 else ", which cannot be told from nothing"


def _facts(task: Task, found: Bought, params: Params, seeds: int) -> str:
    train, images = params.train, found.shares[0].right.shape[1]
    return (
        f"{train.network} of width {train.width}, {train.epochs} epochs, {len(task.training.labels):,} training images, "
        f"{seeds} seed{'s' * (seeds > 1)}; every model is scored on the same {images:,} test images, of all ages."
    )


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def _history(found: Bought, confidence: float) -> list[str]:
    if not found.until:
        return [_ONE_VERSION]
    steps: list[Step | None] = [None, *found.added]
    newest = [f"on the {len(found.newest)} newest"] if len(found.newest) else []
    header = ["data until", "images", "accuracy", *newest, "log loss", "added: images", "points", "log loss"]
    rows = [[*_level(outcome, found, confidence), *_change(step)] for outcome, step in zip(found.until, steps, strict=True)]
    blocks = ["## By the date of the data", page.table(header, rows)]
    if found.after:
        header = ["data after", "images", "accuracy", *newest, "log loss", "against all: images", "points", "log loss"]
        rows = [[*_level(step.outcome, found, confidence), *_change(step)] for step in found.after]
        blocks += ["## Without the oldest", page.table(header, rows)]
    return blocks


def _level(outcome: Outcome, found: Bought, confidence: float) -> list[str]:
    newest = [f"{outcome.right[:, found.newest].mean():.2%}"] if len(found.newest) else []
    return [
        outcome.part.name,
        f"{outcome.part.images:,}",
        _accuracy(outcome, confidence),
        *newest,
        f"{outcome.losses.mean():.4f}",
    ]


def _change(step: Step | None) -> list[str]:
    if step is None:
        return ["", "", ""]
    return [f"{step.images:+,}", page.points(step.accuracy), page.signed(step.loss)]


def _accuracy(outcome: Outcome, confidence: float) -> str:
    low, high = _wilson(outcome, confidence)
    return f"{outcome.right.mean():.2%} ({low:.2%} to {high:.2%})"


def _wilson(outcome: Outcome, confidence: float) -> tuple[float, float]:
    """Return the interval of the mean accuracy for the test images as one sample of so many: seeds add none."""
    images = outcome.right.shape[1]
    right = np.arange(images) < round(float(outcome.right.mean()) * images)
    found = metrics.accuracy(right, confidence)
    return found["accuracy_low"], found["accuracy_high"]


def _curve(found: Bought, confidence: float) -> list[str]:
    rows = [
        [f"{float(o.part.name):.1%}", f"{o.part.images:,}", _accuracy(o, confidence), f"{o.losses.mean():.4f}"]
        for o in found.shares
    ]
    law = found.error.law
    more = [
        [_question(place, gain, found), f"{gain.more:,}", _fall(gain), _loss_fall(other)]
        for place, (gain, other) in enumerate(zip(found.error.gains, found.loss.gains, strict=True))
    ]
    return [
        "## By the number of images",
        page.table(["share", "images", "accuracy", "log loss"], rows),
        f"Fitted law: error(n) = {law.scale:.3g} n^-{law.exponent:.2f} + {law.floor:.4f}.",
        "" if found.error.fits else _NO_LAW,
        page.table(["more data", "images", "error falls by, points", "log loss falls by"], more),
    ]


def _question(place: int, gain: Gain, found: Bought) -> str:
    if found.rate:
        return ("a month", "three months", "a year")[place]
    return f"+{gain.more / max(outcome.part.images for outcome in found.shares):.0%}"


def _fall(gain: Gain) -> str:
    return f"{100 * gain.fall:.2f} ({100 * gain.low:.2f} to {100 * gain.high:.2f})"


def _loss_fall(gain: Gain) -> str:
    return f"{gain.fall:.4f} ({gain.low:.4f} to {gain.high:.4f})"


def _reading(confidence: float) -> str:
    return (
        "## How to read it\n\n"
        "An image counts as come at the first commit whose dvc.lock names a manifest that has it (UTC). Each part is "
        "trained from scratch by the recipe of params.yaml: as many epochs, so fewer steps where there are fewer images, as "
        "it would have been then. Differences are paired over seeds and test images, intervals are "
        f"{confidence:.0%}. Shares are random, each class in proportion. What more data would buy takes the law beyond the "
        "data, and takes new images to be like the old: read a year as a guess. The test images are looked at here to "
        "report, so do not choose a recipe by this page."
    )


def _rows(found: Bought, confidence: float) -> list[dict[str, object]]:
    outcomes = [*found.until, *(step.outcome for step in found.after), *found.shares]
    rows = []
    for outcome in outcomes:
        low, high = _wilson(outcome, confidence)
        row: dict[str, object] = {"kind": outcome.part.kind, "name": outcome.part.name, "images": outcome.part.images}
        row |= {"accuracy": f"{outcome.right.mean():.6f}", "accuracy_low": low, "accuracy_high": high}
        rows.append(row | {"log_loss": f"{outcome.losses.mean():.6f}"})
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------


def _draw(path: Path, found: Bought, confidence: float) -> None:
    """Draw the accuracy over the data's date where there is a history, and the learning curve."""
    panels = 2 if found.until else 1
    made = pictures.figure(5.5 * panels, 4)
    axes = np.ravel(made.subplots(1, panels, squeeze=False))
    if found.until:
        _draw_history(axes[0], found, confidence)
    _draw_curve(axes[-1], found, confidence)
    pictures.save(made, path)


def _draw_history(axes: Any, found: Bought, confidence: float) -> None:
    names = [outcome.part.name for outcome in found.until]
    places = np.arange(len(names))
    axes.errorbar(
        places, *_bars(found.until, confidence), color=pictures.BLUE, marker="o", capsize=3, label="data until then"
    )
    if found.after:
        without = [step.outcome for step in found.after if step.outcome.part.name in names]
        there = [names.index(outcome.part.name) for outcome in without]
        bars = _bars(without, confidence)
        axes.errorbar(
            there, *bars, color=pictures.ORANGE, marker="s", capsize=3, linestyle="--", label="data after then only"
        )
    if len(found.newest):
        right = [100 * outcome.right[:, found.newest].mean() for outcome in found.until]
        axes.plot(places, right, color=pictures.GREY, marker="^", label="until then, on the newest test images")
    axes.set_xticks(places, names, rotation=30, ha="right", fontsize=8)
    axes.set(title="By the date of the data", ylabel="test accuracy, %")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)


def _bars(outcomes: Sequence[Outcome], confidence: float) -> tuple[Any, Any]:
    """Return means and distances to the ends of their intervals, in points of a hundred."""
    means = np.array([100 * float(outcome.right.mean()) for outcome in outcomes])
    ends = 100 * np.array([_wilson(outcome, confidence) for outcome in outcomes]).T
    return means, np.maximum([means - ends[0], ends[1] - means], 0)


def _draw_curve(axes: Any, found: Bought, confidence: float) -> None:
    images = [outcome.part.images for outcome in found.shares]
    means, ends = _bars(found.shares, confidence)
    axes.errorbar(images, 100 - means, ends[::-1], color=pictures.BLUE, marker="o", linestyle="none", capsize=3)
    reach = np.geomspace(min(images), _AHEAD * max(images), 200)
    inside = reach <= max(images)
    law = np.array([100 * found.error.law.error(float(count)) for count in reach])
    axes.plot(reach[inside], law[inside], color=pictures.BLUE, label="fitted power law")
    axes.plot(reach[~inside], law[~inside], color=pictures.BLUE, linestyle=":", label="the law beyond the data")
    axes.set(title="By the number of images", xlabel="training images", ylabel="test error, %", xscale="log")
    ticks = [*images[::2], 2 * images[-1], _AHEAD * images[-1]]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8)
    axes.minorticks_off()
    axes.set_ylim(0, None)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)
