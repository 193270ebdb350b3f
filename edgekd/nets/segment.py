"""Networks for segmentation, which give logits of every pixel: a small U-Net, and one in the manner of Fast-SCNN."""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from edgekd.nets.inverted import InvertedBlock
from edgekd.nets.stages import Width, conv_bn_relu

__all__ = ["FastScnn", "FastScnnShape", "UNet", "UNetShape"]

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class UNetShape:
    """A U-Net: `depth` times the resolution is halved and the width doubled, and then the reverse."""

    width: Width = 16
    """Channels at the full resolution."""
    depth: Annotated[int, Field(ge=1, le=8)] = 3
    layers: Annotated[int, Field(ge=1, le=8)] = 2
    """3×3 convolutions at each resolution."""
    widest: Width = 256
    """The largest number of channels."""
    stem_stride: Literal[1, 2] = 1
    """With 2, everything is computed at half the resolution, and the logits are scaled up at the end."""
    separable: bool = False
    """Whether all convolutions but the first are a depthwise and a 1×1 one."""


class UNet(nn.Module):
    """Maps images (B, channels, H, W) to logits (B, classes, H, W) (Ronneberger et al. 2015, arXiv 1505.04597).

    Convolutions keep the size, and have batch normalisation. The way up takes the nearest pixel in place of a
    transposed convolution, for which most int8 kernels are missing. Raises ValueError for a size that cannot be halved
    often enough.
    """

    def __init__(self, shape: UNetShape, channels: int, size: int, classes: int) -> None:
        super().__init__()
        _require_divisible(size, shape.stem_stride * 2**shape.depth)
        widths = [min(shape.width * 2**level, shape.widest) for level in range(shape.depth + 1)]
        self.stem = nn.Sequential(*conv_bn_relu(channels, widths[0], 3, shape.stem_stride))
        self.down = nn.ModuleList(
            _stage(widths[max(0, level - 1)], widths[level], shape.layers - (level == 0), shape.separable)
            for level in range(shape.depth + 1)
        )
        self.up = nn.ModuleList(
            _stage(widths[level + 1] + widths[level], widths[level], shape.layers, shape.separable)
            for level in reversed(range(shape.depth))
        )
        self.head = nn.Conv2d(widths[0], classes, 1)
        self.stride = shape.stem_stride

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        kept: list[Tensor] = []
        for level, stage in enumerate(self.down):
            x = stage(F.max_pool2d(x, 2) if level else x)
            kept.append(x)
        kept.pop()
        for stage in self.up:
            x = stage(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), kept.pop()], dim=1))
        return _enlarged(self.head(x), self.stride)


def _stage(inside: int, outside: int, layers: int, separable: bool) -> nn.Sequential:
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += _separable(inside, outside) if separable else conv_bn_relu(inside, outside, 3)
        inside = outside
    return nn.Sequential(*parts)


def _separable(inside: int, outside: int, stride: int = 1) -> list[nn.Module]:
    return [*conv_bn_relu(inside, inside, 3, stride, groups=inside), *conv_bn_relu(inside, outside, 1)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FastScnnShape:
    """A network in the manner of Fast-SCNN; with width 32 and depth 3 it has the paper's sizes, but for the head."""

    width: Width = 32
    """Channels of the first convolution; the others have 1.5 to 4 times as many."""
    depth: Annotated[int, Field(ge=1, le=8)] = 3
    """Bottlenecks in each of the three stages at low resolution."""


class FastScnn(nn.Module):
    """Maps images (B, channels, H, W) to logits (B, classes, H, W) (Poudel et al. 2019, arXiv 1902.04502, table 1).

    Learning to downsample (to 1/8), global features with inverted bottlenecks (to 1/32) and pyramid pooling, fusion of
    both at 1/8, and a head whose logits are scaled up bilinearly. Raises ValueError for a size that 32 does not divide.
    """

    def __init__(self, shape: FastScnnShape, channels: int, size: int, classes: int) -> None:
        super().__init__()
        _require_divisible(size, 32)
        first, second, third, last = (_multiple(shape.width * factor) for factor in (1.0, 1.5, 2.0, 4.0))
        self.detail = nn.Sequential(
            *conv_bn_relu(channels, first, 3, 2), *_separable(first, second, 2), *_separable(second, third, 2)
        )
        blocks: list[nn.Module] = []
        inside = third
        for outside, stride in ((third, 2), (_multiple(shape.width * 3.0), 2), (last, 1)):
            for place in range(shape.depth):
                blocks.append(InvertedBlock(inside, outside, stride if place == 0 else 1, 6))
                inside = outside
        self.context = nn.Sequential(*blocks)
        self.pyramid = nn.ModuleList(nn.Sequential(*conv_bn_relu(last, last // 4, 1)) for _ in PYRAMID)
        self.mixed = nn.Sequential(*conv_bn_relu(last + len(PYRAMID) * (last // 4), last, 1))
        self.from_context = nn.Sequential(*conv_bn_relu(last, last, 3, groups=last), *_linear(last, last))
        self.from_detail = nn.Sequential(*_linear(third, last))
        self.classifier = nn.Sequential(*_separable(last, last), *_separable(last, last), nn.Conv2d(last, classes, 1))

    def forward(self, images: Tensor) -> Tensor:
        detail = self.detail(images)
        x = self.context(detail)
        pooled = [x]
        for cells, layer in zip(PYRAMID, self.pyramid, strict=True):
            small = F.adaptive_avg_pool2d(x, math.gcd(cells, int(x.shape[2])))
            # A factor: with a size, the exporter would compute it from the shape of the batch in the graph.
            pooled.append(F.interpolate(layer(small), scale_factor=float(x.shape[2] // small.shape[2]), mode="nearest"))
        x = F.interpolate(self.mixed(torch.cat(pooled, dim=1)), scale_factor=4.0, mode="nearest")
        return _enlarged(self.classifier(F.relu(self.from_context(x) + self.from_detail(detail))), 8)


PYRAMID = (1, 2, 4)
"""Cells along each side of the pooled maps, or fewer that divide it. The paper has 1, 2, 3 and 6, which do not divide
powers of two."""


def _linear(inside: int, outside: int) -> list[nn.Module]:
    return [nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside)]


def _multiple(channels: float) -> int:
    return max(8, 8 * round(channels / 8))


def _enlarged(logits: Tensor, factor: int) -> Tensor:
    if factor == 1:
        return logits
    return F.interpolate(logits, scale_factor=float(factor), mode="bilinear", align_corners=False)


def _require_divisible(size: int, factor: int) -> None:
    if size % factor:
        raise ValueError(f"the resolution is made {factor} times smaller, which does not divide the size {size}")
