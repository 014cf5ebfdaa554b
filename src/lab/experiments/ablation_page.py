"""The page of an ablation: the answer, the table, the picture, what to change in params.yaml, and how to read it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.core import pictures
from src.images.augment_params import Augment
from src.lab.experiments import page
from src.lab.experiments.trainings import Answers
from src.lab.experiments.variants import shown
from src.lab.experiments.verdicts import EARNS, HURTS, Finding, sentence
from src.system.params import Params
from src.training.task import Task


def write(
    out: Path, findings: Sequence[Finding], baseline: Sequence[Answers], task: Task, params: Params, seeds: int
) -> None:
    """Write ablation.md, ablation.csv and ablation.png into `out`."""
    confidence = params.evaluate.confidence
    page.write_csv(out / "ablation.csv", [_row(finding) for finding in findings])
    _draw(out / "ablation.png", findings, confidence)
    blocks = [
        "# Which augmentation earns its cost",
        sentence(findings),
        _facts(findings, baseline, task, params, seeds),
        _table(findings),
        "![What each augmentation adds to validation accuracy, with intervals](ablation.png)",
        _advice(findings),
        _reading(confidence, seeds, len(findings)),
    ]
    page.write(out / "ablation.md", blocks)


def _facts(findings: Sequence[Finding], baseline: Sequence[Answers], task: Task, params: Params, seeds: int) -> str:
    right = [float(answers.right.mean()) for answers in baseline]
    losses = [float(answers.losses.mean()) for answers in baseline]
    reach = float(np.median([(finding.accuracy.high - finding.accuracy.low) / 2 for finding in findings]))
    train = params.train
    return (
        f"{train.network} of width {train.width}, {train.epochs} epochs, {len(task.training.labels):,} training and "
        f"{len(task.validation.labels):,} validation images, {seeds} seed{'s' * (seeds > 1)}. The recipe as it is: accuracy "
        f"{_spread(right, '.2%')}, log loss {_spread(losses, '.4f')}. With so many images and seeds the intervals reach "
        f"about {100 * reach:.2f} points either way: a smaller effect cannot be seen here."
    )


def _table(findings: Sequence[Finding]) -> str:
    header = [
        "augmentation",
        "strength",
        "in the recipe",
        "the other way: accuracy",
        "it adds, points",
        "p",
        "to the log loss",
        "p",
        "time of an epoch",
        "verdict",
    ]
    return page.table(header, [_cells(finding) for finding in findings])


def _cells(finding: Finding) -> list[str]:
    time = finding.time
    return [
        finding.variant.name,
        shown(finding.variant.strength),
        "yes" if finding.variant.on else "no",
        _spread(finding.accuracies, ".2%"),
        page.points(finding.accuracy),
        f"{finding.accuracy_p:.3f}",
        page.signed(finding.loss),
        f"{finding.loss_p:.3f}",
        f"x{time.ratio:.2f} ({time.low:.2f} to {time.high:.2f})",
        finding.verdict,
    ]


def _spread(values: Sequence[float], form: str) -> str:
    """Say a mean, and the deviation over seeds where there are several."""
    mean = format(float(np.mean(values)), form)
    return f"{mean} ± {format(float(np.std(values, ddof=1)), form)}" if len(values) > 1 else mean


def _advice(findings: Sequence[Finding]) -> str:
    """Return what would change in params.yaml: only what the study is sure of."""
    lines = []
    for finding in findings:
        variant = finding.variant
        if finding.verdict == HURTS and variant.on:
            lines.append((variant.name, "false" if isinstance(variant.strength, bool) else "0"))
        elif finding.verdict == EARNS and not variant.on:
            lines.append((variant.name, shown(variant.strength)))
    if not lines:
        return "## What to change\n\nNothing: no change of the recipe is surely better."
    inside = [f"    {name}: {value}" for name, value in lines if name in Augment.model_fields]
    beside = [f"  {name}: {value}" for name, value in lines if name not in Augment.model_fields]
    yaml = "\n".join(["train:", *beside, *(["  augment:", *inside] if inside else [])])
    return f"## What to change in params.yaml\n\n```yaml\n{yaml}\n```\n\nEach was tried alone: run the study again after it."


def _reading(confidence: float, seeds: int, count: int) -> str:
    one = "" if seeds > 1 else " With one seed its chance is not in the intervals: take several before you decide."
    return (
        "## How to read it\n\n"
        "One thing is switched at a time, all else stays as in params.yaml. *It adds* is the recipe with it minus the "
        f"recipe without it, on the same validation images and seeds, with a {confidence:.0%} interval over images and "
        f"seeds together.{one} A verdict needs a p value under {1 - confidence:.2g} by accuracy or by log loss, after "
        f"Holm's correction for all {2 * count} tests of this page. Time is measured apart, by turns of all recipes on "
        "this machine: median, lowest and highest turn. The best epoch and the temperature of each model are chosen on "
        "the same validation images, alike for all. The test split was not looked at: it still judges whatever you choose. "
        "Few epochs favour weak augmentation: decide by a study of as many as you will train with."
    )


def _row(finding: Finding) -> dict[str, object]:
    variant = finding.variant
    effects = {"accuracy": (finding.accuracy, finding.accuracy_p), "log_loss": (finding.loss, finding.loss_p)}
    row: dict[str, Any] = {"name": variant.name, "strength": shown(variant.strength), "in_recipe": variant.on}
    for name, (found, adjusted) in effects.items():
        row |= {f"{name}_effect": found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
        row |= {f"{name}_p": found.p, f"{name}_p_holm": adjusted}
    return row | {"time_ratio": finding.time.ratio, "verdict": finding.verdict}


def _draw(path: Path, findings: Sequence[Finding], confidence: float) -> None:
    """Draw one bar an augmentation with its interval, the strongest on top."""
    ordered = sorted(findings, key=lambda finding: finding.accuracy.mean)
    made = pictures.figure(8, 1.4 + 0.38 * len(ordered))
    axes = made.subplots()
    means = np.array([100 * finding.accuracy.mean for finding in ordered])
    lows, highs = (np.array([100 * getattr(finding.accuracy, end) for finding in ordered]) for end in ("low", "high"))
    colours = [_colour(finding.verdict) for finding in ordered]
    names = [f"{f.variant.name} {shown(f.variant.strength)}{'' if f.variant.on else ' (off)'}" for f in ordered]
    axes.barh(range(len(ordered)), means, color=colours, height=0.6)
    axes.errorbar(means, range(len(ordered)), xerr=[means - lows, highs - means], fmt="none", ecolor="black", capsize=3)
    axes.set_yticks(range(len(ordered)), names, fontsize=9)
    axes.axvline(0, color="black", linewidth=0.8)
    title = "What each augmentation adds: blue earns its cost, red hurts, grey is no difference seen"
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(f"points of validation accuracy, with {confidence:.0%} interval")
    pictures.save(made, path)


def _colour(verdict: str) -> str:
    return {EARNS: pictures.BLUE, HURTS: pictures.RED}.get(verdict, pictures.GREY)
