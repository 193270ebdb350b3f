"""Compute scores of classifiers from the logits that a worker wrote, with NumPy only."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "agreement",
    "calibration_error",
    "confusion",
    "largest_difference",
    "macro_f1",
    "recall",
    "scores",
    "top1",
    "top_k",
]

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]


def scores(logits: NDArray[Any], labels: Labels) -> dict[str, float]:
    """Return all scores of logits (n, C) by name; top-5 accuracy only if there are more than 5 classes.

    Rows of uint8 are one-hot class labels without confidence; their calibration and top-5 accuracy are unknown.
    """
    found = {"accuracy": top1(logits, labels), "macro_f1": macro_f1(logits, labels)}
    if logits.dtype == np.uint8:
        return found
    if logits.shape[1] > 5:
        found["top5"] = top_k(logits, labels, 5)
    return found | {"ece": calibration_error(logits, labels)}


def top1(logits: Logits, labels: Labels) -> float:
    """Return the share of rows of logits (n, C) whose largest entry belongs to the label."""
    return float((logits.argmax(axis=1) == labels).mean())


def top_k(logits: Logits, labels: Labels, k: int) -> float:
    """Return the share of rows of logits (n, C) with fewer than k entries ahead of the label's: larger, or equal and
    earlier.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    return float((((logits > own) | ((logits == own) & earlier)).sum(axis=1) < k).mean())


def confusion(logits: Logits, labels: Labels) -> NDArray[np.int64]:
    """Count predictions (C, C) by true class (row) and predicted class (column)."""
    classes = logits.shape[1]
    cells = labels * classes + logits.argmax(axis=1)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def recall(matrix: NDArray[np.int64]) -> list[float | None]:
    """Return for each class the share of its row of the confusion matrix (C, C) on the diagonal; None for an absent
    class.
    """
    totals = matrix.sum(axis=1)
    return [float(hits / total) if total else None for hits, total in zip(matrix.diagonal(), totals, strict=True)]


def macro_f1(logits: Logits, labels: Labels) -> float:
    """Return the mean of 2 TP / (2 TP + FP + FN) over the classes that occur or are predicted, as scikit-learn does."""
    matrix = confusion(logits, labels)
    hits, total = matrix.diagonal(), matrix.sum(axis=0) + matrix.sum(axis=1)
    return float(np.mean(2 * hits[total > 0] / total[total > 0]))


def agreement(logits: Logits, other: Logits) -> float:
    """Return the share of rows in which both logits (n, C) have their largest entry at the same class."""
    return float((logits.argmax(axis=1) == other.argmax(axis=1)).mean())


def largest_difference(logits: Logits, other: Logits) -> float:
    """Return the largest absolute difference between two logits (n, C)."""
    return float(np.abs(logits.astype(np.float64) - other).max())


def calibration_error(logits: Logits, labels: Labels, bins: int = 15) -> float:
    """Return the expected calibration error (Guo et al. 2017, equation 3), with bins of equal width over the
    confidence.

    If the outputs (n, C) are already probabilities, as from a model that ends in Softmax, no softmax is applied.
    """
    values = logits.astype(np.float64)
    if not (values.min() >= 0 and np.allclose(values.sum(axis=1), 1, atol=1e-3)):
        values = np.exp(values - values.max(axis=1, keepdims=True))
    confidence = values.max(axis=1) / values.sum(axis=1)
    right = logits.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))
