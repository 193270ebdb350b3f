"""Examples: what the training loop knows of data, whatever the task."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Batch", "Examples"]


@dataclass(frozen=True)
class Batch:
    """Some examples, as teacher and student see them."""

    inputs: Tensor
    """What the networks take: uint8 images (B, H, W, C), or token ids (B, L)."""
    targets: Tensor
    """Labels (B,), or (B, C) with each class's share where examples were mixed."""


@dataclass(frozen=True)
class Examples:
    """One part of a data set."""

    labels: NDArray[np.int64]
    """(n,)"""
    batch: Callable[[NDArray[np.int64], int | None], Batch]
    """`batch(indices, k)` gives view k of those examples, or the examples themselves for None. On the CPU."""
    key: Mapping[str, Any] = field(default_factory=dict)
    """What the inputs of all views depend on: the digest of the data, and how views are made; plain JSON values."""

    def __len__(self) -> int:
        return len(self.labels)
