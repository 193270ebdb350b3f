"""Detectors that look for objects at the places of one or several grids, without anchors."""

import itertools
import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from edgekd.nets.stages import Width, conv_bn_relu

__all__ = ["Detector", "DetectorShape", "centres", "strides_of"]

Stride = Literal[4, 8, 16, 32]

_SURE = 0.01
"""The score that untrained networks give (Lin et al. 2017, arXiv 1708.02002, section 4.1)."""

_FARTHEST = 6.0
"""The largest exponent of a distance: e⁶, 403 strides."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DetectorShape:
    """A backbone that halves the resolution in each stage, a way back up, and a head for each stride that is asked."""

    width: Width = 16
    """Channels of the first convolution, at half the resolution; each stage has twice as many as the one before."""
    widest: Width = 128
    """The largest number of channels."""
    depth: Annotated[int, Field(ge=0, le=8)] = 1
    """Residual blocks in each stage, behind the convolution that halves the resolution."""
    strides: Annotated[tuple[Stride, ...], Field(min_length=1)] = (8, 16)
    """The distances between neighbouring places of each grid, in pixels."""
    deepest: Stride = 32
    """The stride of the last stage, whose features are added to those of the finer ones on the way up."""
    neck: Width = 32
    """Channels on the way up and in the heads."""
    layers: Annotated[int, Field(ge=0, le=4)] = 1
    """3×3 convolutions in each head before its last layer."""
    separable: bool = False
    """Whether the 3×3 convolutions behind the first one are a depthwise and a 1×1 one."""

    def __post_init__(self) -> None:
        if list(self.strides) != sorted(set(self.strides)):
            raise ValueError(f"strides: should rise, got {list(self.strides)}")
        if self.strides[-1] > self.deepest:
            raise ValueError(f"strides: should be at most deepest, {self.deepest}, got {self.strides[-1]}")


class Detector(nn.Module):
    """Maps images (B, channels, H, W) to corners and scores (B, 4 + C, L): x1, y1, x2, y2 in pixels, and a score for
    each class, at each of the L places of all strides, the finest one first.

    As in FCOS (Tian et al. 2019, arXiv 1904.01355), each place tells the distances to the four sides of the box, here
    as exponents of e in strides. Raises ValueError for a size that `deepest` does not divide.
    """

    def __init__(self, shape: DetectorShape, channels: int, height: int, width: int, outputs: int) -> None:
        super().__init__()
        for side in (height, width):
            if side % shape.deepest:
                raise ValueError(
                    f"deepest: the resolution is made {shape.deepest} times smaller, which does not divide {side}"
                )
        count = round(math.log2(shape.deepest))
        widths = [min(shape.width * 2**level, shape.widest) for level in range(count)]
        self.stem = nn.Sequential(*conv_bn_relu(channels, widths[0], 3, 2))
        self.stages = nn.ModuleList(
            _stage(inside, outside, shape) for inside, outside in itertools.pairwise(widths)
        )  # strides 4, 8, …
        self.kept = [level for level in range(count - 1) if 4 * 2**level >= shape.strides[0]]
        self.lateral = nn.ModuleList(
            nn.Sequential(*conv_bn_relu(widths[level + 1], shape.neck, 1)) for level in self.kept
        )
        self.strides = shape.strides
        self.heads = nn.ModuleList(_Head(shape, outputs - 4) for _ in shape.strides)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        merged: dict[int, Tensor] = {}
        above: Tensor | None = None
        for level, lateral in zip(reversed(self.kept), reversed(list(self.lateral)), strict=True):
            own = lateral(levels[level])
            above = own if above is None else own + F.interpolate(above, scale_factor=2.0, mode="nearest")
            merged[4 * 2**level] = above
        found = [head(merged[stride], stride) for stride, head in zip(self.strides, self.heads, strict=True)]
        return torch.cat(found, dim=2)


class _Head(nn.Module):
    """Maps features (B, neck, h, w) of a stride to corners and scores (B, 4 + C, h · w)."""

    def __init__(self, shape: DetectorShape, classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*(part for _ in range(shape.layers) for part in _conv(shape.neck, shape)))
        self.scores = nn.Conv2d(shape.neck, classes, 1)
        self.sides = nn.Conv2d(shape.neck, 4, 1)
        nn.init.constant_(self.scores.bias, -math.log((1 - _SURE) / _SURE))  # type: ignore[arg-type]
        nn.init.normal_(self.scores.weight, std=0.01)
        nn.init.normal_(self.sides.weight, std=0.01)
        nn.init.zeros_(self.sides.bias)  # type: ignore[arg-type]  # a box of two strides, as small objects have

    def forward(self, features: Tensor, stride: int) -> Tensor:
        x = self.trunk(features)
        scores = self.scores(x).float().flatten(2).sigmoid()
        away = self.sides(x).float().flatten(2).clamp(max=_FARTHEST).exp() * stride
        at = centres((features.shape[2] * stride, features.shape[3] * stride), (stride,)).to(away.device)
        return torch.cat([at - away[:, :2], at + away[:, 2:], scores], dim=1)


def _stage(inside: int, outside: int, shape: DetectorShape) -> nn.Sequential:
    blocks = [_Block(outside, shape) for _ in range(shape.depth)]
    return nn.Sequential(*conv_bn_relu(inside, outside, 3, 2), *blocks)


class _Block(nn.Module):
    """Two 3×3 convolutions with a shortcut; the size stays (He et al. 2015, arXiv 1512.03385)."""

    def __init__(self, width: int, shape: DetectorShape) -> None:
        super().__init__()
        self.parts = nn.Sequential(*_conv(width, shape), *_conv(width, shape)[:-1])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu(x + self.parts(x))
        return y


def _conv(width: int, shape: DetectorShape) -> list[nn.Module]:
    if not shape.separable:
        return conv_bn_relu(width, width, 3)
    return [*conv_bn_relu(width, width, 3, groups=width), *conv_bn_relu(width, width, 1)]


def centres(size: tuple[int, int], strides: tuple[int, ...]) -> Tensor:
    """The x and y of all places (2, L) of grids of these strides in an image of this size (height, width)."""
    found = []
    for stride in strides:
        rows, columns = ((torch.arange(side // stride) + 0.5) * stride for side in size)
        found.append(torch.stack([columns.repeat(len(rows)), rows.repeat_interleave(len(columns))]))
    return torch.cat(found, dim=1)


def strides_of(count: int, size: tuple[int, int]) -> tuple[int, ...]:
    """The strides of the grids that have `count` places together in an image of this size (height, width).

    No two sets of strides have the same number of places. Raises ValueError if none has this number.
    """
    known = (4, 8, 16, 32)
    for some in range(1, len(known) + 1):
        for strides in itertools.combinations(known, some):
            if sum((size[0] // stride) * (size[1] // stride) for stride in strides) == count:
                return strides
    raise ValueError(
        f"the network gives {count} places, which are no grids of strides 4, 8, 16 and 32 in images of "
        f"{size[0]}×{size[1]} pixels"
    )
