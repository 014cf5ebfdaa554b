"""What the test results say: pure functions from labels and probabilities to numbers.

`labels` are int64 of shape (n,), `probabilities` float32 of shape (n, classes).
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from src.core.files import rounded

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float32]
WHAT_TO_TRY = (
    "Try `make suggest` (a recipe for your data), `make find-lr` (a learning rate), `make check-model` (the network)"
)


def overall(labels: Labels, probabilities: Probabilities, confidence: float, bins: int) -> dict[str, Any]:
    """Return accuracy with its interval, macro F1, log loss and calibration error."""
    predicted = probabilities.argmax(axis=1)
    _, _, f1, _ = _scores(labels, predicted, probabilities.shape[1])
    present = np.bincount(labels, minlength=probabilities.shape[1]) > 0
    return {
        **accuracy(labels == predicted, confidence),
        "macro_f1": rounded(f1[present].mean()),
        "log_loss": rounded(log_losses(labels, probabilities).mean()),
        "ece": rounded(calibration_error(labels, probabilities, bins)),
    }


def accuracy(right: NDArray[np.bool_], confidence: float) -> dict[str, float]:
    """Return the share of right answers with its Wilson interval.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    interval = binomtest(int(right.sum()), len(right)).proportion_ci(confidence, method="wilson")
    low, high = (rounded(bound) for bound in (interval.low, interval.high))
    return {"accuracy": rounded(right.mean()), "accuracy_low": low, "accuracy_high": high}


def one_class_warning(predicted: Sequence[int], classes: Sequence[str], images: str) -> str | None:
    """Warn of a model that gives every image to one class.

    Args:
        predicted: how many images were given to each of `classes`.
        classes: their names.
        images: what they are, such as `validation images`.
    """
    if np.count_nonzero(predicted) != 1:
        return None
    return f"the model gives all {sum(predicted)} {images} to the class {classes[int(np.argmax(predicted))]}. {WHAT_TO_TRY}"


def log_losses(labels: Labels, probabilities: Probabilities) -> NDArray[np.float64]:
    """Return the negative log likelihood of each true label, shape (n,); a probability of zero counts as 1e-7."""
    likelihood = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return -np.log(np.clip(likelihood, 1e-7, 1.0))


def per_class(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return precision, recall, F1 and the number of test images of each class."""
    columns = _scores(labels, probabilities.argmax(axis=1), len(classes))
    return {
        name: {"precision": rounded(p), "recall": rounded(r), "f1": rounded(f), "examples": int(n)}
        for name, p, r, f, n in zip(classes, *columns, strict=True)
    }


def _scores(labels: Labels, predicted: NDArray[Any], classes: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that is never predicted has precision 0, as zero_division says
        return precision_recall_fscore_support(labels, predicted, labels=range(classes), zero_division=0)


def confusion(labels: Labels, probabilities: Probabilities) -> NDArray[np.int64]:
    """Return counts of shape (classes, classes): rows are true labels, columns predictions."""
    counts: NDArray[np.int64] = confusion_matrix(labels, probabilities.argmax(axis=1), labels=range(probabilities.shape[1]))
    return counts


def calibration(labels: Labels, probabilities: Probabilities, bins: int) -> list[dict[str, float]]:
    """Return the reliability curve: for each bin of confidence that holds images, their mean confidence and accuracy."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        {
            "confidence": rounded(confidence[places == place].mean()),
            "accuracy": rounded(right[places == place].mean()),
            "examples": int((places == place).sum()),
        }
        for place in np.unique(places)
    ]


def calibration_error(labels: Labels, probabilities: Probabilities, bins: int) -> float:
    """Return the expected calibration error over bins of equal width.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017), equation 3.
    """
    right = probabilities.argmax(axis=1) == labels
    return calibration_gap(right, probabilities.max(axis=1).astype(np.float64), bins)


def calibration_gap(right: NDArray[np.bool_], confidences: NDArray[np.float64], bins: int) -> float:
    """Return the expected calibration error from right answers and confidences, each of shape (n,)."""
    places = np.minimum((confidences * bins).astype(int), bins - 1)
    gaps = np.bincount(places, weights=right - confidences, minlength=bins)
    return float(np.abs(gaps).sum() / len(right))


def fitted_temperature(labels: Labels, logits: NDArray[np.float32]) -> float:
    """Return the number, 0.05 to 20, that logits of shape (n, classes) are best divided by: it minimises the log loss.

    One image in n + 1 counts as of any class: where few images are all answered right, the loss alone would make every
    answer certain. Sources: Guo et al., "On Calibration of Modern Neural Networks" (2017), temperature scaling; Platt,
    "Probabilistic Outputs for Support Vector Machines" (1999), section 2.2, on targets that are not quite 0 and 1.
    """
    share = 1 / (len(labels) + 1)
    true = logits[np.arange(len(labels)), labels].astype(np.float64)
    target = (1 - share) * true + share * logits.astype(np.float64).mean(axis=1)

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float((logsumexp(logits * scale, axis=1) - target * scale).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def slices(
    right: NDArray[np.bool_], members: Mapping[str, NDArray[np.bool_]], confidence: float
) -> dict[str, dict[str, float]]:
    """Return the accuracy, with interval, of each named subset that holds images."""
    return {
        name: {**accuracy(right[mask], confidence), "examples": int(mask.sum())}
        for name, mask in members.items()
        if mask.any()
    }


def thirds(name: str, values: NDArray[Any]) -> dict[str, NDArray[np.bool_]]:
    """Cut images into the lower, middle and upper third of a number, or nothing where all are alike."""
    low, high = np.quantile(values, [1 / 3, 2 / 3])
    if low == high:
        return {}
    return {
        f"{name}: low": values <= low,
        f"{name}: middle": (values > low) & (values <= high),
        f"{name}: high": values > high,
    }


def groups(values: Sequence[str | None], largest: int = 20) -> dict[str, NDArray[np.bool_]]:
    """Cut images by group: the largest ones, where there are at least two."""
    names = np.array([value or "" for value in values])
    found, counts = np.unique(names[names != ""], return_counts=True)
    if len(found) < 2:
        return {}
    kept = found[np.argsort(-counts, kind="stable")[:largest]]
    return {f"group: {name}": names == name for name in kept}
