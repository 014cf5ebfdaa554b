"""What can be wrong with how a network learns: `src.lab.experiments.check_model` asks these of one short training."""

import copy
import math
from typing import Any

import torch

from src.lab.experiments.wiring import (
    EARLY,
    ENOUGH,
    LEARNT,
    REPEATED,
    Finding,
    Lesson,
    Subject,
    is_zero,
    learn,
    listed,
    plain,
    watched,
)


def first_loss(lesson: Lesson, subject: Subject) -> Finding:
    """A network that knows nothing is as unsure as chance. Source: Karpathy, "A Recipe for Training Neural Networks"."""
    if not lesson.losses:
        return Finding("first loss", "FAIL", "the answers do not depend on any weight", "do not detach() inside forward()")
    chance, first = math.log(len(subject.classes)), lesson.losses[0]
    told = f"{first:.3g}; chance is {chance:.3g}"
    if not math.isfinite(first):
        return Finding("first loss", "FAIL", told, "see which layer the check of extreme images names")
    if first > 2 * chance + 0.5:
        return Finding("first loss", "warn", told, "start the last layer with smaller weights, or add a norm before it")
    return Finding("first loss", "ok", told)


def gradients(lesson: Lesson) -> Finding:
    """Every parameter must hear from the loss within the first steps; at the very first some wait for a zero to leave."""
    learning = [name for name, value in lesson.classifier.named_parameters() if value.requires_grad]
    silent = [name for name in learning if name not in lesson.gradients]
    broken = [name for name, largest in lesson.gradients.items() if math.isnan(largest)]
    still = [name for name, largest in lesson.gradients.items() if largest == 0]
    if silent:
        advice = "use it in forward(), and do not detach() what it makes; or remove it"
        return Finding("gradients", "FAIL", f"none reaches {listed(silent)}", advice)
    if broken:
        return Finding("gradients", "FAIL", f"not finite in {listed(broken)}", "guard divisions and roots behind that layer")
    if still:
        advice = "what follows is dead (a ReLU that never opens, a weight of zero): change its start, or add a norm"
        return Finding("gradients", "FAIL", f"always zero in {listed(still)}", advice)
    return Finding("gradients", "ok", f"finite and not zero in all {len(learning)} parameters")


def updates(lesson: Lesson) -> Finding:
    """How far a step moves each layer. About a thousandth is usual; a layer far from the others learns another thing."""
    weights = {name: ratio for name, ratio in lesson.ratios.items() if math.isfinite(ratio) and "weight" in name}
    if not weights:
        return Finding("updates", "not shown", f"it did not come to step {EARLY}", "see the checks above")
    low, high = (choose(weights, key=weights.__getitem__) for choose in (min, max))
    told = f"a step moves weights by {weights[low]:.1g} ({plain(low)}) to {weights[high]:.1g} ({plain(high)}) of their size"
    if weights[high] > 1:
        return Finding("updates", "warn", told, "that layer's weights start tiny beside the others': check how they start")
    return Finding("updates", "ok", told)


def overfits(lesson: Lesson, subject: Subject) -> Finding:
    """A few images must be learnt by heart. Source: Karpathy, "A Recipe for Training Neural Networks" (2019)."""
    if not lesson.losses:
        return Finding("learns by heart", "FAIL", "there is nothing to learn", "do not detach() inside forward()")
    first, last, precision = lesson.losses[0], lesson.losses[-1], "bf16" if subject.bf16 else "fp32"
    told = (
        f"{len(subject.labels)} images: loss {first:.3g} to {last:.3g}, accuracy {lesson.accuracy:.0%} "
        f"after {len(lesson.losses)} steps of {precision}"
    )
    if last < LEARNT and lesson.accuracy > 0.99:
        return Finding("learns by heart", "ok", told)
    if math.isfinite(last) and (last < first / 2 or len(lesson.losses) < ENOUGH):
        return Finding(
            "learns by heart", "not shown", told, 'run make check-model ARGS="--steps 600", or lower dropout in src/model.py'
        )
    return Finding(
        "learns by heart", "FAIL", told, "labels, loss or a layer are wired wrongly: mend what the other checks name"
    )


def dead(lesson: Lesson, subject: Subject) -> Finding:
    """No layer may answer all images with nothing."""
    silent: list[str] = []
    classifier = copy.deepcopy(lesson.classifier).eval()

    def see(name: str, given: Any, out: Any) -> None:
        if is_zero(out) or any(map(is_zero, given)):
            silent.append(name if is_zero(out) else f"what forward() does before {name}")

    with watched(classifier, see), torch.no_grad():
        classifier(subject.images)
    if silent:
        advice = "its weights or biases start where the activation is shut: change them, or use a leaky one"
        return Finding("dead layers", "FAIL", f"only zeros come out of {listed(silent)}", advice)
    return Finding("dead layers", "ok", "none")


def modes(lesson: Lesson, subject: Subject) -> Finding:
    """What was learnt must hold in evaluation mode, which is served."""
    if lesson.accuracy <= 0.99:
        return Finding("evaluation mode", "not shown", "it has not learnt the images", "see learns by heart")
    with torch.inference_mode():
        answers = copy.deepcopy(lesson.classifier).eval()(subject.images).float()
    accuracy = (answers.argmax(dim=1) == subject.labels).float().mean().item()
    told = f"accuracy {accuracy:.0%} on the same images; {lesson.accuracy:.0%} in training mode"
    if accuracy < 0.9:
        advice = (
            "running statistics are far from the batch's: fewer norms with momentum, or a layer that acts in one mode alone"
        )
        return Finding("evaluation mode", "warn", told, advice)
    return Finding("evaluation mode", "ok", told)


def repeats(lesson: Lesson, subject: Subject) -> Finding:
    """Two trainings with one seed must have the same losses, to the bit."""
    one = lesson.losses[:REPEATED]
    if len(one) < 2:
        return Finding("repeatable", "not shown", "it did not come to a second step", "see the checks above")
    two = learn(subject, len(one)).losses
    if one == two:
        return Finding("repeatable", "ok", f"the same losses twice, to the bit, over {len(one)} steps")
    told = f"another loss the second time, first at step {sum(a == b for a, b in zip(one, two, strict=True)) + 1}"
    if subject.device.type == "cuda":
        return Finding(
            "repeatable", "warn", told, "some operations of a GPU add up in any order; on a CPU it must not happen"
        )
    return Finding(
        "repeatable", "FAIL", told, "draw random numbers from torch alone, and keep no state outside of the network"
    )
