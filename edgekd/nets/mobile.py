"""torchvision's mobile networks, with a factor on every number of channels."""

from typing import Annotated, Literal

import torchvision.models
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import nn

__all__ = ["MobileNetV2Shape", "MobileNetV3Shape", "for_channels", "mobilenet_v2", "mobilenet_v3"]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Factor = Annotated[float, Field(gt=0, le=100)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class MobileNetV2Shape:
    """torchvision's MobileNetV2 (Sandler et al. 2018); `width` multiplies every number of channels."""

    width: Factor = 1.0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class MobileNetV3Shape:
    """torchvision's MobileNetV3 (Howard et al. 2019, arXiv 1905.02244); `width` multiplies every number of channels."""

    size: Literal["small", "large"] = "small"
    width: Factor = 1.0


def mobilenet_v2(shape: MobileNetV2Shape, channels: int, size: int, classes: int) -> nn.Module:
    """A network that maps images (B, 3, size, size) float to logits (B, classes)."""
    net: nn.Module = torchvision.models.mobilenet_v2(num_classes=classes, width_mult=shape.width)
    return for_channels(net, channels)


def mobilenet_v3(shape: MobileNetV3Shape, channels: int, size: int, classes: int) -> nn.Module:
    """A network that maps images (B, 3, size, size) float to logits (B, classes)."""
    name = f"mobilenet_v3_{shape.size}"
    net: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, width_mult=shape.width)
    return for_channels(net, channels)


def for_channels(net: nn.Module, channels: int) -> nn.Module:
    """The network of torchvision, which takes colour images; raises ValueError for data of another number of
    channels."""
    if channels != 3:
        raise ValueError(
            f"torchvision's networks take 3 channels, the card's data has {channels}; set data.channels = 3"
        )
    return net
