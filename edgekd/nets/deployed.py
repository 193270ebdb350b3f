"""A network together with its preprocessing, as it will run on the device; what it costs."""

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgekd.card import Data, TextData

__all__ = ["Deployed", "Preprocess", "count_macs", "count_params", "example_inputs"]


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
    """uint8 images (B, H, W, C), or token ids (B, L) padded with 0, to logits (B, classes)."""

    def __init__(self, net: nn.Module, data: Data | TextData) -> None:
        super().__init__()
        self.preprocess = Preprocess(data) if isinstance(data, Data) else nn.Identity()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(self.preprocess(images))
        return logits


def example_inputs(data: Data | TextData, count: int) -> Tensor:
    """Inputs of the shape and type a deployed model takes: black images, or sentences of `timed_length` tokens."""
    if isinstance(data, Data):
        return torch.zeros(count, data.size, data.size, data.channels, dtype=torch.uint8)
    return torch.ones(count, data.timed_length or min(2, data.max_length), dtype=torch.int32)


def count_params(net: nn.Module) -> int:
    """Number of parameters; buffers are not counted."""
    return sum(parameter.numel() for parameter in net.parameters())


@contextlib.contextmanager
def _in_parts() -> Iterator[None]:
    """Recurrent layers as the products they consist of: those of oneDNN are not counted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of GPUs that are not here
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def count_macs(net: nn.Module, data: Data | TextData) -> int:
    """Multiply-accumulates for one image or sentence of `timed_length` tokens: half the operations that torch's
    FlopCounterMode counts."""
    training = net.training
    net.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        if isinstance(data, Data):
            net(torch.zeros(1, data.channels, data.size, data.size))
        else:
            with _in_parts():
                net(example_inputs(data, 1))
    net.train(training)
    return int(counter.get_total_flops()) // 2
