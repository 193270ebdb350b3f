"""RepVGG (Ding et al. 2021, arXiv 2101.03697): branches in training, one 3×3 convolution on the device."""

import torch
from torch import Tensor, nn

from edgekd.nets.stages import StagedShape, body, head, initialise

__all__ = ["RepVggBlock", "repvgg"]


class RepVggBlock(nn.Module):
    """The sum of a 3×3 convolution, a 1×1 convolution and, where the size stays, the input, each with batch
    normalisation; then ReLU."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outside)
        self.conv1 = nn.Conv2d(inside, outside, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.bn0 = nn.BatchNorm2d(inside) if inside == outside and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn3(self.conv3(x)) + self.bn1(self.conv1(x))
        if self.bn0 is not None:
            y = y + self.bn0(x)
        return torch.relu(y)

    def fuse(self) -> nn.Module:
        """The same function as one 3×3 convolution with a bias, and ReLU (section 3.3 of the paper)."""
        weight, bias = _scaled(self.conv3.weight, self.bn3)
        middle, more = _scaled(self.conv1.weight, self.bn1)
        weight, bias = weight + nn.functional.pad(middle, (1, 1, 1, 1)), bias + more
        if self.bn0 is not None:
            count = self.conv3.in_channels
            identity = torch.eye(count, device=weight.device).view(count, count, 1, 1)
            middle, more = _scaled(identity, self.bn0)
            weight, bias = weight + nn.functional.pad(middle, (1, 1, 1, 1)), bias + more
        stride = self.conv3.stride[0]
        conv = nn.Conv2d(self.conv3.in_channels, self.conv3.out_channels, 3, stride, 1).to(weight.device)
        conv.weight.data, conv.bias = weight.float(), nn.Parameter(bias.float())
        return nn.Sequential(conv, nn.ReLU())


def _scaled(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution followed by batch normalisation, in double precision."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * factor
    return (weight.double() * factor.view(-1, 1, 1, 1)).detach(), shift.detach()


def repvgg(shape: StagedShape, channels: int, size: int, classes: int) -> nn.Module:
    """A network that maps images (B, channels, size, size) float to logits (B, classes)."""
    stem = RepVggBlock(channels, shape.stages[0], shape.stem_stride)
    return initialise([stem, *body(shape, shape.stages[0], RepVggBlock), *head(shape.stages[-1], classes)])
