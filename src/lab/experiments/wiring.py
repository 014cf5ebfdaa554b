"""What can be wrong with a network: `check_model.py` asks these of fresh weights, and of one short training of them."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnxruntime as ort
import torch
import torch.nn.functional as F
from torch import Tensor

from src.core.command import UserError
from src.core.shape import Spec
from src.release import modelcheck
from src.training import export
from src.training.classifier import Classifier, Served

EARLY = 10  # steps in which every parameter must have had a gradient
ENOUGH = 100  # steps after which a loss that has not halved is a fault
LEARNT = 0.1  # a loss that counts as none: 90 % sure of the right class of every image
REPEATED = 3  # steps that a second training takes
BATCHES = (1, 2, 7)  # one, two and an odd number of images
_RATE = 0.003  # of AdamW, the same for all networks: what is asked is the wiring, not the recipe

Result = Literal["ok", "warn", "not shown", "FAIL"]  # not shown: too few steps to tell
Found = tuple[Result, str, str]  # the result, what was found, and advice for what is not ok


@dataclass(frozen=True)
class Subject:
    """A network and what it is tried with. `build` returns it with fresh weights, the same ones each time.

    `images` are uint8 (n, channels, height, width), and `labels` int64 (n,), on `device`.
    """

    build: Callable[[], Classifier]
    images: Tensor
    labels: Tensor
    classes: list[str]
    spec: Spec
    device: torch.device
    bf16: bool

    def autocast(self) -> torch.autocast:
        """Return the context that training computes in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


@dataclass
class Lesson:
    """What a short training on the subject's images showed."""

    classifier: Classifier
    losses: list[float] = field(default_factory=list)
    accuracy: float = 0.0  # of the last step, in training mode
    gradients: dict[str, float] = field(default_factory=dict)  # the largest of each parameter; NaN where one was not finite


