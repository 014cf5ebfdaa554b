"""The golden examples, and whether an answer of the service agrees with them.

They are images with the probabilities that the reviewed model gave, listed in golden.json.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.core.command import UserError
from src.core.records import Record
from src.release.client import Answer


class FaultError(Exception):
    """A version that must not serve. The text is the reason, for a person."""


@dataclass(frozen=True)
class GoldenRow(Record):
    """One example of golden.json: the image's file, the predicted label, a probability for each class."""

    file: str
    prediction: str
    probabilities: list[float]


@dataclass(frozen=True)
class GoldenFile(Record):
    """The file golden.json; probabilities are in the order of the classes."""

    classes: list[str]
    examples: list[GoldenRow]


@dataclass(frozen=True)
class Example:
    """One image file, and what the reviewed model said of it."""

    file: str
    content: bytes
    prediction: str
    probabilities: dict[str, float]


def golden_examples(folder: Path, most: int | None = None) -> list[Example]:
    """Read the first `most` golden examples of a folder.

    Raises:
        UserError: golden.json is missing, damaged or empty.
    """
    told = GoldenFile.read(folder / "golden.json", made_by="evaluate")
    if not told.examples:
        raise UserError(f"{folder / 'golden.json'} holds no examples: set evaluate.golden in params.yaml to 1 or more")
    return [
        Example(
            row.file, (folder / row.file).read_bytes(), row.prediction,
            dict(zip(told.classes, row.probabilities, strict=True)),
        )
        for row in told.examples[:most]
    ]  # fmt: skip


def compare(example: Example, given: Any, tolerance: float) -> float:
    """Hold one prediction of the service against the reviewed one; return the largest difference of a probability.

    Where the two likeliest classes are closer than the tolerance allows to tell, either of them is right.

    Raises:
        FaultError: another label, a probability further off than `tolerance`, or no prediction at all.
    """
    image = f"golden image {example.file}"
    try:
        said = {str(entry["label"]): float(entry["probability"]) for entry in given["probabilities"]}
    except (TypeError, KeyError, ValueError):
        said = {}
    if said.keys() != example.probabilities.keys():
        raise FaultError(f"{image} was answered with other classes than the model has")
    label = given.get("label")
    sure = example.probabilities[example.prediction]
    if label != example.prediction and not sure - example.probabilities.get(label, 0.0) <= 2 * tolerance:
        told = f"label {label} with {said.get(label, 0.0):.2f} instead of {example.prediction} with {sure:.2f}"
        raise FaultError(f"{image} was answered wrongly: {told}")
    off = {name: abs(said[name] - reviewed) for name, reviewed in example.probabilities.items()}
    worst = max(off, key=lambda name: (not off[name] <= tolerance, off[name]))  # NaN too is not within it
    if not off[worst] <= tolerance:
        told = f"{said[worst]:.4f} for label {worst}; reviewed was {example.probabilities[worst]:.4f}"
        raise FaultError(f"{image} was answered with {told}, and the largest difference allowed is {tolerance:g}")
    return off[worst]


def expect_version(answer: Answer, version: str, what: str) -> None:
    """Check that an answer is one, and of this version; `what` was asked.

    Raises:
        FaultError: it is not.
    """
    if answer.status != 200:
        raise FaultError(f"{what} got {answer}")
    told = {answer.version, answer.body.get("model_version")}
    if told != {version}:
        others = " and ".join(sorted(map(str, told - {version})))
        raise FaultError(f"{what} was answered by version {others} instead of {version}")


def expect(example: Example, answer: Answer, version: str, tolerance: float) -> float:
    """Check status, version and prediction of an answer; return the largest difference of a probability.

    Raises:
        FaultError: one of them is not as it should be.
    """
    expect_version(answer, version, f"golden image {example.file}")
    return compare(example, answer.body, tolerance)
