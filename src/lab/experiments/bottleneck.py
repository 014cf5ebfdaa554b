"""What holds training up: shares of a step by cause, the largest of which is the verdict, as a page and a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from src.core import pictures
from src.lab.experiments.step_parts import Measured, Operator

_TOP = 10
_HEAVY = ("conv", "mm", "matmul", "linear", "attention")  # in the name of an operation: arithmetic, not moving of memory
_PARTS_REMARK = (
    "The device finishes each part before the next begins, so the sum can be longer than an undisturbed step. `backward` "
    "has the loss and the clipping of gradients in it."
)
_REMARK = (
    "Overhead is what forward and backward still take when a step has two images. Validation, checkpoints and MLflow come "
    "once an epoch and are not in it. `trace.json.gz` opens in chrome://tracing or ui.perfetto.dev."
)


class Cause(NamedTuple):
    """One thing that can hold training up: `advice` names the parameter to change."""

    name: str
    what: str
    advice: str


CAUSES = {
    "data": Cause(
        "data",
        "waiting for the next batch",
        "Take augmentations away (`train.augment`; `rotate` and `scale` cost most), or give the machine the memory to hold "
        "the images.",
    ),
    "overhead": Cause(
        "Python and launch overhead",
        "starting operations, the same for any number of images",
        "Raise `train.batch_size` (and `train.learning_rate` with it), or set `train.compile: on`.",
    ),
    "compute": Cause(
        "compute",
        "convolutions and matrix products",
        "This is as it should be. To be faster: `train.precision: bf16` where the hardware has it, a smaller `train.width` "
        "or `prepare.image_size`, or a faster device.",
    ),
    "memory": Cause(
        "memory bandwidth",
        "norms, activations, pooling and copies",
        "Set `train.precision: bf16` where the hardware has it, which halves what is moved, or `train.compile: on`, which "
        "fuses it.",
    ),
    "optimiser": Cause(
        "optimiser",
        "changing the weights",
        "Raise `train.batch_size`: fewer changes in an epoch; or a cheaper `train.optimizer` (sgd before adamw and muon).",
    ),
    "other": Cause(
        "what lies between the steps",
        "the moving average of the weights, the sum of losses",
        "Set `train.ema: 0`, or raise `train.batch_size`.",
    ),
}


def shares(measured: Measured) -> dict[str, float]:
    """Return the share of a step's time that each cause has; they add up to 1.

    The wait for data is that of undisturbed steps, the rest is divided as in the steps that were cut into parts.
    """
    parts, waiting = measured.parts, min(1.0, measured.row["data_wait_share"])
    rest = {part: seconds for part, seconds in parts.items() if part != "data"}
    scale = (1 - waiting) / (sum(rest.values()) or 1.0)
    model = (rest["forward"] + rest["backward"]) * scale
    working = model * (1 - measured.fixed)
    heavy = _heavy(measured.operators)
    return {
        "data": waiting,
        "overhead": model * measured.fixed,
        "compute": working * heavy,
        "memory": working * (1 - heavy),
        "optimiser": rest["optimiser"] * scale,
        "other": rest["other"] * scale,
    }


def verdict(measured: Measured) -> Cause:
    """Return the cause with the largest share."""
    found = shares(measured)
    return CAUSES[max(found, key=found.__getitem__)]


def _heavy(operators: list[Operator]) -> float:
    """The share of convolutions and matrix products in the time of all operations."""
    return sum(each.share for each in operators if any(word in each.name for word in _HEAVY))


def page(measured: Measured, setting: str, peak: str) -> str:
    """Return the page in Markdown.

    Args:
        measured: the steps.
        setting: on what and with what it was measured.
        peak: what utilisation is a share of.
    """
    found, cause = shares(measured), verdict(measured)
    row, step = measured.row, measured.row["seconds"] / measured.steps
    causes = [(CAUSES[key].name, CAUSES[key].what, f"{share:.1%}") for key, share in _sorted(found)]
    parts = [(part, f"{seconds * 1000:,.2f} ms") for part, seconds in measured.parts.items()]
    top = [(f"`{each.name}`", f"{each.share:.1%}", f"{each.calls:,.0f}") for each in measured.operators[:_TOP]]
    speed = (
        f"{setting}. {row['images_per_second']:,.0f} images/s, {step * 1000:,.2f} ms a step, "
        f"{row['flop_utilisation']:.1%} of {peak}, {row['memory_gib']:.2f} GiB at most."
    )
    paragraphs = [
        f"# The bottleneck: {cause.name}",
        f"{max(found.values()):.0%} of a step's time goes into {cause.what}. {cause.advice}",
        speed,
        _table(("cause", "what it is", "share of a step"), causes, "llr"),
        "![shares of a step](bottleneck.png)",
        "## The same steps cut into parts",
        _PARTS_REMARK,
        _table(("part", "time a step"), parts, "lr"),
        "## The costliest operations",
        _table(("operation", "share of all operations", "calls a step"), top, "lrr"),
        f"Measured over {measured.steps} steps of the real loop. {_REMARK}",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _sorted(found: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(found.items(), key=lambda pair: -pair[1])


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], sides: str) -> str:
    rule = ["---:" if side == "r" else ":---" for side in sides]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])


def draw(path: Path, measured: Measured) -> None:
    """Draw the shares of the causes, and those of the costliest operations."""
    found, top = _sorted(shares(measured)), measured.operators[:_TOP]
    made = pictures.figure(11, 3.6)
    left, right = made.subplots(1, 2)
    bars = [
        (left, "Share of a step by cause", [(CAUSES[key].name, share) for key, share in found], pictures.BLUE),
        (right, "Share of all operations", [(each.name.removeprefix("aten::"), each.share) for each in top], pictures.GREY),
    ]
    for axes, title, rows, colour in bars:
        names, values = [pictures.shorten(name, 34) for name, _ in rows], [100 * share for _, share in rows]
        drawn = axes.barh(range(len(rows)), values, color=colour)
        axes.bar_label(drawn, fmt="%.1f %%", fontsize=8, padding=3)
        axes.set_yticks(range(len(rows)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set(title=title, xlim=(0, 1.15 * max(values, default=1)), xticks=[])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    pictures.save(made, path)
