"""Networks that learn in few epochs, after the networks of the CIFAR-10 speedrun "airbench" (Jordan 2024, arXiv
2404.00498): a whitening first layer, groups of 3×3 convolutions with max-pooling, and BatchNorm without a scale."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

__all__ = ["Airbench", "AirbenchShape", "WhiteningConv", "whitening_filters"]

Width = Annotated[int, Field(ge=1, le=65_536)]

BIAS_RATE = 64.0
"""How much faster the shifts of BatchNorm learn than the other parameters (section 3.2 of the paper)."""

NOISE = 5e-4
"""Added to the variances of the patches, so that a filter does not amplify components that hardly vary."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class AirbenchShape:
    """The defaults are the network of airbench94, whose 1.97 million parameters reach 94 % on CIFAR-10."""

    channels: Annotated[tuple[Width, ...], Field(min_length=1, max_length=16)] = (64, 256, 256)
    """Channels of each group of convolutions."""
    depth: Annotated[tuple[Annotated[int, Field(ge=0, le=1_000)], ...], Field(min_length=1, max_length=16)] = (1,)
    """Number of 3×3 convolutions of each group after its first one; a single number is for all groups."""
    residual: bool = False
    """Whether the input of each two of these convolutions is added to their output (He et al. 2015)."""
    stem: Annotated[int, Field(ge=2, le=65_536, multiple_of=2)] = 24
    """Number of whitening filters. Half of them are the negatives of the other half."""
    patch: Annotated[int, Field(ge=2, le=16, multiple_of=2)] = 2
    """Height and width of the whitening filters."""
    stride: Literal[1, 2] = 1
    """Stride of the whitening filters. With 1, max-pooling halves the maps in every group; with 2, the first group has
    no max-pooling."""
    activation: Literal["gelu", "relu"] = "gelu"
    pool: Literal["max", "mean"] = "max"
    """How the last maps become one number for each channel."""
    mirror: bool = False
    """Whether the logits, outside of training, are the mean of those of the image and of its mirror image. A teacher
    then costs twice as much, and is more accurate."""

    def __post_init__(self) -> None:
        if len(self.depth) not in (1, len(self.channels)):
            raise ValueError(f"depth: should be one number, or one for each of the {len(self.channels)} groups")
        if self.residual and any(depth % 2 for depth in self.depth):
            raise ValueError(f"depth: should be even with residual = true, got {list(self.depth)}")

    @property
    def depths(self) -> tuple[int, ...]:
        """The depth of each group."""
        return self.depth if len(self.depth) == len(self.channels) else self.depth * len(self.channels)


