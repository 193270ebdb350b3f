"""Figures of predictions, against scikit-learn and by hand."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score, top_k_accuracy_score

from edgekd.tasks.classification import (
    agreement,
    calibration_error,
    confusion,
    largest_difference,
    macro_f1,
    recall,
    top1,
    top_k,
)


def one_hot(classes: list[int], count: int) -> NDArray[np.float32]:
    return np.eye(count, dtype=np.float32)[classes]


def some_logits(seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """200 answers over 7 classes, about half of them right; classes 5 and 6 are rare or absent."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((200, 7)).astype(np.float32)
    guesses = rng.choice(5, 200, p=[0.6, 0.2, 0.1, 0.05, 0.05])
    return logits, np.where(rng.random(200) < 0.5, logits.argmax(1), guesses)


@pytest.mark.parametrize("seed", range(3))
def test_against_scikit_learn(seed: int) -> None:
    logits, labels = some_logits(seed)
    predicted = logits.argmax(1)
    expected = f1_score(labels, predicted, labels=range(7), average="macro", zero_division=0)
    assert macro_f1(logits, labels) == pytest.approx(expected, rel=1e-12)
    assert top1(logits, labels) == pytest.approx(accuracy_score(labels, predicted), rel=1e-12)
    assert 0 < macro_f1(logits, labels) < 1
    assert macro_f1(logits, labels) != pytest.approx(top1(logits, labels), rel=1e-3)
    for k in (1, 2, 5, 6):
        expected = top_k_accuracy_score(labels, logits, k=k, labels=range(7))
        assert top_k(logits, labels, k) == pytest.approx(expected, rel=1e-12)
    matrix = confusion(logits, labels)
    assert np.array_equal(matrix, confusion_matrix(labels, predicted, labels=range(7)))
    expected = recall_score(labels, predicted, labels=range(7), average=None, zero_division=np.nan)
    given = [math.nan if share is None else share for share in recall(matrix)]
    assert given == pytest.approx(expected, nan_ok=True)


def test_by_hand() -> None:
    logits = one_hot([0, 0, 1, 2], 4)
    labels = np.array([0, 1, 1, 2])
    assert top1(logits, labels) == 0.75
    # F1: 2/3, 2/3, 1; the class that neither occurs nor is predicted does not count.
    assert macro_f1(logits, labels) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert macro_f1(one_hot([0, 1], 2), np.array([0, 1])) == 1
    assert macro_f1(one_hot([1, 0], 2), np.array([0, 1])) == 0
    # Row the truth, column the answer; the last class does not occur.
    matrix = confusion(logits, labels)
    assert matrix.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert recall(matrix) == [1.0, 0.5, 1.0, None]


def test_top_k_counts_the_larger_ones() -> None:
    logits = np.array([[4.0, 3.0, 2.0, 1.0]] * 4, np.float32)
    labels = np.array([0, 1, 2, 3])
    assert [top_k(logits, labels, k) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]


def test_agreement_compares_classes_not_logits() -> None:
    first = np.array([[1.0, 2.0], [5.0, 0.0], [0.0, 1.0], [3.0, 1.0]], np.float32)
    second = np.array([[-9.0, 0.0], [0.0, 0.1], [7.0, 7.5], [2.0, 1.9]], np.float32)
    assert agreement(first, second) == 0.75
    assert agreement(first, first) == 1


def test_the_largest_difference_of_logits() -> None:
    first = np.array([[1.0, -2.0], [5.0, 0.0]], np.float32)
    second = np.array([[1.5, -2.0], [4.0, -1.25]], np.float32)
    assert largest_difference(first, second) == 1.25
    assert largest_difference(second, first) == 1.25
    assert largest_difference(first, first) == 0


def logits_of(confidences: list[float]) -> NDArray[np.float32]:
    """Two classes; class 0 has each of these probabilities."""
    return np.array([[math.log(p), math.log(1 - p)] for p in confidences], np.float32)


def test_calibration_error_by_hand() -> None:
    # Two bins (½, 1]: all four answers fall there, confidence 0.7 on the mean, three of four right.
    logits = logits_of([0.6, 0.7, 0.7, 0.8])
    assert calibration_error(logits, np.array([0, 0, 0, 1]), bins=2) == pytest.approx(0.05, abs=1e-6)
    # Ten bins: 0.55 → 0.5 right, 0.95 → all right; each bin weighs as many as it holds.
    logits = logits_of([0.55, 0.55, 0.95, 0.95])
    expected = (2 * abs(0.5 - 0.55) + 2 * abs(1 - 0.95)) / 4
    assert calibration_error(logits, np.array([0, 1, 0, 0]), bins=10) == pytest.approx(expected, abs=1e-6)
    # A confidence of 1 and one of 0.95 share the last of 15 bins: one wrong, one right.
    logits = np.array([[1e4, 0.0], [math.log(0.95), math.log(0.05)]], np.float32)
    assert calibration_error(logits, np.array([1, 0])) == pytest.approx(abs(1 - 1.95) / 2, abs=1e-6)
    # Too sure and wrong everywhere; and sure and right everywhere. Large logits do not overflow.
    sure = np.array([[1e4, 0.0], [1e4, 0.0]], np.float32)
    assert calibration_error(sure, np.array([1, 1])) == pytest.approx(1.0)
    assert calibration_error(sure, np.array([0, 0])) == pytest.approx(0.0)


def test_calibration_error_against_a_plain_loop() -> None:
    logits, labels = some_logits(0)
    powers = np.exp(logits.astype(np.float64))
    shares = powers / powers.sum(1, keepdims=True)
    confidence, right = shares.max(1), shares.argmax(1) == labels
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            error += inside.sum() / len(labels) * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(logits, labels) == pytest.approx(error, rel=1e-6)
