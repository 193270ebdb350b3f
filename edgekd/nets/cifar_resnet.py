"""The CIFAR ResNets of He et al. 2015 (arXiv 1512.03385, section 4.2), with shortcuts of option A."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

__all__ = ["CifarResNet", "CifarResNetShape"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class CifarResNetShape:
    """A ResNet of depth = 6 n + 2 layers with `width` channels in the first of three stages; each next stage has twice
    as many channels."""

    depth: Annotated[int, Field(ge=8, le=1202, multiple_of=2)] = 20
    width: Annotated[int, Field(ge=2, le=65_536, multiple_of=2)] = 16

    def __post_init__(self) -> None:
        if (self.depth - 2) % 6:
            raise ValueError(f"should be a depth of 6 n + 2 (8, 14, 20, 26, …), got {self.depth}")


class _Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.stride = stride
        self.padding = (outside - inside) // 2
        self.shortcut: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.stride != 1 or self.padding:
            # Option A has no parameters: it takes every second pixel, and adds zero channels on both sides.
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)

    def with_convolution(self) -> None:
        """Compute the shortcut by a 1×1 convolution of zeros and ones, which gives the same values."""
        inside, outside = self.conv1.in_channels, self.conv2.out_channels
        if self.stride != 1 or self.padding:
            self.shortcut = nn.Conv2d(inside, outside, 1, self.stride, bias=False)
            with torch.no_grad():
                self.shortcut.weight.zero_()
                for channel in range(inside):
                    self.shortcut.weight[channel + self.padding, channel] = 1.0


class CifarResNet(nn.Module):
    """Maps images (B, channels, H, W) float to logits (B, classes)."""

    def __init__(self, shape: CifarResNetShape, channels: int, classes: int) -> None:
        super().__init__()
        width, blocks = shape.width, (shape.depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, 1)
        self.layer2 = _stage(width, 2 * width, blocks, 2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, 2)
        self.linear = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: Tensor = self.linear(x)
        return logits

    def with_convolutions(self) -> None:
        """Replace the shortcuts of option A, whose slices and zeros fix the number of channels, by 1×1 convolutions of
        zeros and ones; the outputs stay the same."""
        for module in self.modules():
            if isinstance(module, _Block):
                module.with_convolution()


def _stage(inside: int, outside: int, blocks: int, stride: int) -> nn.Sequential:
    first = _Block(inside, outside, stride)
    return nn.Sequential(first, *(_Block(outside, outside, 1) for _ in range(blocks - 1)))
