"""The honest baseline: multinomial logistic regression on the same pixels, so that a deep model has to earn its place.

Its numbers do not depend on the number of cores: with two threads BLAS sums in another order than with one, and on small
data the answers then differ in a test image. Double precision and a small tolerance make kernels of other CPUs agree too,
to six digits, wherever it converges within its iterations.
"""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from src.core.arrays import Split
from src.core.statistics import area_weights

_LONGEST_SIDE = 16  # larger images are averaged down: on CIFAR-10 more images of 16x16 beat fewer of 32x32, 40 % to 35 %
_NUMBERS = 25_000_000  # training rows times features, 200 MB; more rows than that are thinned out evenly
_PRODUCTS = 150e9  # rows times features times classes times iterations: about 15 s of one core
_CLASSES = 30  # fewer cost as much: reading the features is what takes the time
_LEAST, _MOST = 20, 1000  # iterations
_TOLERANCE = 1e-8


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
    features = _features(train.images, chosen)
    iterations = int(np.clip(_PRODUCTS / (features.size * max(classes, _CLASSES)), _LEAST, _MOST))
    if rows < len(train.images) or iterations < _MOST:
        told = f"{rows:,} of {len(train.images):,} training images, at most {iterations} iterations"
        print(f"logistic regression, to compare with: {told}; this takes up to half a minute", flush=True)
    fitted = LogisticRegression(max_iter=iterations, tol=_TOLERANCE)
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the iterations are the budget of a baseline
        fitted.fit(features, train.labels[chosen])
        result[:, fitted.classes_] = fitted.predict_proba(_features(test.images, np.arange(len(test.images))))
    return result


def _features(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Flatten the chosen images to float64 in 0..1, averaged down to the longest side, in bounded pieces."""
    pieces = [_flat(images[rows[start : start + 1024]]) for start in range(0, len(rows), 1024)]
    return np.concatenate(pieces)


def _flat(images: NDArray[Any]) -> NDArray[np.float64]:
    values = images.astype(np.float64) / 255
    if max(values.shape[1:3]) > _LONGEST_SIDE:
        rows, columns = (area_weights(length, min(length, _LONGEST_SIDE)) for length in values.shape[1:3])
        values = np.einsum("ih,nhwc,jw->nijc", rows, values, columns, optimize=True)
    return values.reshape(len(values), -1)
