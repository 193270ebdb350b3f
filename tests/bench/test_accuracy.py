"""Accuracy, macro F1 and agreement, against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from edgekd.bench.accuracy import agreement, macro_f1, top1


def one_hot(classes: list[int], count: int) -> np.ndarray:
    return np.eye(count, dtype=np.float32)[classes]


@pytest.mark.parametrize("seed", range(3))
def test_against_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((200, 7)).astype(np.float32)
    predicted = logits.argmax(1)
    guesses = rng.choice(5, 200, p=[0.6, 0.2, 0.1, 0.05, 0.05])
    labels = np.where(rng.random(200) < 0.5, predicted, guesses)
    expected = f1_score(labels, predicted, labels=range(7), average="macro", zero_division=0)
    assert macro_f1(logits, labels) == pytest.approx(expected, rel=1e-12)
    assert top1(logits, labels) == pytest.approx(accuracy_score(labels, predicted), rel=1e-12)
    assert 0 < macro_f1(logits, labels) < 1
    assert macro_f1(logits, labels) != pytest.approx(top1(logits, labels), rel=1e-3)


def test_by_hand() -> None:
    logits = one_hot([0, 0, 1, 2], 4)
    labels = np.array([0, 1, 1, 2])
    assert top1(logits, labels) == 0.75
    # F1: 2/3, 2/3, 1, and 0 for the class that neither occurs nor is predicted.
    assert macro_f1(logits, labels) == pytest.approx((2 / 3 + 2 / 3 + 1 + 0) / 4)
    assert macro_f1(one_hot([0, 1], 2), np.array([0, 1])) == 1
    assert macro_f1(one_hot([1, 0], 2), np.array([0, 1])) == 0


def test_agreement_compares_classes_not_logits() -> None:
    first = np.array([[1.0, 2.0], [5.0, 0.0], [0.0, 1.0], [3.0, 1.0]], np.float32)
    second = np.array([[-9.0, 0.0], [0.0, 0.1], [7.0, 7.5], [2.0, 1.9]], np.float32)
    assert agreement(first, second) == 0.75
    assert agreement(first, first) == 1
