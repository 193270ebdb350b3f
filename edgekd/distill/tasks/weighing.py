"""Class weights of the cross-entropy."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.distill.distributed import device
from edgekd.errors import ConfigError, cut, shown
from edgekd.recipe import Training

__all__ = ["class_weights"]


def class_weights(
    training: Training, labels: NDArray[np.int64], classes: Sequence[str], where: str, things: str = ""
) -> Tensor | None:
    """The weight of each class (C,), or None if all classes have the same weight.

    `balanced` gives class c the weight n / (C n_c) for its n_c of n examples (King and Zeng 2001; scikit-learn's
    formula), and n / C if it has no examples. If the examples are `things` in images, such as objects, a class
    without any is refused, because its large weight would count wherever it is not. Raises ConfigError, whose message
    begins with `where`, for such a class, and if the number of weights is not the number of classes.
    """
    if training.class_weights == "none":
        return None
    if training.class_weights == "balanced":
        counts = np.bincount(labels, minlength=len(classes))
        if things and not counts.all():
            absent = shown(classes[int(counts.argmin())])
            raise ConfigError(
                f'{where}: "balanced" divides by the number of {things} of each class, and the training data have none '
                f"of the class {absent}; give a number for each class, or remove the class"
            )
        weights = len(labels) / (len(classes) * np.maximum(counts, 1))
    else:
        weights = np.array(training.class_weights)
        if len(weights) != len(classes):
            given = f"got {len(weights)} weight{'' if len(weights) == 1 else 's'}"
            known = f"the data has {len(classes)} classes ({cut(', '.join(classes))})"
            raise ConfigError(f"{where}: {given}; {known}, and each needs one")
    return torch.tensor(weights, dtype=torch.float32, device=device())
