"""What an ablation comes to: the effect of each augmentation with its interval, its cost, and a verdict in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from src.core import significance
from src.core.command import table
from src.lab.experiments.cost import Cost
from src.lab.experiments.crossed import Effect, effect
from src.lab.experiments.page import listed, points
from src.lab.experiments.trainings import Answers
from src.lab.experiments.variants import Variant, shown

_FREE = 1.02  # times the baseline: less than that is not told from noise
EARNS, HURTS, MIXED, NOTHING = "earns its cost", "hurts", "mixed", "no difference seen"


@dataclass(frozen=True)
class Finding:
    """One augmentation: what having it adds to accuracy and log loss, as with minus without, and what it costs.

    `accuracy_p` and `loss_p` are adjusted for all comparisons of the study. `accuracies` and `losses` are those of the
    variant, one a seed. `time` is seconds of an epoch with it over those without.
    """

    variant: Variant
    accuracy: Effect
    loss: Effect
    accuracy_p: float
    loss_p: float
    accuracies: list[float]
    losses: list[float]
    time: Cost
    verdict: str


def judge(
    tried: Sequence[Variant],
    baseline: Sequence[Answers],
    others: Sequence[Sequence[Answers]],
    costs: Mapping[str, Cost],
    confidence: float,
) -> list[Finding]:
    """Compare each variant with the baseline, paired over seeds and images.

    Each augmentation is tested twice, by accuracy and by log loss; Holm's correction covers all tests of the study.

    Args:
        tried: the variants.
        baseline: its answers, one a seed.
        others: the answers of each variant, likewise.
        costs: seconds of an epoch of each variant over the baseline's, by name.
        confidence: of the intervals; 1 minus it is what an adjusted p value must be under to count.
    """
    effects = [_effects(variant, baseline, answers, confidence) for variant, answers in zip(tried, others, strict=True)]
    adjusted = significance.holm([found.p for pair in effects for found in pair])
    findings = []
    for i, (variant, answers, (accuracy, loss)) in enumerate(zip(tried, others, effects, strict=True)):
        accuracy_p, loss_p = adjusted[2 * i], adjusted[2 * i + 1]
        better = {accuracy.mean > 0} if accuracy_p < 1 - confidence else set()
        better |= {loss.mean < 0} if loss_p < 1 - confidence else set()
        accuracies = [float(seed.right.mean()) for seed in answers]
        losses = [float(seed.losses.mean()) for seed in answers]
        time = _with_it(costs[variant.name], variant)
        findings.append(
            Finding(variant, accuracy, loss, accuracy_p, loss_p, accuracies, losses, time, _verdict(better, time))
        )
    return findings


def _effects(
    variant: Variant, baseline: Sequence[Answers], answers: Sequence[Answers], confidence: float
) -> tuple[Effect, Effect]:
    """Return what the augmentation adds to accuracy and to log loss: where the recipe has it, the baseline is `with`."""
    sign = -1.0 if variant.on else 1.0
    pairs = list(zip(answers, baseline, strict=True))
    right = np.stack([this.right.astype(float) - base.right for this, base in pairs])
    losses = np.stack([this.losses - base.losses for this, base in pairs])
    return effect(sign * right, confidence), effect(sign * losses, confidence)


def _with_it(measured: Cost, variant: Variant) -> Cost:
    return Cost(1 / measured.ratio, 1 / measured.high, 1 / measured.low) if variant.on else measured


def _verdict(better: set[bool], time: Cost) -> str:
    if better:
        return MIXED if len(better) > 1 else EARNS if better.pop() else HURTS
    # every turn must have been slower: a median alone wanders
    return f"{NOTHING}, costs {time.ratio - 1:.0%} of the time" if time.ratio > _FREE and time.low > 1 else NOTHING


def sentence(findings: Sequence[Finding]) -> str:
    """Answer the question in one line."""
    said = []
    for verdict, words in ((EARNS, "Earns its cost"), (HURTS, "Hurts"), (MIXED, "Mixed"), (NOTHING, "No difference seen")):
        names = [finding.variant.name for finding in findings if finding.verdict.startswith(verdict)]
        if names:
            said.append(f"{words}: {listed(names)}.")
    return " ".join(said)


def text(findings: Sequence[Finding]) -> str:
    """Lay the findings out for a terminal."""
    header = ["augmentation", "strength", "recipe", "accuracy, points", "time", "verdict"]
    rows = [
        [
            finding.variant.name,
            shown(finding.variant.strength),
            "on" if finding.variant.on else "off",
            points(finding.accuracy),
            f"x{finding.time.ratio:.2f}",
            finding.verdict,
        ]
        for finding in findings
    ]
    return table(header, rows)
