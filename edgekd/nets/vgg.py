"""A plain network in the manner of VGG (Simonyan and Zisserman 2014, arXiv 1409.1556), with batch normalisation."""

from torch import nn

from edgekd.nets.stages import StagedShape, conv_bn_relu, head, initialise

__all__ = ["vgg"]


def vgg(shape: StagedShape, channels: int, size: int, classes: int) -> nn.Module:
    """A network that maps images (B, channels, size, size) float to logits (B, classes): in each stage `layers` 3×3
    convolutions, a 2×2 max-pool between two stages, global average pooling and one linear layer.

    Raises ValueError if the images are too small for that many stages.
    """
    last = size // shape.stem_stride >> (len(shape.stages) - 1)
    if last < 1:
        raise ValueError(f"{len(shape.stages)} stages halve images of {size}×{size} too often; give fewer widths")
    parts: list[nn.Module] = []
    inside = channels
    for place, outside in enumerate(shape.stages):
        if place:
            parts.append(nn.MaxPool2d(2))
        for layer in range(shape.layers):
            stride = shape.stem_stride if place == layer == 0 else 1
            parts += conv_bn_relu(inside, outside, 3, stride)
            inside = outside
    return initialise([*parts, *head(inside, classes)])
