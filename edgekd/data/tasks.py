"""Examples of a card's task: what the training loop takes, made of the card's data."""

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.card import Card, Data
from edgekd.data import image_examples
from edgekd.data.arrays import digest
from edgekd.data.examples import Batch, Examples
from edgekd.data.images import Split
from edgekd.data.text import PADDING, UNKNOWN, trimmed
from edgekd.data.views import VIEWS_VERSION, draws

__all__ = ["examples_of", "without_words"]


def examples_of(card: Card, split: Split) -> Examples:
    """A part of the card's data as the training loop takes it.

    Inputs are uint8 images (B, H, W, C), or token ids (B, L) int32 as long as the batch's longest sentence.
    """
    if isinstance(card.data, Data):
        return image_examples.examples(split, card.data, card.augment)
    augment = card.augment

    def batch(indices: NDArray[np.int64], k: int | None) -> Batch:
        ids: NDArray[np.int32] = split.read(indices)  # type: ignore[assignment]  # a Split holds any array
        if k is not None:
            ids = without_words(ids, indices, k, augment.seed, augment.word_dropout)
        return Batch(torch.from_numpy(trimmed(ids)), torch.from_numpy(split.labels[indices]))

    # Neither the length that is timed nor what images are augmented with changes what the networks see.
    augmented = {"seed": augment.seed, "word_dropout": augment.word_dropout}
    key = {"data": digest(split), "augment": augmented, "views": VIEWS_VERSION}
    return Examples(split.labels, batch, key)


def without_words(
    ids: NDArray[np.int32], indices: NDArray[np.int64], k: int, seed: int, share: float
) -> NDArray[np.int32]:
    """View k of token ids (B, L): each token is `[UNK]` with probability `share` (Iyyer et al. 2015, section 3.1, leave
    it out), a pure function of (seed, index, k)."""
    if not share:
        return ids
    unknown = draws(seed, indices, k, ids.shape[1]) < share
    return np.where(unknown & (ids != PADDING), np.int32(UNKNOWN), ids)
