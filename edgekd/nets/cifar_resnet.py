"""The CIFAR ResNets of He et al. 2015 (arXiv 1512.03385, section 4.2), with shortcuts of option A or B."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

__all__ = ["CifarResNet", "CifarResNetShape"]

Width = Annotated[int, Field(ge=2, le=65_536, multiple_of=2)]
NoBlock = Annotated[int, Field(ge=0, le=200)]
Blocks = Annotated[int, Field(ge=1, le=200)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class CifarResNetShape:
    """A ResNet of depth = 6 n + 2 layers with `width` channels in the first of three stages; each next stage has twice
    as many channels."""

    depth: Annotated[int, Field(ge=8, le=1202, multiple_of=2)] = 20
    blocks: tuple[NoBlock, Blocks, Blocks] | None = None
    """The residual blocks of the three stages, in place of `depth`. A first stage of 0 is the stem alone."""
    width: Width = 16
    widths: tuple[Width, Width, Width] | None = None
    """The channels of the three stages, in place of `width`. With option A no stage may be narrower than the one before
    it."""
    shortcut: Literal["A", "B"] = "A"
    """Where a block changes the size: A takes every second pixel and adds zero channels, without parameters; B is a
    1×1 convolution with batch normalisation."""
    stem_stride: Literal[1, 2] = 1
    """Stride of the first convolution; 2 halves the resolution of all stages."""

    def __post_init__(self) -> None:
        if (self.depth - 2) % 6:
            raise ValueError(f"should be a depth of 6 n + 2 (8, 14, 20, 26, …), got {self.depth}")
        if self.blocks and self.depth != 20:
            raise ValueError("should give depth or blocks, not both")
        if self.widths and self.width != 16:
            raise ValueError("should give width or widths, not both")
        if self.shortcut == "A" and self.widths and list(self.widths) != sorted(self.widths):
            raise ValueError(f'widths: should not decrease with shortcut = "A", got {list(self.widths)}')

    @property
    def stages(self) -> tuple[int, int, int]:
        """The channels of the three stages."""
        return self.widths or (self.width, 2 * self.width, 4 * self.width)

    @property
    def counts(self) -> tuple[int, int, int]:
        """The residual blocks of the three stages."""
        each = (self.depth - 2) // 6
        return self.blocks or (each, each, each)


class _Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.stride = stride
        self.padding = (outside - inside) // 2
        changes = stride != 1 or inside != outside
        self.shortcut: nn.Module | None = None
        if shortcut == "B" and changes:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

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
        if self.shortcut is None and (self.stride != 1 or self.padding):
            self.shortcut = projection = nn.Conv2d(inside, outside, 1, self.stride, bias=False)
            with torch.no_grad():
                projection.weight.zero_()
                for channel in range(inside):
                    projection.weight[channel + self.padding, channel] = 1.0


class CifarResNet(nn.Module):
    """Maps images (B, channels, H, W) float to logits (B, classes)."""

    def __init__(self, shape: CifarResNetShape, channels: int, classes: int) -> None:
        super().__init__()
        (first, second, third), blocks = shape.stages, shape.counts
        self.conv1 = nn.Conv2d(channels, first, 3, shape.stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(first, first, blocks[0], 1, shape.shortcut)
        self.layer2 = _stage(first, second, blocks[1], 2, shape.shortcut)
        self.layer3 = _stage(second, third, blocks[2], 2, shape.shortcut)
        self.linear = nn.Linear(third, classes)
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


def _stage(inside: int, outside: int, blocks: int, stride: int, shortcut: str) -> nn.Sequential:
    sizes = [(inside, stride), *[(outside, 1)] * (blocks - 1)][:blocks]
    return nn.Sequential(*(_Block(before, outside, step, shortcut) for before, step in sizes))
