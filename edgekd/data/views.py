"""Augmented views: view k of image i is a pure function of (seed, i, k)."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edgekd.augmentation import Augment
from edgekd.data.augment import rand_augment, trivial_augment
from edgekd.data.images import Images, Split

__all__ = ["VIEWS_VERSION", "draws", "mixed", "permutation", "shrunk", "view"]

VIEWS_VERSION = 1
"""Part of the key of cached teacher outputs. Increase it whenever the views of images or sentences change."""

GREY = 128
"""The level of the pixels that cutout covers."""

# Columns of the draws: 0–2 are for crop and flip; 3–7 for the choice of mixup or CutMix, the partner, λ, and the centre
# of the rectangle; 8 and above for the policy, and the last two for the centre of the cutout.
_MIX, _POLICY = 3, 8


def draws(seed: int, indices: NDArray[np.int64], k: int, count: int) -> NDArray[np.float64]:
    """`count` uniform draws in [0, 1) for each index, with shape (len(indices), count).

    This is a counter-based generator: SplitMix64 (Steele et al. 2014) over (seed, k, index, number of the draw), so a
    draw does not depend on earlier draws.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is intended
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
    """A random order of `count` examples for an epoch, which depends only on (seed, epoch)."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


def view(images: Tensor, indices: NDArray[np.int64], k: int, seed: int, augment: Augment) -> Tensor:
    """View k, without mixing, of images (B, H, W, C) uint8 whose positions in the data set are `indices` (B,).

    Crop and flip come first, then the operations of the policy, then the cutout. Returns (B, H, W, C) uint8.
    """
    if augment.policy == "trivial":
        columns = _POLICY + 3
    else:
        columns = _POLICY + 2 * augment.rand_operations if augment.policy == "rand" else _MIX
    u = draws(seed, indices, k, columns + 2 * (augment.cutout > 0))
    if augment.flip == "alternate":  # the draw of view 0, or its opposite
        first = draws(seed, indices, 0, _MIX)[:, 2]
        u[:, 2] = 1 - first if k % 2 else first
    if augment.crop_padding or augment.flip:
        images = _crop_and_flip(images, u[:, :_MIX], augment)
    if augment.policy == "trivial":
        images = trivial_augment(images, u[:, _POLICY:columns])
    if augment.policy == "rand":
        images = rand_augment(images, u[:, _POLICY:columns].reshape(len(u), -1, 2), augment.rand_magnitude)
    return _cut_out(images, u[:, columns:], augment.cutout) if augment.cutout else images


def _cut_out(images: Tensor, u: NDArray[np.float64], side: int) -> Tensor:
    """A copy of the images (B, H, W, C) with a grey square of `side` pixels each, whose centre u (B, 2) is anywhere in
    the image, so that part of the square may lie outside."""
    out = images.clone()
    for image, (top, left) in zip(out.numpy(), (u * images.shape[1:3]).astype(np.int64) - side // 2, strict=True):
        image[max(top, 0) : top + side, max(left, 0) : left + side] = GREY
    return out


def shrunk(images: Tensor, scale: float) -> Tensor:
    """Images (B, H, W, C) uint8 with `scale` times the height and width, by antialiased bilinear interpolation."""
    size = [max(1, round(side * scale)) for side in images.shape[1:3]]
    smaller = F.interpolate(images.permute(0, 3, 1, 2), size, mode="bilinear", antialias=True)
    return smaller.permute(0, 2, 3, 1)


def _crop_and_flip(images: Tensor, u: NDArray[np.float64], augment: Augment) -> Tensor:
    """Crop each image at (u₀, u₁) and mirror it if u₂ < ½. Images are mirrored when they are copied into the padded
    array, from which whole rows are then copied."""
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
    # An array of overlapping items: each is `width` pixels of a row, from one of the columns at which a crop may start.
    # numpy copies each item as a whole.
    item = np.dtype((np.void, width * channels))
    shape = (batch, height + 2 * padding, 2 * padding + 1)
    rows = np.ndarray(shape, item, padded.data, strides=(*padded.strides[:2], channels))
    chosen = rows[np.arange(batch)[:, None], top[:, None] + np.arange(height), left[:, None]]
    return torch.from_numpy(chosen.view(np.uint8).reshape(images.shape))


def mixed(
    split: Split, indices: NDArray[np.int64], k: int, seed: int, augment: Augment, classes: int
) -> tuple[Tensor, Tensor]:
    """View k of the images of `split` at `indices` (B,), mixed with other images of the split if `augment` says so.

    The partner of an image is chosen uniformly from the split, in its own unmixed view k, and λ ~ Beta(α, α); both are
    pure functions of (seed, index, k). Mixup (Zhang et al. 2018, equation 1) rounds λ image + (1 − λ) partner to whole
    grey levels. CutMix (Yun et al. 2019, equations 1 and 2) copies a rectangle from the partner; λ is then set to the
    share of pixels that were kept.

    Returns inputs (B, H, W, C) uint8 and targets: labels (B,) int64, or, with mixing, class probabilities (B, classes)
    float32.
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
    """Mix each image with the other one of its pair; return the mixed images (B, H, W, C) and the share (B,) of the
    first image in each of them."""
    from scipy.special import betaincinv  # imported here, because nothing else needs scipy

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
    """The range of one side of the rectangle: √(1 − share) of `size`, with the centre ⌊place · size⌋.

    As in the authors' code, it is cut off at the ends of the image, and half of its length is rounded down.
    """
    middle, half = int(size * place), int(size * np.sqrt(1 - share)) // 2
    return slice(max(middle - half, 0), min(middle + half, size))
