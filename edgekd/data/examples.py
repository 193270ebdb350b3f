"""Examples: the interface between the data of any task and the training loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Batch", "Examples"]


@dataclass(frozen=True)
class Batch:
    """A batch of examples: the inputs of teacher and student, and the targets."""

    inputs: Tensor
    """Inputs of the networks: uint8 images (B, H, W, C), or token ids (B, L)."""
    targets: Tensor
    """Labels (B,), class probabilities (B, C) if examples were mixed, or class maps (B, H, W)."""


@dataclass(frozen=True)
class Examples:
    """One part of a data set, such as the training part, with its augmented views."""

    labels: NDArray[Any]
    """Labels (n,) int64, or class maps (n, H, W) uint8, of all examples."""
    batch: Callable[[NDArray[np.int64], int | None], Batch]
    """`batch(indices, k)` returns view k of those examples, on the CPU; k = None means without augmentation."""
    key: Mapping[str, Any] = field(default_factory=dict)
    """What the inputs of the views depend on, as JSON values: the digest of the data, and the augmentation."""

    def __len__(self) -> int:
        return len(self.labels)
