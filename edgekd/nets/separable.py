"""Depthwise-separable convolutions in the manner of MobileNet (Howard et al. 2017, arXiv 1704.04861) and of the DS-CNN
(Zhang et al. 2017, arXiv 1711.07128), for tiny budgets."""

from torch import nn

from edgekd.nets.stages import StagedShape, body, conv_bn_relu, head, initialise

__all__ = ["separable"]


def separable(shape: StagedShape, channels: int, size: int, classes: int) -> nn.Module:
    """A network that maps images (B, channels, size, size) float to logits (B, classes): each block is a 3×3 depthwise
    and a 1×1 convolution."""

    def block(inside: int, outside: int, stride: int) -> nn.Module:
        return nn.Sequential(*conv_bn_relu(inside, inside, 3, stride, groups=inside), *conv_bn_relu(inside, outside, 1))

    first = shape.stages[0]
    stem = conv_bn_relu(channels, first, 3, shape.stem_stride)
    return initialise([*stem, *body(shape, first, block), *head(shape.stages[-1], classes)])
