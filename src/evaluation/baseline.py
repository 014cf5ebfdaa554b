"""The honest baseline: multinomial logistic regression on the same pixels, so that a deep model has to earn its place.

Its numbers do not depend on the number of cores: with two threads BLAS sums in another order than with one, and on small
data the answers then differ in a test image. Double precision and a small tolerance make kernels of other CPUs agree too,
to six digits, wherever it converges within its iterations.
"""

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from src.core.arrays import Split
from src.images.features import count, features

_NUMBERS = 25_000_000  # training rows times features, 200 MB; more rows than that are thinned out evenly
_PRODUCTS = 150e9  # rows times features times classes times iterations: about 15 s of one core
_CLASSES = 30  # fewer cost as much: reading the features is what takes the time
_LEAST, _MOST = 20, 1000  # iterations
_TOLERANCE = 1e-8


def probabilities(train: Split, test: Split, classes: int) -> NDArray[np.float32]:
    """Fit on the training split; return probabilities for the test split, float32 of shape (n, classes)."""
    rows = min(len(train.examples), max(1000, _NUMBERS // count(train.examples)))
    chosen = np.linspace(0, len(train.examples) - 1, rows).astype(np.int64)
    found = np.unique(train.labels[chosen])
    result = np.zeros((len(test.examples), classes), dtype=np.float32)
    if len(found) == 1:  # nothing to tell apart
        result[:, found] = 1
        return result
    learnt = features(train.examples, chosen)
    iterations = int(np.clip(_PRODUCTS / (learnt.size * max(classes, _CLASSES)), _LEAST, _MOST))
    if rows < len(train.examples) or iterations < _MOST:
        told = f"{rows:,} of {len(train.examples):,} training images, at most {iterations} iterations"
        print(f"logistic regression, to compare with: {told}; this takes up to half a minute", flush=True)
    fitted = LogisticRegression(max_iter=iterations, tol=_TOLERANCE)
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the iterations are the budget of a baseline
        fitted.fit(learnt, train.labels[chosen])
        result[:, fitted.classes_] = fitted.predict_proba(features(test.examples, np.arange(len(test.examples))))
    return result
