"""What the tasks of classification have in common: how logits become classes, and how these are scored."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import ModelError
from edgekd.scores import CLASSIFICATION

__all__ = [
    "CLASSES",
    "agreement",
    "calibration_error",
    "confusion",
    "largest_difference",
    "macro_f1",
    "one_hot",
    "recall",
    "scores",
    "top1",
    "top_k",
]

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]

MOST_LABELS = 1_000_000
"""Labels from this number on are refused; they are probably not class labels."""
MOST_CLASSES = 100
"""Largest number of classes of a confusion matrix in a report; a larger matrix is unreadable."""


def scores(logits: NDArray[Any], labels: Labels) -> dict[str, float]:
    """Return all scores of logits (n, C) by name; top-5 accuracy only if there are more than 5 classes.

    Rows of uint8 are one-hot class labels without confidence; their calibration and top-5 accuracy are unknown.
    """
    logits = wide_enough(logits, labels)
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


def read(raw: NDArray[Any]) -> NDArray[Any]:
    """Return logits (n, C) of what a worker wrote; class labels (n,) become `one_hot` rows."""
    return one_hot(raw) if raw.ndim == 1 else raw.reshape(len(raw), -1)


def one_hot(labels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Convert class labels (n,) to rows (n, C) that are 1 at the label and 0 elsewhere."""
    places = labels.astype(np.int64)
    if len(places) and places.max() >= MOST_LABELS:
        raise ModelError(f"a class label is {places.max()}; the largest that edgekd takes is {MOST_LABELS - 1}")
    rows = np.zeros((len(places), int(places.max(initial=0)) + 1), np.uint8)
    rows[np.arange(len(places)), places] = 1
    return rows


def says_classes_alone(answer: NDArray[Any]) -> bool:
    """Whether the answers (n, C) come from `one_hot`: classes without confidence, where C − 1 is the largest predicted
    class.
    """
    return answer.dtype == np.uint8


def wide_enough(answer: NDArray[Any], labels: Labels) -> NDArray[Any]:
    """Add zero columns to one-hot answers for classes that occur among the labels but were never predicted."""
    missing = int(labels.max()) + 1 - answer.shape[1]
    return np.pad(answer, ((0, 0), (0, missing))) if says_classes_alone(answer) and missing > 0 else answer


def are_classes(labels: NDArray[Any]) -> bool:
    """Whether the array is a list of class numbers that is not empty."""
    whole = labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels)
    return bool(whole) and 0 <= labels.min() <= labels.max() < 2**63


def labels_problem(labels: NDArray[Any]) -> str:
    """Describe why an array cannot be the labels of examples; empty if it can."""
    if are_classes(labels):
        return ""
    if labels.dtype.kind in "iu" and labels.ndim == 1 and len(labels):
        row = next(row for row, label in enumerate(labels.tolist()) if not 0 <= label < 2**63)
        return f"label {row} is {labels[row]}; labels are class numbers from 0"
    return f"labels should be one class number ≥ 0 for each input, got {labels.dtype} {list(labels.shape)}"


def fit_problem(logits: NDArray[Any], labels: Labels, model: str) -> str:
    """Describe the label that is not among the classes of the model with that name; empty if there is none."""
    if says_classes_alone(logits) or labels.max() < logits.shape[1]:
        return ""
    return f"labels go up to {labels.max()}, and {model} tells {logits.shape[1]} classes apart"


def each(logits: NDArray[Any], labels: Labels) -> NDArray[np.float64]:
    """Return 1 for each row of logits (n, C) whose largest entry belongs to the label, else 0."""
    return np.asarray(logits.argmax(axis=1) == labels, dtype=np.float64)


def answers(logits: NDArray[Any]) -> NDArray[np.int64]:
    """Return the most likely class of each row of logits (n, C)."""
    return np.asarray(logits.argmax(axis=1), dtype=np.int64)


def details(logits: NDArray[Any], labels: Labels) -> dict[str, Any]:
    """Return the recall of each class, which result files keep."""
    return {"recall": recall(confusion(wide_enough(logits, labels), labels))}


def charted(logits: NDArray[Any], labels: Labels) -> dict[str, Any]:
    """Return recall and confusion matrix for the charts; nothing if there are too many classes to read the matrix."""
    if logits.shape[1] > MOST_CLASSES or len(logits) != len(labels):
        return {}
    matrix = confusion(wide_enough(logits, labels), labels.astype(np.int64))
    return {"recall": recall(matrix), "confusion": [list(map(int, row)) for row in matrix]}


CLASSES: dict[str, Any] = {
    "read": read,
    "targets_problem": labels_problem,
    "fit_problem": fit_problem,
    "scores": CLASSIFICATION,
    "score": scores,
    "each": each,
    "paired": "mcnemar",
    "answers": answers,
    "same": agreement,
    "same_words": "same class",
    "details": details,
    "charted": charted,
    "charts": ("classes",),
}
"""The fields of a `Task` that all tasks of classification share."""
