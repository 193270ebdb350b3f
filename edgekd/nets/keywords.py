"""Families for keyword spotting, which map features (B, 1, bins, frames) to logits (B, keywords)."""

from typing import Annotated

import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from edgekd.nets.stages import Width, conv_bn_relu, head, initialise

__all__ = [
    "BcResNetShape",
    "DsCnnShape",
    "KeywordCnnShape",
    "bc_resnet",
    "ds_cnn",
    "keyword_cnn",
]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Share = Annotated[float, Field(ge=0, lt=1)]
Side = Annotated[int, Field(ge=1, le=64)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DsCnnShape:
    """A convolution over a large part of the features, then `layers` depthwise-separable blocks of equal width (Zhang
    et al. 2017, arXiv 1711.07128, section 3.5). The defaults are those of the network that MLPerf Tiny uses, whose
    features are 10 MFCC of 49 frames."""

    width: Width = 64
    layers: Annotated[int, Field(ge=1, le=32)] = 4
    kernel: tuple[Side, Side] = (4, 10)
    stride: tuple[Side, Side] = (2, 2)
    """Of the first convolution, over bins and frames."""
    dropout: Share = 0.2


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class KeywordCnnShape:
    """A small plain network of 3×3 convolutions with batch normalisation and ReLU. Each stage halves bins and frames in
    its first convolution."""

    channels: Annotated[tuple[Width, ...], Field(min_length=1, max_length=8)] = (32, 48, 64)
    layers: Annotated[int, Field(ge=1, le=32)] = 1
    """Convolutions in each stage."""
    dropout: Share = 0.2


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class BcResNetShape:
    """Broadcasted residual learning (Kim et al. 2021, arXiv 2106.04140, table 1): frequencies are convolved in two
    dimensions, time after averaging over the frequencies."""

    width: Annotated[int, Field(ge=1, le=64)] = 1
    """Scale of all widths: the network BC-ResNet-`width`, with 8, 12, 16 and 20 · `width` channels in its stages."""
    groups: Annotated[int, Field(ge=1, le=64)] = 5
    """Parts of the frequencies that are normalised apart (sub-spectral normalisation); the number of bins must be a
    multiple of 8 · `groups`."""
    dropout: Share = 0.1


def ds_cnn(shape: DsCnnShape, bins: int, frames: int, outputs: int) -> nn.Module:
    """A DS-CNN. Raises ValueError if its first kernel is larger than the features."""
    if shape.kernel[0] > 2 * bins or shape.kernel[1] > 2 * frames:
        raise ValueError(f"kernel {list(shape.kernel)} is too large for features of {bins}×{frames}")
    above, beside = ((side - 1) // 2 for side in shape.kernel)
    below, after = (side - 1 - before for side, before in zip(shape.kernel, (above, beside), strict=True))
    first = nn.Conv2d(1, shape.width, shape.kernel, shape.stride, bias=False)
    parts: list[nn.Module] = [nn.ZeroPad2d((beside, after, above, below)), first]
    parts += [nn.BatchNorm2d(shape.width), nn.ReLU(), nn.Dropout(shape.dropout)]
    for _ in range(shape.layers):
        parts += conv_bn_relu(shape.width, shape.width, 3, groups=shape.width)
        parts += conv_bn_relu(shape.width, shape.width, 1)
    pool, flat, last = head(shape.width, outputs)
    return initialise([*parts, pool, flat, nn.Dropout(shape.dropout), last])


def keyword_cnn(shape: KeywordCnnShape, bins: int, frames: int, outputs: int) -> nn.Module:
    """A plain network. Raises ValueError if it has too many stages for the features."""
    if min(bins, frames) >> (len(shape.channels) - 1) < 1:
        raise ValueError(f"{len(shape.channels)} stages are too many for features of {bins}×{frames}")
    parts, inside = list[nn.Module](), 1
    for outside in shape.channels:
        parts += conv_bn_relu(inside, outside, 3, 2)
        for _ in range(shape.layers - 1):
            parts += conv_bn_relu(outside, outside, 3)
        inside = outside
    pool, flat, last = head(inside, outputs)
    return initialise([*parts, pool, flat, nn.Dropout(shape.dropout), last])


class SubSpectralNorm(nn.Module):
    """Batch normalisation of each of `groups` parts of the frequencies apart (Chang et al. 2021, arXiv 2103.13620)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.norm = nn.BatchNorm2d(channels * groups)

    def forward(self, x: Tensor) -> Tensor:
        channels, bins, frames = x.shape[1:]
        apart = x.reshape(-1, channels * self.groups, bins // self.groups, frames)
        normalised: Tensor = self.norm(apart)
        return normalised.reshape(-1, channels, bins, frames)


class BroadcastBlock(nn.Module):
    """y = x + f2(x) + f1(average of f2(x) over the frequencies), of equations 2 and 3; a transition, which changes the
    width or the number of bins, has no x and begins with a pointwise convolution."""

    def __init__(self, inside: int, outside: int, stride: int, dilation: int, shape: BcResNetShape) -> None:
        super().__init__()
        self.transition = inside != outside or stride != 1
        before = conv_bn_relu(inside, outside, 1) if self.transition else []
        depthwise = nn.Conv2d(outside, outside, (3, 1), (stride, 1), (1, 0), groups=outside, bias=False)
        self.frequencies = nn.Sequential(*before, depthwise, SubSpectralNorm(outside, shape.groups))
        along = nn.Conv2d(outside, outside, (1, 3), 1, (0, dilation), (1, dilation), groups=outside, bias=False)
        mix = nn.Conv2d(outside, outside, 1, bias=False)
        self.times = nn.Sequential(along, nn.BatchNorm2d(outside), nn.SiLU(), mix, nn.Dropout2d(shape.dropout))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.frequencies(x)
        found = found + self.times(found.mean(dim=2, keepdim=True))
        return F.relu(found if self.transition else found + x)


class BcResNet(nn.Module):
    """BC-ResNet for features (B, 1, bins, frames)."""

    def __init__(self, shape: BcResNetShape, outputs: int) -> None:
        super().__init__()
        width = shape.width
        stem = nn.Conv2d(1, 16 * width, 5, (2, 1), 2, bias=False)
        parts: list[nn.Module] = [stem, nn.BatchNorm2d(16 * width), nn.ReLU()]
        inside = 16 * width
        for outside, count, stride, dilation in ((8, 2, 1, 1), (12, 2, 2, 2), (16, 4, 2, 4), (20, 4, 1, 8)):
            for place in range(count):
                first = stride if place == 0 else 1
                parts.append(BroadcastBlock(inside, outside * width, first, dilation, shape))
                inside = outside * width
        self.body = nn.Sequential(*parts)
        self.last = nn.Conv2d(inside, inside, 5, padding=(0, 2), groups=inside, bias=False)
        self.wide = nn.Sequential(nn.Conv2d(inside, 32 * width, 1, bias=False), nn.BatchNorm2d(32 * width), nn.ReLU())
        self.head = nn.Linear(32 * width, outputs)

    def forward(self, features: Tensor) -> Tensor:
        found = self.last(self.body(features)).mean(dim=2, keepdim=True)
        logits: Tensor = self.head(self.wide(found).mean(dim=(2, 3)))
        return logits


def bc_resnet(shape: BcResNetShape, bins: int, frames: int, outputs: int) -> nn.Module:
    """A BC-ResNet. Raises ValueError if the bins cannot be cut into the parts that are normalised apart."""
    if bins % (8 * shape.groups) or bins < 40:
        raise ValueError(f"bins {bins} should be a multiple of 8 · groups, {8 * shape.groups}, and at least 40")
    return BcResNet(shape, outputs)
