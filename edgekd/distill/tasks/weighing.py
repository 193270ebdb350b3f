"""Class weights of the cross-entropy."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.distill.distributed import device
from edgekd.errors import ConfigError
from edgekd.recipe import Training

__all__ = ["class_weights"]


def class_weights(training: Training, labels: NDArray[np.int64], classes: int, where: str) -> Tensor | None:
    """The weight of each class (C,), or None if all classes have the same weight.

    `balanced` gives class c the weight n / (C n_c) for its n_c of n examples (King and Zeng 2001; scikit-learn's
    formula), and n / C if it has no examples. Raises ConfigError, whose message begins with `where`, if the number of
    weights is not the number of classes.
    """
    if training.class_weights == "none":
        return None
    if training.class_weights == "balanced":
        counts = np.maximum(np.bincount(labels, minlength=classes), 1)
        weights = len(labels) / (classes * counts)
    else:
        weights = np.array(training.class_weights)
        if len(weights) != classes:
            raise ConfigError(f"{where}: got {len(weights)} weights; the data has {classes} classes")
    return torch.tensor(weights, dtype=torch.float32, device=device())
