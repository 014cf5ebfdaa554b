"""What can be wrong with the answers of a network: `check_model.py` asks these of fresh and trained weights."""

import copy
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from src.core.command import UserError
from src.lab.experiments.wiring import BATCHES, Finding, Lesson, Subject, first_line, is_finite, some, watched
from src.release import modelcheck
from src.training import export
from src.training.classifier import Classifier, Served


def shapes(subject: Subject) -> Finding:
    """One row a class for batches of one, two and an odd number of images."""
    classifier, answers = subject.build().eval(), {}
    for n in BATCHES:
        try:
            with torch.inference_mode():
                answers[n] = tuple(classifier(some(subject, n)).shape)
        except Exception as error:  # whatever the network of a stranger raises is the finding
            advice = "mend forward() in src/model.py, or set prepare.image_size in params.yaml to what the network takes"
            return Finding("shapes", "FAIL", f"a batch of {n} raises {first_line(error)}", advice)
    expected = {n: (n, len(subject.classes)) for n in BATCHES}
    if answers != expected:
        wrong = next(n for n in BATCHES if answers[n] != expected[n])
        told = f"a batch of {wrong} gives {answers[wrong]}, expected {expected[wrong]}"
        return Finding("shapes", "FAIL", told, "the last layer must have one output a class: shape.classes")
    return Finding("shapes", "ok", f"(n, {len(subject.classes)}) for batches of {', '.join(map(str, BATCHES))}")


def logits(subject: Subject) -> Finding:
    """The loss takes logits; a softmax in the network would be applied twice, and learning would crawl."""
    with torch.inference_mode():
        answers = subject.build().eval()(subject.images).float()
    sums = answers.sum(dim=1)
    if bool((answers >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        advice = "remove the softmax at the end of the network: the loss and the served model apply it themselves"
        return Finding("logits", "FAIL", "the answers are probabilities: each row sums to 1", advice)
    return Finding("logits", "ok", f"answers from {answers.min():.3g} to {answers.max():.3g}")


def independence(subject: Subject) -> Finding:
    """What is answered for an image may not depend on which others are asked about with it."""
    classifier = subject.build().eval()
    with torch.inference_mode():
        together = classifier(subject.images[:8]).float()
        alone = torch.cat([classifier(image[None]).float() for image in subject.images[:8]])
    apart = _apart(together, alone)
    if apart > 0.01:
        advice = "some layer computes over dimension 0, the batch: statistics of a batch belong into training mode alone"
        return Finding("one image alone", "FAIL", f"answers differ by {apart:.2g} from those in a batch", advice)
    return Finding("one image alone", "ok", f"answers as in a batch (to {apart:.1g})")


def extremes(subject: Subject) -> Finding:
    """Black, white and noise must not make a number that is none, neither in training nor after it."""
    noise = torch.randint(0, 256, subject.images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    tried = {"black": torch.zeros_like(noise), "white": torch.full_like(noise, 255), "noise": noise}
    for mode in ("evaluation", "training"):
        for name, images in tried.items():
            classifier = subject.build().train(mode == "training")
            layer = _first_notis_finite(subject, classifier, images.to(subject.device))
            if layer:
                told = f"{name} images give NaN or infinity in {mode} mode, first in {layer}"
                return Finding(
                    "extreme images", "FAIL", told, "guard divisions, logarithms and roots there (add an epsilon)"
                )
    return Finding("extreme images", "ok", f"finite for {', '.join(tried)}")


def _first_notis_finite(subject: Subject, classifier: Classifier, images: Tensor) -> str:
    """Return the first layer whose output is not finite; empty where all are."""
    found: list[str] = []

    def see(name: str, given: Any, out: Any) -> None:
        if not is_finite(out):
            found.append(name if all(map(is_finite, given)) else f"what forward() does before {name}")

    with watched(classifier, see), torch.no_grad(), subject.autocast():
        answers = classifier(images)
    return found[0] if found else "" if is_finite(answers) else "the end of forward()"


def parity(lesson: Lesson, subject: Subject, tolerance: float) -> Finding:
    """The exported file must answer as PyTorch does, for one image and for several."""
    classifier = copy.deepcopy(lesson.classifier).cpu().eval()
    channels, *size = subject.images.shape[1:]
    try:
        made = export.to_onnx(classifier, (size[0], size[1]), channels, subject.classes)
    except UserError as error:
        return Finding("ONNX", "FAIL", str(error), "without the export nothing can be served")
    if fault := modelcheck.fault_of(made):
        told, _, advice = fault.partition(": ")
        return Finding("ONNX", "FAIL", f"the export {told}", advice)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    apart = 0.0
    for n in BATCHES:
        images = np.random.default_rng(n).integers(0, 256, (n, *size, channels), dtype=np.uint8)
        with torch.inference_mode():
            expected = Served(classifier)(torch.from_numpy(images)).numpy()
        apart = max(apart, float(np.abs(session.run(None, {export.INPUT: images})[0] - expected).max()))
    if not apart <= tolerance:
        advice = "an operation means another thing in ONNX (interpolation, rounding, padding): rewrite it"
        return Finding("ONNX", "FAIL", f"probabilities differ from PyTorch's by {apart:.2g}", advice)
    return Finding(
        "ONNX", "ok", f"probabilities as PyTorch's (to {apart:.1g}) for batches of {', '.join(map(str, BATCHES))}"
    )


def _apart(one: Tensor, two: Tensor) -> float:
    """The largest difference, as a share of the largest answer where that is over 1."""
    return ((one - two).abs().max() / two.abs().max().clamp(min=1)).item()
