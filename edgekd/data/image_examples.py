"""Makes `Examples` of a split of images, with augmented views."""

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.augmentation import Augment
from edgekd.card import Data
from edgekd.data.arrays import digest
from edgekd.data.examples import Batch, Examples
from edgekd.data.images import Split
from edgekd.data.views import VIEWS_VERSION, mixed

__all__ = ["examples"]


_SETTINGS = (
    *("crop_padding", "flip", "policy", "rand_operations", "rand_magnitude", "mixup", "cutmix", "word_dropout", "seed"),
)
"""The settings of `[augment]` that are always in the key. Further ones, also those of other tasks, are left out where
they have no effect, so that outputs cached by earlier versions are still found."""


def examples(split: Split, data: Data, augment: Augment) -> Examples:
    """Convert `split` for the training loop. View k of image i depends only on (i, k) and on `augment` with its seed.

    Inputs are uint8 (B, H, W, C). Targets are labels (B,) int64, or, for mixed views, class probabilities
    (B, len(data.classes)) float32.
    """

    def batch(indices: NDArray[np.int64], k: int | None) -> Batch:
        if k is None:
            return Batch(torch.from_numpy(split.read(indices)), torch.from_numpy(split.labels[indices]))
        return Batch(*mixed(split, indices, k, augment.seed, augment, len(data.classes)))

    augmented = {name: getattr(augment, name) for name in _SETTINGS}
    if augment.cutout:
        augmented["cutout"] = augment.cutout
    key = {
        "data": digest(split),
        "preprocess": data.preprocessing(),
        "augment": augmented,
        "views": VIEWS_VERSION,
    }
    return Examples(split.labels, batch, key)
