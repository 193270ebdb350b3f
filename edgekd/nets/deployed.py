"""A network together with its preprocessing, as it will run on the device; what it costs."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgekd.card import Data

__all__ = ["Deployed", "Preprocess", "count_macs", "count_params"]


class Preprocess(nn.Module):
    """uint8 images (B, H, W, C) to normalised float (B, C, H, W): (x / 255 − mean) / std."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        mean, std = torch.tensor(data.mean), torch.tensor(data.std)
        self.register_buffer("scale", (1 / (255 * std)).view(1, -1, 1, 1))
        self.register_buffer("shift", (-mean / std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        # contiguous(): without it the exporter turns some reductions into gathers
        x = images.permute(0, 3, 1, 2).contiguous().float()
        return x * self.get_buffer("scale") + self.get_buffer("shift")


class Deployed(nn.Module):
    """uint8 images (B, H, W, C) to logits (B, classes)."""

    def __init__(self, net: nn.Module, data: Data) -> None:
        super().__init__()
        self.preprocess = Preprocess(data)
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(self.preprocess(images))
        return logits


def count_params(net: nn.Module) -> int:
    """Number of parameters; buffers are not counted."""
    return sum(parameter.numel() for parameter in net.parameters())


def count_macs(net: nn.Module, data: Data) -> int:
    """Multiply-accumulates for one image: half the operations that torch's FlopCounterMode counts."""
    training = net.training
    net.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, data.channels, data.size, data.size))
    net.train(training)
    return int(counter.get_total_flops()) // 2
