"""The pictures of an evaluation: confusion, learning curves, calibration, worst errors, where the model looked."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.core import pictures
from src.core.arrays import Split
from src.core.command import UserError
from src.core.inference import Model
from src.images.occlusion import occlusion

_HISTORY = ("epoch", "learning_rate", "train_loss", "validation_loss", "validation_accuracy")


def confusion(path: Path, counts: NDArray[np.int64], classes: Sequence[str]) -> None:
    """Draw the confusion matrix, shaded by the share of each actual class; names and numbers up to 30 classes."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(12.0, 3.5 + 0.35 * len(classes))
    made = pictures.figure(side + 0.5, side)
    axes = made.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(title="Confusion: test images", xlabel="predicted", ylabel="actual")
    if len(classes) <= 30:
        names = [pictures.shorten(name, 14) for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(classes)), names, fontsize=8)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=colour)
    pictures.save(made, path)


def curves(path: Path, history: Path) -> None:
    """Draw loss, validation accuracy and learning rate over the epochs of a history.csv."""
    try:
        with history.open(newline="") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
            rows = [{name: row[name] for name in _HISTORY} for row in rows]
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{history} is missing or damaged: run `dvc repro -f train`, which makes it") from None
    epochs = [row["epoch"] for row in rows]
    made = pictures.figure(11, 3.4)
    loss, right, rate = made.subplots(1, 3)
    loss.plot(epochs, [row["train_loss"] for row in rows], color=pictures.BLUE, label="training (augmented, smoothed)")
    loss.plot(epochs, [row["validation_loss"] for row in rows], color=pictures.ORANGE, label="validation")
    loss.set(title="Loss", xlabel="epoch", ylim=(0, None))
    loss.legend(fontsize=8)
    right.plot(epochs, [row["validation_accuracy"] for row in rows], color=pictures.ORANGE)
    right.set(title="Validation accuracy", xlabel="epoch")
    rate.plot(epochs, [row["learning_rate"] for row in rows], color=pictures.GREY)
    rate.set(title="Learning rate", xlabel="epoch", ylim=(0, None))
    pictures.save(made, path)


def calibration(path: Path, curve: Sequence[Mapping[str, float]], results: Mapping[str, Any]) -> None:
    """Draw accuracy over confidence, the area of a point showing its images."""
    made = pictures.figure(4.5, 4.2)
    axes = made.subplots()
    axes.plot([0, 1], [0, 1], color=pictures.GREY, linestyle="--", label="perfect")
    sizes = [10 + 190 * row["examples"] / results["examples"] for row in curve]
    confidence, right = ([row[name] for row in curve] for name in ("confidence", "accuracy"))
    axes.plot(confidence, right, color=pictures.BLUE, linewidth=1)
    axes.scatter(confidence, right, s=sizes, color=pictures.BLUE, label="model (area: images)")
    axes.set(
        title=f"Calibration error {results['ece']:.3f}",
        xlabel="confidence",
        ylabel="accuracy",
        xlim=(0, 1.02),
        ylim=(0, 1.02),
    )
    axes.legend(fontsize=8, loc="lower right")
    pictures.save(made, path)


def errors(
    path: Path, test: Split, probabilities: NDArray[np.float32], worst: NDArray[np.int64], classes: Sequence[str]
) -> None:
    """Draw the rows `worst` of the test split with what was predicted and what is true."""
    title = "Worst errors: predicted (confidence), then actual" if len(worst) else "No error on the test split"
    made, squares = pictures.grid(len(worst), 8, title)
    for axes, row in zip(squares, worst, strict=True):
        predicted = int(probabilities[row].argmax())
        guess = f"{pictures.shorten(classes[predicted], 12)} ({probabilities[row, predicted]:.0%})"
        truth = pictures.shorten(classes[int(test.labels[row])], 18)
        pictures.show_image(axes, test.examples[row], f"{guess}\n{truth}", pictures.RED)
    pictures.save(made, path)


def activation(
    path: Path,
    test: Split,
    predicted: NDArray[Any],
    shown: NDArray[np.int64],
    classes: Sequence[str],
    model: Model,
) -> None:
    """Draw the rows `shown` of the test split under the places that spoke for their predictions."""
    title = "Where the model looked: how much less sure it is with a fifth of the side hidden; wrong predictions in red"
    made, squares = pictures.grid(len(shown), 8, title)
    for axes, row in zip(squares, shown, strict=True):
        colour = "black" if predicted[row] == test.labels[row] else pictures.RED
        pictures.show_image(axes, test.examples[row], pictures.shorten(classes[int(predicted[row])]), colour)
        heat = occlusion(test.examples[row], int(predicted[row]), model.probabilities)
        pictures.show_heat(axes, heat, test.examples[row])
    pictures.save(made, path)
