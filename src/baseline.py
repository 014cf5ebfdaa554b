"""The honest baseline: multinomial logistic regression on the same pixels, so that a deep model has to earn its place."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from src.arrays import Split
from src.statistics import area_weights

_LONGEST_SIDE = 32  # larger images are averaged down: a linear model gains nothing from more, and needs far longer
_NUMBERS = 50_000_000  # training rows times features, 200 MB; more rows than that are thinned out evenly
_ITERATIONS = 200


def probabilities(train: Split, test: Split, classes: int) -> NDArray[np.float32]:
    """Fit on the training split; return probabilities for the test split, float32 of shape (n, classes)."""
    pixels = min(_LONGEST_SIDE, train.images.shape[1]) * min(_LONGEST_SIDE, train.images.shape[2])
    rows = min(len(train.images), max(1000, _NUMBERS // (pixels * train.images.shape[3])))
    chosen = np.linspace(0, len(train.images) - 1, rows).astype(np.int64)
    found = np.unique(train.labels[chosen])
    result = np.zeros((len(test.images), classes), dtype=np.float32)
    if len(found) == 1:  # nothing to tell apart
        result[:, found] = 1
        return result
    fitted = LogisticRegression(max_iter=_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # two hundred steps are the budget of a baseline
        fitted.fit(_features(train.images, chosen), train.labels[chosen])
    result[:, fitted.classes_] = fitted.predict_proba(_features(test.images, np.arange(len(test.images))))
    return result


def _features(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Flatten the chosen images to float32 in 0..1, averaged down to the longest side, in bounded pieces."""
    pieces = [_flat(images[rows[start : start + 1024]]) for start in range(0, len(rows), 1024)]
    return np.concatenate(pieces)


def _flat(images: NDArray[Any]) -> NDArray[np.float32]:
    values = images.astype(np.float32) / 255
    if max(values.shape[1:3]) > _LONGEST_SIDE:
        rows, columns = (area_weights(length, min(length, _LONGEST_SIDE)) for length in values.shape[1:3])
        values = np.einsum("ih,nhwc,jw->nijc", rows, values, columns, optimize=True)
    return values.reshape(len(values), -1).astype(np.float32)
