"""Frames: where the views of images are cut out, and how they are scaled, mirrored and turned.

A frame moves an image and what is known of its pixels in the same way. View k of image i is a pure function of
(seed, i, k), and its pixels do not depend on the other images of the batch.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edgekd.card import Augment
from edgekd.data.views import draws

__all__ = ["DRAWS", "Frame", "framed_image", "framed_map", "frames_of"]

DRAWS = 5
"""Number of the draws that a frame takes: scale, top, left, mirror, turn."""


@dataclass(frozen=True)
class Frame:
    """The square that a view shows of an image, in pixels of the image, and what is then done with it."""

    top: int
    left: int
    side: int
    out: int
    """Height and width of the view, to which the square is scaled."""
    mirror: bool = False
    """Whether the view is then mirrored horizontally."""
    turns: int = 0
    """The number of quarter turns, counter-clockwise, after that."""


def frames_of(seed: int, indices: NDArray[np.int64], k: int, size: int, augment: Augment) -> list[Frame]:
    """The frame of view k of each of the images at `indices`, which have `size` × `size` pixels.

    The side of the square is the one of the view, divided by a scale between the two of `augment.scale`, all ratios
    being equally likely, but at most the image's. Its place is uniform over the image.
    """
    u = draws(seed, indices, k, DRAWS)
    out = augment.crop or size
    low, high = (np.log(bound) for bound in augment.scale)
    sides = np.clip(np.rint(out / np.exp(low + (high - low) * u[:, 0])).astype(np.int64), 1, size)
    tops, lefts = ((u[:, column] * (size - sides + 1)).astype(np.int64) for column in (1, 2))
    mirrored = u[:, 3] < 0.5
    if augment.flip == "alternate":  # the draw of view 0, or its opposite
        mirrored = (draws(seed, indices, 0, DRAWS)[:, 3] < 0.5) != bool(k % 2)
    return [
        Frame(
            int(tops[i]),
            int(lefts[i]),
            int(sides[i]),
            out,
            bool(augment.flip) and bool(mirrored[i]),
            int(4 * u[i, 4]) if augment.turn else 0,
        )
        for i in range(len(indices))
    ]


def framed_image(image: Tensor, frame: Frame) -> Tensor:
    """What the frame shows of an image (H, W, C) uint8, scaled by antialiased bilinear interpolation; (out, out, C)."""
    cut = image[frame.top : frame.top + frame.side, frame.left : frame.left + frame.side]
    if frame.side != frame.out:
        channels = cut.permute(2, 0, 1)[None]
        scaled = F.interpolate(channels, (frame.out, frame.out), mode="bilinear", antialias=True)
        cut = scaled[0].permute(1, 2, 0)
    return _moved(cut, frame)


def framed_map(classes: Tensor, frame: Frame) -> Tensor:
    """What the frame shows of a class map (H, W) uint8, scaled by taking the nearest pixel; (out, out)."""
    nearest = ((torch.arange(frame.out) + 0.5) * (frame.side / frame.out)).long()
    return _moved(classes[frame.top + nearest[:, None], frame.left + nearest[None, :]], frame)


def _moved(cut: Tensor, frame: Frame) -> Tensor:
    return torch.rot90(cut.flip(1) if frame.mirror else cut, frame.turns, (0, 1))
