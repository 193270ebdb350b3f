"""What the plain families share: a shape of stages, and the network that is built of a family's blocks."""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import nn

__all__ = ["StagedShape", "Width", "body", "conv_bn_relu", "head", "initialise"]

Width = Annotated[int, Field(ge=8, le=65_536, multiple_of=8)]
"""A number of channels. Kernels compute 8, 16 or more channels at a time, so that others waste a part of it."""

Block = Callable[[int, int, int], nn.Module]
"""Makes a block from (input channels, output channels, stride)."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class StagedShape:
    """Stages of equal blocks. The resolution is halved between two stages."""

    width: Width = 16
    """Channels of the first of three stages; each next stage has twice as many."""
    widths: Annotated[tuple[Width, ...], Field(min_length=1, max_length=8)] | None = None
    """The channels of each stage, in place of `width`."""
    layers: Annotated[int, Field(ge=1, le=64)] = 1
    """Blocks in each stage."""
    stem_stride: Literal[1, 2] = 1
    """Stride of the first convolution; 2 halves the resolution of all stages."""

    def __post_init__(self) -> None:
        if self.widths and self.width != 16:
            raise ValueError("should give width or widths, not both")

    @property
    def stages(self) -> tuple[int, ...]:
        """The channels of each stage."""
        return self.widths or (self.width, 2 * self.width, 4 * self.width)


def body(shape: StagedShape, inside: int, block: Block, first_stride: int = 1) -> nn.Sequential:
    """All stages, as one module each; `first_stride` is the stride of the first block of the first stage."""
    stages: list[nn.Module] = []
    for place, outside in enumerate(shape.stages):
        stride = 2 if place else first_stride
        blocks = [block(inside, outside, stride), *(block(outside, outside, 1) for _ in range(shape.layers - 1))]
        stages.append(nn.Sequential(*blocks))
        inside = outside
    return nn.Sequential(*stages)


def conv_bn_relu(inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution with padding that keeps the size, batch normalisation and ReLU."""
    conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outside), nn.ReLU()]


def head(inside: int, classes: int) -> list[nn.Module]:
    """Global average pooling and one linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes)]


def initialise(parts: Sequence[nn.Module]) -> nn.Sequential:
    """The parts as one network, with the weights of its convolutions drawn as He et al. 2015 (arXiv 1502.01852) do."""
    net = nn.Sequential(*parts)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net
