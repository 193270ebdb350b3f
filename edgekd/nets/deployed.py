"""A network together with its preprocessing, as it runs on the device; counts its parameters and operations."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgekd.nets.spectrogram import Spectrogram
from edgekd.tasks.front_end import FrontEnd
from edgekd.tasks.known import task_of
from edgekd.tasks.task import Normalization

__all__ = ["Deployed", "Preprocess", "count_macs", "count_params", "example_inputs", "noise_inputs", "preprocess_of"]


class Preprocess(nn.Module):
    """Normalises raw inputs, such as uint8 images (B, H, W, C), to the network's float inputs, such as (B, C, H, W)."""

    def __init__(self, how: Normalization) -> None:
        super().__init__()
        mean, std = torch.tensor(how.mean), torch.tensor(how.std)
        shape = (1, -1, 1, 1) if how.channels_last else (1, -1)
        self.channels_last = how.channels_last
        self.register_buffer("scale", (1 / (how.top * std)).view(*shape))
        self.register_buffer("shift", (-mean / std).view(*shape))

    def forward(self, inputs: Tensor) -> Tensor:
        # contiguous(): without it the exporter turns some reductions into gathers
        x = inputs.permute(0, 3, 1, 2).contiguous().float() if self.channels_last else inputs.float()
        return x * self.get_buffer("scale") + self.get_buffer("shift")


def preprocess_of(data: Any) -> nn.Module:
    """What maps the inputs of the exported file to those of the network, for a card's `[data]`."""
    how = task_of(data).normalization(data)
    if isinstance(how, FrontEnd):
        return Spectrogram(how)
    return Preprocess(how) if how else nn.Identity()


class Deployed(nn.Module):
    """A network with its preprocessing: maps the inputs of the exported file, such as uint8 images (B, H, W, C) or
    token ids (B, L), to outputs (B, C)."""

    def __init__(self, net: nn.Module, data: Any) -> None:
        super().__init__()
        self.preprocess = preprocess_of(data)
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(self.preprocess(images))
        return logits


def example_inputs(data: Any, count: int) -> Tensor:
    """Inputs with the shape and dtype for a deployed model: black images, or sentences of `timed_length` tokens."""
    return torch.from_numpy(task_of(data).example(data, count))


def noise_inputs(data: Any, count: int) -> Tensor:
    """Random inputs with the shape and dtype for a deployed model, from a fixed seed; all of them differ."""
    generator = torch.Generator().manual_seed(0)
    like = example_inputs(data, count)
    if like.dtype.is_floating_point:
        return torch.rand(like.shape, generator=generator, dtype=like.dtype)
    ranges = {torch.uint8: (0, 256), torch.int16: (-32_768, 32_768)}
    low, high = ranges.get(like.dtype) or (1, int(task_of(data).sizes(data)[0]))
    return torch.randint(low, high, like.shape, generator=generator, dtype=like.dtype)


def count_params(net: nn.Module) -> int:
    """The number of parameters, without buffers."""
    return sum(parameter.numel() for parameter in net.parameters())


@contextlib.contextmanager
def _in_parts() -> Iterator[None]:
    """Run recurrent layers without oneDNN, as matrix products, because FlopCounterMode does not count oneDNN's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about missing GPUs
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def count_macs(net: nn.Module, data: Any) -> int:
    """Multiply-accumulates for one example, such as an image or a sentence of `timed_length` tokens. This is half the
    number of operations that torch's FlopCounterMode counts. The preprocessing is not counted."""
    training = net.training
    net.eval()
    inputs = preprocess_of(data)(example_inputs(data, 1))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        with _in_parts() if any(isinstance(part, nn.RNNBase) for part in net.modules()) else contextlib.nullcontext():
            net(inputs)
    net.train(training)
    return int(counter.get_total_flops()) // 2
