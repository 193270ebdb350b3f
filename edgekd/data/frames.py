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

from edgekd.augmentation import Augment
from edgekd.data.views import draws

__all__ = ["DRAWS", "LEAST", "Frame", "framed_boxes", "framed_image", "framed_map", "frames_of", "lit"]

DRAWS = 5
"""Number of the draws that a frame takes: scale, top, left, mirror, turn."""

LEAST = 0.3
"""A box of which a view shows a smaller share is not judged there."""


@dataclass(frozen=True)
class Frame:
    """The rectangle that a view shows of an image, in pixels of the image, and what is then done with it."""

    top: int
    left: int
    height: int
    width: int
    out: tuple[int, int]
    """Height and width of the view, to which the rectangle is scaled."""
    mirror: bool = False
    """Whether the view is then mirrored horizontally."""
    turns: int = 0
    """The number of quarter turns, counter-clockwise, after that; an even one if the view is no square."""


def frames_of(seed: int, indices: NDArray[np.int64], k: int, size: tuple[int, int], augment: Augment) -> list[Frame]:
    """The frame of view k of each of the images at `indices`, which have this `size` (height, width).

    Views are squares with `augment.crop`, else they have the size of the images. The sides of the rectangle are those
    of the view, divided by a scale between the two of `augment.scale`, all ratios being equally likely, but at most the
    image's. Its place is uniform over the image.
    """
    u = draws(seed, indices, k, DRAWS)
    out = (augment.crop, augment.crop) if augment.crop else size
    low, high = (np.log(bound) for bound in augment.scale)
    scales = np.exp(low + (high - low) * u[:, 0])
    heights, widths = (
        np.clip(np.rint(side / scales).astype(np.int64), 1, whole) for side, whole in zip(out, size, strict=True)
    )
    tops, lefts = (
        (u[:, column] * (whole - sides + 1)).astype(np.int64)
        for column, whole, sides in ((1, size[0], heights), (2, size[1], widths))
    )
    mirrored = u[:, 3] < 0.5
    if augment.flip == "alternate":  # the draw of view 0, or its opposite
        mirrored = (draws(seed, indices, 0, DRAWS)[:, 3] < 0.5) != bool(k % 2)
    quarters = (4 * u[:, 4]).astype(np.int64) if out[0] == out[1] else 2 * (2 * u[:, 4]).astype(np.int64)
    return [
        Frame(
            int(tops[i]),
            int(lefts[i]),
            int(heights[i]),
            int(widths[i]),
            out,
            bool(augment.flip) and bool(mirrored[i]),
            int(quarters[i]) if augment.turn else 0,
        )
        for i in range(len(indices))
    ]


def framed_image(image: Tensor, frame: Frame) -> Tensor:
    """What the frame shows of an image (H, W, C) uint8, scaled by antialiased bilinear interpolation; (*out, C)."""
    cut = image[frame.top : frame.top + frame.height, frame.left : frame.left + frame.width]
    if (frame.height, frame.width) != frame.out:
        channels = cut.permute(2, 0, 1)[None]
        scaled = F.interpolate(channels, frame.out, mode="bilinear", antialias=True)
        cut = scaled[0].permute(1, 2, 0)
    return _moved(cut, frame)


def framed_map(classes: Tensor, frame: Frame) -> Tensor:
    """What the frame shows of a class map (H, W) uint8, scaled by taking the nearest pixel; `out`."""
    rows, columns = (
        ((torch.arange(out) + 0.5) * (side / out)).long()
        for out, side in zip(frame.out, (frame.height, frame.width), strict=True)
    )
    return _moved(classes[frame.top + rows[:, None], frame.left + columns[None, :]], frame)


def framed_boxes(boxes: Tensor, frame: Frame) -> Tensor:
    """Where the boxes (M, 6) of an image are in the frame: class, x1, y1, x2, y2, and 1 for one that is not judged.

    Boxes are cut off at the edges. One of which less than LEAST is shown is not judged, and one that is not shown
    becomes an unused row, of class −1 and zeros.
    """
    height, width = frame.out
    scale = torch.tensor([width / frame.width, height / frame.height] * 2)
    whole = (boxes[:, 1:5] - torch.tensor([frame.left, frame.top] * 2)) * scale
    corners = torch.minimum(whole.clamp(min=0), torch.tensor([width, height] * 2, dtype=whole.dtype))
    shown = (corners[:, 2:] - corners[:, :2]).prod(dim=1) / (whole[:, 2:] - whole[:, :2]).prod(dim=1).clamp(min=1e-6)
    if frame.mirror:
        corners = torch.stack([width - corners[:, 2], corners[:, 1], width - corners[:, 0], corners[:, 3]], dim=1)
    for _ in range(frame.turns % 4):  # the right edge becomes the top
        x1, y1, x2, y2 = corners.unbind(dim=1)
        corners = torch.stack([y1, width - x2, y2, width - x1], dim=1)
        height, width = width, height
    aside = torch.maximum(boxes[:, 5], (shown < LEAST).to(boxes.dtype))
    moved = torch.cat([boxes[:, :1], corners, aside[:, None]], dim=1)
    used = (boxes[:, 0] >= 0) & (shown > 0)
    return torch.where(used[:, None], moved, torch.tensor([-1.0, 0, 0, 0, 0, 0]))


def _moved(cut: Tensor, frame: Frame) -> Tensor:
    return torch.rot90(cut.flip(1) if frame.mirror else cut, frame.turns, (0, 1))


def lit(images: Tensor, indices: NDArray[np.int64], k: int, augment: Augment) -> Tensor:
    """Images whose grey levels are multiplied by a factor between 1 − b and 1 + b, where b is `augment.brightness`."""
    if not augment.brightness:
        return images
    u = draws(augment.seed, indices, k, DRAWS + 1)[:, DRAWS]
    factors = torch.from_numpy((1 + augment.brightness * (2 * u - 1)).astype(np.float32))
    return (images * factors[:, None, None, None]).clamp_(0, 255).to(torch.uint8)
