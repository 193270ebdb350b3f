"""Text classification: a model assigns sentences, as token ids (n, L) padded with 0, to one of several classes."""

import json

import numpy as np
from numpy.typing import NDArray

from edgekd.card import TextData
from edgekd.tasks.classification import CLASSES
from edgekd.tasks.task import Task

__all__ = ["PADDING", "TEXT_CLASSIFICATION", "trimmed"]

PADDING = 0
"""The token id that fills sentences up to a common length."""


def trimmed(ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """Remove from token ids (B, L) the columns that are padding in every row."""
    used = np.flatnonzero((ids != PADDING).any(axis=0))
    return ids[:, : used[-1] + 1 if len(used) else 1]


def _length(data: TextData) -> int:
    return data.timed_length or min(2, data.max_length)


def _describe(data: TextData) -> dict[str, str]:
    """Return the file's metadata; edgekd itself uses padding and sequence_length when it measures the file."""
    what = f"int32 (batch, length), token ids of tokenizer.json, at most {data.max_length}, padded with {PADDING}"
    fed = {"padding": str(PADDING), "sequence_length": str(data.timed_length or data.max_length)}
    return {"labels": json.dumps(data.classes), "input": what, **fed}


TEXT_CLASSIFICATION = Task(
    name="text-classification",
    unit="sentence",
    units="sentences",
    data=TextData,
    augment=frozenset({"word_dropout"}),
    problem=lambda data, augment: "",
    input="ids",
    free={0: "batch", 1: "length"},
    calibration="dynamic",
    outputs=lambda data: len(data.classes),
    argument="classes",
    targets=lambda data: f"{len(data.classes)} classes of data",
    example=lambda data, count: np.ones((count, _length(data)), dtype=np.int32),
    takes=lambda data: f"sentences of {_length(data)} tokens",
    sizes=lambda data: (data.vocabulary,),
    normalization=lambda data: None,
    describe=_describe,
    calls=lambda ids: [trimmed(row[None]) for row in ids],  # without padding, as on a device
    **CLASSES,
)
