"""Figures of predictions that a worker wrote; numpy alone."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["agreement", "macro_f1", "top1"]


def top1(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of the rows of logits (n, C) whose largest entry is the label's."""
    return float((logits.argmax(axis=1) == labels).mean())


def macro_f1(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Mean over the C classes of 2 TP / (2 TP + FP + FN); 0 for a class never seen nor predicted."""
    predicted = logits.argmax(axis=1)
    scores = []
    for label in range(logits.shape[1]):
        hits = np.sum((predicted == label) & (labels == label))
        total = np.sum(predicted == label) + np.sum(labels == label)
        scores.append(2 * hits / total if total else 0.0)
    return float(np.mean(scores))


def agreement(logits: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Share of the rows in which both logits (n, C) have their largest entry at the same class."""
    return float((logits.argmax(axis=1) == other.argmax(axis=1)).mean())
