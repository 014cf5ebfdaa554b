"""Numbers against hand counts and other libraries: python -m pytest tests/core/test_metrics.py"""

import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss

from src.core import metrics
from src.core.arrays import Split
from src.evaluation import baseline


@pytest.fixture
def results(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = random.integers(0, 4, 300)
    logits = random.normal(0, 1, (300, 4)) + 2 * np.eye(4)[labels]
    return labels, (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)


def test_overall_agrees_with_scikit_learn(results: tuple) -> None:
    labels, probabilities = results
    exact = probabilities.astype(np.float64)
    found = metrics.overall(labels, probabilities, 0.95, 15)
    assert found["accuracy"] == pytest.approx((probabilities.argmax(1) == labels).mean(), abs=1e-6)
    assert found["macro_f1"] == pytest.approx(f1_score(labels, probabilities.argmax(1), average="macro"), abs=1e-6)
    assert found["log_loss"] == pytest.approx(log_loss(labels, exact / exact.sum(1, keepdims=True)), abs=1e-4)


def test_the_interval_is_wilsons() -> None:
    found = metrics.accuracy(np.array([True] * 81 + [False] * 19), 0.95)
    p, n, z = 0.81, 100, 1.959964
    centre, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    bounds = ((centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n))
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx(bounds, abs=1e-5)
    perfect = metrics.accuracy(np.ones(50, dtype=bool), 0.95)
    assert perfect["accuracy_low"] < 0.95
    assert perfect["accuracy_high"] == 1


def test_per_class_and_confusion_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    probabilities = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 0, 0]]
    assert metrics.confusion(labels, probabilities).tolist() == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]
    found = metrics.per_class(labels, probabilities, ["a", "b", "c"])
    assert found["a"] == {"precision": 0.5, "recall": 0.666667, "f1": 0.571429, "examples": 3}
    assert found["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "examples": 1}


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10, dtype=np.float32)
    labels = np.array([0] * 9 + [1] + [0] * 4 + [1] * 6)
    assert metrics.calibration_error(labels, probabilities, 10) == pytest.approx((0 + 0.2) / 2, abs=1e-6)


def test_the_fitted_temperature_undoes_a_known_one(random: np.random.Generator) -> None:
    logits = random.normal(0, 2, (20_000, 5))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (true.cumsum(1) < random.random((20_000, 1))).sum(1)
    assert metrics.fitted_temperature(labels, (logits * 3).astype(np.float32)) == pytest.approx(3, rel=0.05)
    assert metrics.fitted_temperature(labels, (logits / 2).astype(np.float32)) == pytest.approx(0.5, rel=0.05)


def test_few_images_that_are_all_right_make_no_answer_certain() -> None:
    """The log loss alone has no minimum there: every temperature nearer to zero is better."""
    logits = np.array([[4.0, 0.0], [0.0, 4.0]] * 25, dtype=np.float32)
    fitted = metrics.fitted_temperature(np.array([0, 1] * 25), logits)
    assert 0.9 < 1 / (1 + np.exp(-4 / fitted)) < 0.995
    assert np.isfinite(metrics.log_losses(np.array([1]), np.array([[1.0, 0.0]], dtype=np.float32))).all()


def test_thirds_cover_all_and_a_constant_has_none(random: np.random.Generator) -> None:
    members = metrics.thirds("x", random.random(99))
    assert [mask.sum() for mask in members.values()] == [33, 33, 33]
    assert metrics.thirds("x", np.full(9, 0.5)) == {}


def test_groups_need_two_and_the_largest_are_kept() -> None:
    assert metrics.groups([None, "a", "a"]) == {}
    found = metrics.groups(["a", "b", "b", None], largest=1)
    assert [(name, mask.tolist()) for name, mask in found.items()] == [("group: b", [False, True, True, False])]


@pytest.mark.parametrize("side", [4, 40])
def test_the_baseline_learns_brightness(random: np.random.Generator, side: int) -> None:
    labels = np.arange(120) % 2
    images = np.clip(80 + 90 * labels[:, None, None, None] + random.normal(0, 20, (120, side, side, 1)), 0, 255).astype(
        np.uint8
    )
    found = baseline.probabilities(Split(images[:80], labels[:80]), Split(images[80:], labels[80:]), 3)
    assert found.shape == (40, 3)
    assert (found.argmax(1) == labels[80:]).mean() > 0.95
    assert found[:, 2].max() == 0  # a class without training images
    one = Split(images[:9], np.full(9, 1))
    assert baseline.probabilities(one, one, 2).tolist() == [[0.0, 1.0]] * 9