def learn(subject: Subject, steps: int) -> Lesson:
    """Train on the same images, unaugmented, until there is hardly a loss, or the steps run out."""
    lesson = Lesson(subject.build())
    learning = {name: value for name, value in lesson.classifier.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(learning.values(), lr=_RATE, weight_decay=0.0)
    torch.manual_seed(0)
    for step in range(steps):
        with subject.autocast():
            logits = lesson.classifier(subject.images).float()
        loss = F.cross_entropy(logits, subject.labels)
        optimizer.zero_grad(set_to_none=True)
        if not loss.requires_grad:
            break
        loss.backward()  # type: ignore[no-untyped-call]
        lesson.losses.append(loss.item())
        lesson.accuracy = (logits.argmax(dim=1) == subject.labels).float().mean().item()
        for name, value in learning.items() if step < EARLY else ():
            if value.grad is not None:
                largest, known = value.grad.abs().max().item(), lesson.gradients.get(name, 0.0)
                lesson.gradients[name] = max(known, largest) if math.isfinite(largest + known) else math.nan
        optimizer.step()
        settled = step >= EARLY and max(lesson.losses[-3:]) < LEARNT / 2
        if settled or not math.isfinite(lesson.losses[-1]):
            break
    return lesson


# ---------------------------------------------------------------------------------------------------------------------
# Of fresh weights
# ---------------------------------------------------------------------------------------------------------------------


def shapes(subject: Subject) -> Found:
    """Ask for one row a class for batches of one, two and an odd number of images."""
    classifier = subject.build().eval()
    for n in BATCHES:
        try:
            with torch.inference_mode():
                shape = tuple(classifier(subject.images[torch.arange(n) % len(subject.images)]).shape)
        except Exception as error:  # whatever the network of a stranger raises is the finding
            advice = "mend forward() in src/model.py, or set prepare.image_size in params.yaml to what the network takes"
            return "FAIL", f"a batch of {n} raises {first_line(error)}", advice
        if shape != (n, len(subject.classes)):
            told = f"a batch of {n} gives {shape}, expected {(n, len(subject.classes))}"
            return "FAIL", told, "the last layer must have one output a class: shape.classes"
    return "ok", f"(n, {len(subject.classes)}) for batches of {', '.join(map(str, BATCHES))}", ""


def logits(subject: Subject) -> Found:
    """Ask for logits, which the loss takes; a softmax in the network would be applied twice, and learning would crawl."""
    with torch.inference_mode():
        answers = subject.build().eval()(subject.images).float()
    sums = answers.sum(dim=1)
    if bool((answers >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        advice = "remove the softmax at the end of the network: the loss and the served model apply it themselves"
        return "FAIL", "the answers are probabilities: each row sums to 1", advice
    return "ok", f"answers from {answers.min():.3g} to {answers.max():.3g}", ""


def independence(subject: Subject) -> Found:
    """Ask for the same answer for an image, whichever others are asked about with it."""
    classifier = subject.build().eval()
    with torch.inference_mode():
        together = classifier(subject.images[:8]).float()
        alone = torch.cat([classifier(image[None]).float() for image in subject.images[:8]])
    # the largest difference, as a share of the largest answer where that is over 1
    apart = ((together - alone).abs().max() / alone.abs().max().clamp(min=1)).item()
    if apart > 0.01:
        advice = "some layer computes over dimension 0, the batch: statistics of a batch belong into training mode alone"
        return "FAIL", f"answers differ by {apart:.2g} from those in a batch", advice
    return "ok", f"answers as in a batch (to {apart:.1g})", ""


def extremes(subject: Subject) -> Found:
    """Ask for finite numbers for black, white and noise, in training and after it."""
    noise = torch.randint(0, 256, subject.images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    tried = {"black": torch.zeros_like(noise), "white": torch.full_like(noise, 255), "noise": noise}
    for mode in ("evaluation", "training"):
        for name, images in tried.items():
            with torch.no_grad(), subject.autocast():
                answers = subject.build().train(mode == "training")(images.to(subject.device))
            if not bool(torch.isfinite(answers).all()):
                advice = "guard divisions, logarithms and roots in forward() (add an epsilon)"
                return "FAIL", f"{name} images give NaN or infinity in {mode} mode", advice
    return "ok", f"finite for {', '.join(tried)}", ""


# ---------------------------------------------------------------------------------------------------------------------
# Of a short training
# ---------------------------------------------------------------------------------------------------------------------


def first_loss(subject: Subject, lesson: Lesson) -> Found:
    """Ask a network that knows nothing to be as unsure as chance.

    Source: Karpathy, "A Recipe for Training Neural Networks" (2019).
    """
    if not lesson.losses:
        return "FAIL", "the answers do not depend on any weight", "do not detach() inside forward()"
    chance, first = math.log(len(subject.classes)), lesson.losses[0]
    told = f"{first:.3g}; chance is {chance:.3g}"
    if not math.isfinite(first):
        return "FAIL", told, "guard divisions, logarithms and roots in forward() (add an epsilon)"
    if first > 2 * chance + 0.5:
        return "warn", told, "start the last layer with smaller weights, or add a norm before it"
    return "ok", told, ""


def gradients(_: Subject, lesson: Lesson) -> Found:
    """Ask every parameter to hear from the loss within the first steps; at the very first some wait for a zero to leave."""
    learning = [name for name, value in lesson.classifier.named_parameters() if value.requires_grad]
    if silent := [name for name in learning if name not in lesson.gradients]:
        advice = "use it in forward(), and do not detach() what it makes; or remove it"
        return "FAIL", f"none reaches {_listed(silent)}", advice
    if broken := [name for name, largest in lesson.gradients.items() if math.isnan(largest)]:
        return "FAIL", f"not finite in {_listed(broken)}", "guard divisions and roots behind that layer"
    if still := [name for name, largest in lesson.gradients.items() if largest == 0]:
        advice = "what follows is dead (a ReLU that never opens, a weight of zero): change its start, or add a norm"
        return "FAIL", f"always zero in {_listed(still)}", advice
    return "ok", f"finite and not zero in all {len(learning)} parameters", ""


def overfits(subject: Subject, lesson: Lesson) -> Found:
    """Ask for a few images to be learnt by heart. Source: Karpathy, "A Recipe for Training Neural Networks" (2019)."""
    if not lesson.losses:
        return "FAIL", "there is nothing to learn", "do not detach() inside forward()"
    first, last, precision = lesson.losses[0], lesson.losses[-1], "bf16" if subject.bf16 else "fp32"
    told = (
        f"{len(subject.labels)} images: loss {first:.3g} to {last:.3g}, accuracy {lesson.accuracy:.0%} "
        f"after {len(lesson.losses)} steps of {precision}"
    )
    if last < LEARNT and lesson.accuracy > 0.99:
        return "ok", told, ""
    if math.isfinite(last) and (last < first / 2 or len(lesson.losses) < ENOUGH):
        return "not shown", told, 'run make check-model ARGS="--steps 600", or lower dropout in src/model.py'
    return "FAIL", told, "labels, loss or a layer are wired wrongly: mend what the other checks name"


def modes(subject: Subject, lesson: Lesson) -> Found:
    """Ask what was learnt to hold in evaluation mode, which is served."""
    if lesson.accuracy <= 0.99:
        return "not shown", "it has not learnt the images", "see learns by heart"
    with torch.inference_mode():
        answers = copy.deepcopy(lesson.classifier).eval()(subject.images).float()
    accuracy = (answers.argmax(dim=1) == subject.labels).float().mean().item()
    told = f"accuracy {accuracy:.0%} on the same images; {lesson.accuracy:.0%} in training mode"
    if accuracy < 0.9:
        advice = (
            "running statistics are far from the batch's: use fewer norms with momentum; or a layer acts in one mode alone"
        )
        return "warn", told, advice
    return "ok", told, ""


def repeats(subject: Subject, lesson: Lesson) -> Found:
    """Ask two trainings with one seed for the same losses, to the bit."""
    one = lesson.losses[:REPEATED]
    if len(one) < 2:
        return "not shown", "it did not come to a second step", "see the checks above"
    two = learn(subject, len(one)).losses
    if one == two:
        return "ok", f"the same losses twice, to the bit, over {len(one)} steps", ""
    told = f"another loss the second time, first at step {sum(a == b for a, b in zip(one, two, strict=True)) + 1}"
    if subject.device.type == "cuda":
        return "warn", told, "some operations of a GPU add up in any order; on a CPU it must not happen"
    return "FAIL", told, "draw random numbers from torch alone, and keep no state outside of the network"


def parity(subject: Subject, lesson: Lesson, tolerance: float) -> Found:
    """Ask the exported file to answer as PyTorch does, for one image and for several."""
    classifier = copy.deepcopy(lesson.classifier).cpu().eval()
    try:
        made = export.to_onnx(classifier, subject.spec, subject.classes)
    except UserError as error:
        return "FAIL", str(error), "without the export nothing can be served"
    if fault := modelcheck.fault_of(made):
        told, _, advice = fault.partition(": ")
        return "FAIL", f"the export {told}", advice
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    apart = 0.0
    for n in BATCHES:
        images = np.random.default_rng(n).integers(0, 256, (n, *subject.spec.shape)).astype(subject.spec.dtype)
        with torch.inference_mode():
            expected = Served(classifier)(torch.from_numpy(images)).numpy()
        apart = max(apart, float(np.abs(session.run(None, {export.INPUT: images})[0] - expected).max()))
    if not apart <= tolerance:
        advice = "an operation means another thing in ONNX (interpolation, rounding, padding): rewrite it"
        return "FAIL", f"probabilities differ from PyTorch's by {apart:.2g}", advice
    return "ok", f"probabilities as PyTorch's (to {apart:.1g}) for batches of {', '.join(map(str, BATCHES))}", ""


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - 4
    named = (name.removeprefix("network.") for name in names[:4])
    return ", ".join(named) + (f" and {rest} more" if rest > 0 else "")


def first_line(error: BaseException) -> str:
    """Return an error's class and first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
