"""Views: image i in its k-th augmented form, a pure function of (seed, i, k)."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.card import Augment
from edgekd.data.augment import rand_augment, trivial_augment
from edgekd.data.images import Images, Split

__all__ = ["VIEWS_VERSION", "draws", "mixed", "permutation", "view"]

VIEWS_VERSION = 1
"""Part of the key of kept teachers' outputs: raised whenever any view of images or sentences changes."""

# Columns of the draws: 0–2 crop and flip; 3–7 mixup or cutmix, partner, λ, centre of the rectangle; from 8 the policy.
_MIX, _POLICY = 3, 8


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
    """The k-th view, without mixing, of images (B, H, W, C) uint8 whose places in the data set are `indices` (B,).

    First crop and flip, then the operations of the policy. Returns (B, H, W, C) uint8.
    """
    if augment.policy == "trivial":
        columns = _POLICY + 3
    else:
        columns = _POLICY + 2 * augment.rand_operations if augment.policy == "rand" else _MIX
    u = draws(seed, indices, k, columns)
    if augment.crop_padding or augment.flip:
        images = _crop_and_flip(images, u[:, :_MIX], augment)
    if augment.policy == "trivial":
        return trivial_augment(images, u[:, _POLICY:])
    if augment.policy == "rand":
        return rand_augment(images, u[:, _POLICY:].reshape(len(u), -1, 2), augment.rand_magnitude)
    return images


def _crop_and_flip(images: Tensor, u: NDArray[np.float64], augment: Augment) -> Tensor:
    """Each image cropped at (u₀, u₁) and mirrored where u₂ < ½: images that are mirrored while they are padded, and
    from which whole rows are then copied."""
    padding, (batch, height, width, channels) = augment.crop_padding, images.shape
    top = (u[:, 0] * (2 * padding + 1)).astype(np.int64)
    left = (u[:, 1] * (2 * padding + 1)).astype(np.int64)
    padded = np.zeros((batch, height + 2 * padding, width + 2 * padding, channels), dtype=np.uint8)
    inner = padded[:, padding : padding + height, padding : padding + width]
    inner[...] = images.numpy()
    if augment.flip:
        mirrored = u[:, 2] < 0.5
        inner[mirrored] = images[torch.from_numpy(mirrored)].flip(2).numpy()
        left = np.where(mirrored, 2 * padding - left, left)
    # One item is `width` pixels of a row, at each place where a crop may begin, so that numpy copies it as a whole.
    item = np.dtype((np.void, width * channels))
    shape = (batch, height + 2 * padding, 2 * padding + 1)
    rows = np.ndarray(shape, item, padded.data, strides=(*padded.strides[:2], channels))
    chosen = rows[np.arange(batch)[:, None], top[:, None] + np.arange(height), left[:, None]]
    return torch.from_numpy(chosen.view(np.uint8).reshape(images.shape))


def mixed(
    split: Split, indices: NDArray[np.int64], k: int, seed: int, augment: Augment, classes: int
) -> tuple[Tensor, Tensor]:
    """View k of the images of `split` at `indices` (B,), mixed with others of the split where `augment` says so.

    The partner is uniform over the split, in its own view k (unmixed), and λ ~ Beta(α, α); both are pure functions of
    (seed, index, k). Mixup (Zhang et al. 2018, equation 1) rounds λ image + (1 − λ) partner to whole grey levels.
    CutMix (Yun et al. 2019, equations 1 and 2) takes a rectangle from the partner; its λ is then the share of the
    pixels that were really kept.

    Returns inputs (B, H, W, C) uint8 and, as targets, labels (B,) int64, or with mixing each class's share
    (B, classes) float32.
    """
    if not augment.mixup and not augment.cutmix:
        unmixed = view(torch.from_numpy(split.read(indices)), indices, k, seed, augment)
        return unmixed, torch.from_numpy(split.labels[indices])
    u = draws(seed, indices, k, _POLICY)[:, _MIX:]
    partners = (u[:, 1] * len(split)).astype(np.int64)
    both = np.concatenate((indices, partners))
    own, others = np.split(view(torch.from_numpy(split.read(both)), both, k, seed, augment).numpy(), 2)
    images, share = _mix_images(own, others, u, augment)
    targets, rows = np.zeros((len(indices), classes), dtype=np.float32), np.arange(len(indices))
    targets[rows, split.labels[indices]] += share
    targets[rows, split.labels[partners]] += 1 - share
    return torch.from_numpy(images), torch.from_numpy(targets)


def _mix_images(
    images: Images, others: Images, u: NDArray[np.float64], augment: Augment
) -> tuple[Images, NDArray[np.float32]]:
    """The mixed images (B, H, W, C), and each one's share in its own mixture (B,)."""
    from scipy.special import betaincinv  # here, as nothing else needs it

    chance = 0.5 if augment.mixup and augment.cutmix else float(augment.mixup > 0)
    blended = u[:, 0] < chance
    alpha = np.where(blended, augment.mixup, augment.cutmix)
    share = betaincinv(alpha, alpha, u[:, 2])
    out, area = images.copy(), images.shape[1] * images.shape[2]
    out[blended] = _blend(images[blended], others[blended], share[blended])
    for i in np.flatnonzero(~blended):
        rows, columns = (_stretch(share[i], u[i, 3 + axis], images.shape[1 + axis]) for axis in (0, 1))
        out[i, rows, columns] = others[i, rows, columns]
        share[i] = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / area
    return out, share.astype(np.float32)


def _blend(images: Images, others: Images, share: NDArray[np.float64]) -> Images:
    weights = share.astype(np.float32)[:, None, None, None]
    return np.rint(images * weights + others * (1 - weights)).astype(np.uint8)


def _stretch(share: float, place: float, size: int) -> slice:
    """One side of the rectangle: √(1 − share) of `size`, around ⌊place size⌋.

    What stands out over an end is lost, and half sides are rounded down, as in the authors' code.
    """
    middle, half = int(size * place), int(size * np.sqrt(1 - share)) // 2
    return slice(max(middle - half, 0), min(middle + half, size))