class WhiteningConv(nn.Conv2d):
    """A convolution whose filters are computed from training images and then kept: they make the components of the
    patches uncorrelated. Only its bias is trained.

    The buffer `whitened` is 1 once the filters are computed.
    """

    def __init__(self, channels: int, filters: int, patch: int, stride: int) -> None:
        super().__init__(channels, filters, patch, stride, padding=(patch // 2 - 1 if stride == 2 else 0))
        self.weight.requires_grad_(False)
        self.register_buffer("whitened", torch.zeros(()))

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Compute the filters from normalised images (B, C, H, W)."""
        self.weight.copy_(whitening_filters(images, self.kernel_size[0], len(self.weight) // 2))
        self.get_buffer("whitened").fill_(1)


def whitening_filters(images: Tensor, patch: int, count: int) -> Tensor:
    """Filters (2 · count, C, patch, patch) from images (B, C, H, W) float: the `count` strongest principal components
    of all patches, each divided by its standard deviation, and their negatives.

    If the patches have fewer than `count` components, the filters begin again with the strongest one.
    """
    patches = images.unfold(2, patch, 1).unfold(3, patch, 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1).double()
    covariance = patches.T @ patches / len(patches)
    variances, vectors = torch.linalg.eigh(covariance)  # in ascending order
    vectors = vectors * vectors.sum(0).sign().where(vectors.sum(0) != 0, 1.0)  # eigh leaves the signs open
    filters = (vectors / (variances.clamp(min=0) + NOISE).sqrt()).T.flip(0)
    chosen = filters[torch.arange(count) % len(filters)].view(count, images.shape[1], patch, patch)
    return torch.cat((chosen, -chosen)).float()


class _Norm(nn.BatchNorm2d):
    """BatchNorm with a scale of 1 and a shift that learns 64 times as fast. Its running statistics follow quickly."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.4)
        self.weight.requires_grad_(False)
        self.bias.register_hook(lambda gradient: gradient * BIAS_RATE)  # type: ignore[no-untyped-call]


class _Block(nn.Module):
    """`count` 3×3 convolutions, each with BatchNorm and activation, around which the input is added if `residual`."""

    def __init__(self, channels: int, count: int, residual: bool, activation: type[nn.Module]) -> None:
        super().__init__()
        self.residual = residual
        self.conv = nn.ModuleList(_conv(channels, channels, identity=not residual) for _ in range(count))
        self.norm = nn.ModuleList(_Norm(channels) for _ in range(count))
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number, (conv, norm) in enumerate(zip(self.conv, self.norm, strict=True)):
            y = norm(conv(y))
            if self.residual and number == len(self.conv) - 1:
                y = y + x
            y = self.act(y)
        return y


class _Group(nn.Module):
    """The first convolution of a group, which changes the number of channels, and the blocks after it."""

    def __init__(self, inside: int, outside: int, depth: int, pooled: bool, shape: AirbenchShape) -> None:
        super().__init__()
        activation: type[nn.Module] = nn.GELU if shape.activation == "gelu" else nn.ReLU
        self.conv = _conv(inside, outside, identity=True)
        self.norm = _Norm(outside)
        self.pool = nn.MaxPool2d(2) if pooled else nn.Identity()
        self.act = activation()
        size = 2 if shape.residual else 1
        blocks = [_Block(outside, size, shape.residual, activation) for _ in range(depth // size)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        # BatchNorm without a scale commutes with max-pooling, and so does ReLU. Before it, both can be joined with the
        # convolution; after it, training has a quarter of the values to compute.
        if self.training:
            x = self.act(self.norm(self.pool(x)))
        elif isinstance(self.act, nn.ReLU):
            x = self.pool(self.act(self.norm(x)))
        else:
            x = self.act(self.pool(self.norm(x)))
        after: Tensor = self.blocks(x)
        return after


class Airbench(nn.Module):
    """Maps images (B, channels, H, W) to logits (B, classes)."""

    def __init__(self, shape: AirbenchShape, channels: int, size: int, classes: int) -> None:
        super().__init__()
        groups = len(shape.channels) - (shape.stride == 2)
        if (size - shape.patch + 1 if shape.stride == 1 else size // 2) < 2**groups:
            raise ValueError(f"images of {size}×{size} are too small for {len(shape.channels)} groups")
        self.shape = shape
        self.stem = WhiteningConv(channels, shape.stem, shape.patch, shape.stride)
        self.act = nn.GELU() if shape.activation == "gelu" else nn.ReLU()
        inside, made = shape.stem, []
        for place, (outside, depth) in enumerate(zip(shape.channels, shape.depths, strict=True)):
            made.append(_Group(inside, outside, depth, shape.stride == 1 or place > 0, shape))
            inside = outside
        self.groups = nn.Sequential(*made)
        self.linear = nn.Linear(inside, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.shape.mirror and not self.training:
            return (self._logits(x) + self._logits(x.flip(3))) / 2
        return self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        x = self.groups(self.act(self.stem(x)))
        pool = F.max_pool2d if self.shape.pool == "max" else F.avg_pool2d
        x = pool(x, x.shape[2:]).flatten(1)
        return F.linear(x, self.linear.weight / 9)  # the factor of the paper; it is folded at the export


def _conv(inside: int, outside: int, identity: bool) -> nn.Conv2d:
    """A 3×3 convolution. With `identity`, its first filters pass the input on at the start (section 3.3)."""
    conv = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
    if identity:
        nn.init.dirac_(conv.weight.data[: min(inside, outside)])
    return conv
