"""Views: image i in its k-th augmented form, a pure function of (seed, i, k)."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.card import Augment

__all__ = ["draws", "permutation", "view"]


def draws(seed: int, indices: NDArray[np.int64], k: int, count: int) -> NDArray[np.float64]:
    """`count` uniform draws in [0, 1) for each index, shape (len(indices), count).

    A counter-based generator: SplitMix64 (Steele et al. 2014) over (seed, k, index, draw), so that a draw
    depends on nothing that happened before it.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is the point
        key = _mix(_mix(np.uint64(seed)) ^ np.uint64(k))
        rows = _mix(key ^ indices.astype(np.uint64))
        cells = _mix(rows[:, None] + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return (cells >> np.uint64(11)).astype(np.float64) / 2.0**53


def _mix(x: "np.uint64 | NDArray[np.uint64]") -> "NDArray[np.uint64]":
    z = np.asarray(x, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order of `count` images in an epoch; depends on (seed, epoch) alone."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


def view(images: Tensor, indices: NDArray[np.int64], k: int, seed: int, augment: Augment) -> Tensor:
    """The k-th view of images (B, H, W, C) uint8 whose places in the data set are `indices` (B,).

    Returns (B, H, W, C) uint8.
    """
    if not augment.crop_padding and not augment.flip:
        return images
    padding = augment.crop_padding
    batch, height, width, _ = images.shape
    u = draws(seed, indices, k, 3)
    top = torch.from_numpy((u[:, 0] * (2 * padding + 1)).astype(np.int64))
    left = torch.from_numpy((u[:, 1] * (2 * padding + 1)).astype(np.int64))
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    if augment.flip:
        mirrored = torch.from_numpy(u[:, 2] < 0.5)[:, None]
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = torch.nn.functional.pad(images, (0, 0, padding, padding, padding, padding))
    return padded[torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]
