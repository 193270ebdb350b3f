"""Small families: a multi-layer perceptron and a plain convolutional network."""

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import nn

__all__ = ["ConvNetShape", "MlpShape", "convnet", "mlp"]

Width = Annotated[int, Field(ge=1, le=1_000_000)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class MlpShape:
    """Shape of an MLP: the sizes of its hidden layers."""

    hidden: Annotated[tuple[Width, ...], Field(min_length=1, max_length=64)] = (512, 256)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ConvNetShape:
    """One 3×3 convolution per entry of `channels`, a 2×2 max-pool between two convolutions, and one hidden layer."""

    channels: Annotated[tuple[Width, ...], Field(min_length=1, max_length=64)] = (32, 64)
    hidden: Width = 128
    grid: Width = 1
    """The last feature map is average-pooled to grid × grid cells; 1 is global pooling."""


def mlp(shape: MlpShape, channels: int, size: int, classes: int) -> nn.Module:
    """A network that maps images (B, channels, size, size) float to logits (B, classes)."""
    layers: list[nn.Module] = [nn.Flatten()]
    inside = channels * size * size
    for outside in shape.hidden:
        layers += [nn.Linear(inside, outside), nn.ReLU()]
        inside = outside
    return nn.Sequential(*layers, nn.Linear(inside, classes))


def convnet(shape: ConvNetShape, channels: int, size: int, classes: int) -> nn.Module:
    """A network that maps images (B, channels, size, size) float to logits (B, classes).

    Raises ValueError if the size of the last feature map is not a multiple of `grid`.
    """
    last = size >> (len(shape.channels) - 1)
    if last < 1 or last % shape.grid:
        raise ValueError(f"grid {shape.grid} does not divide the last feature map of {last}×{last}")
    layers: list[nn.Module] = []
    inside = channels
    for place, outside in enumerate(shape.channels):
        if place:
            layers.append(nn.MaxPool2d(2))
        layers += [nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
        inside = outside
    layers += [nn.AdaptiveAvgPool2d(shape.grid), nn.Flatten()]
    layers += [nn.Linear(inside * shape.grid**2, shape.hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(shape.hidden, classes))
