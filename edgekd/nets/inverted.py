"""Inverted residuals in the manner of MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381), with ReLU, which quantizes
without nodes of its own."""

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from edgekd.nets.stages import StagedShape, body, conv_bn_relu, head, initialise

__all__ = ["InvertedBlock", "InvertedShape", "inverted_residual"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class InvertedShape(StagedShape):
    """Stages of inverted residual blocks."""

    expansion: Annotated[int, Field(ge=1, le=16)] = 4
    """How many times wider a block is inside."""


class InvertedBlock(nn.Module):
    """A 1×1 convolution to `expansion` times the channels, a depthwise one and a linear 1×1 one, with a shortcut where
    the sizes are equal; (B, inside, H, W) to (B, outside, H / stride, W / stride)."""

    def __init__(self, inside: int, outside: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        parts = conv_bn_relu(inside, wide, 1) if expansion > 1 else []
        parts += conv_bn_relu(wide, wide, 3, stride, groups=wide)
        self.parts = nn.Sequential(*parts, nn.Conv2d(wide, outside, 1, bias=False), nn.BatchNorm2d(outside))
        self.residual = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.parts(x)
        return x + y if self.residual else y


def inverted_residual(shape: InvertedShape, channels: int, size: int, classes: int) -> nn.Module:
    """A network that maps images (B, channels, size, size) float to logits (B, classes); its last layer before the
    pooling is a 1×1 convolution to twice the channels, as in the paper's network."""

    def block(inside: int, outside: int, stride: int) -> nn.Module:
        return InvertedBlock(inside, outside, stride, shape.expansion)

    first, last = shape.stages[0], shape.stages[-1]
    stem, top = conv_bn_relu(channels, first, 3, shape.stem_stride), conv_bn_relu(last, 2 * last, 1)
    return initialise([*stem, *body(shape, first, block), *top, *head(2 * last, classes)])
