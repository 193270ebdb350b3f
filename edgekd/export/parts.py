"""The parts of a network that generates, which become a file each: the encoder and the decoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.errors import ModelError
from edgekd.external import decoder_of
from edgekd.nets.deployed import example_inputs
from edgekd.nets.translation import Past, Seq2Seq
from edgekd.tasks.known import task_of

__all__ = ["Part", "parts_of"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A module that becomes one ONNX file."""

    file: Path
    module: nn.Module
    inputs: tuple[Tensor, ...]
    """Example inputs."""
    names: tuple[list[str], list[str]]
    """Names of the inputs and of the outputs."""
    free: tuple[Any, ...]
    """The dynamic axes of each input, as torch.export takes them: those of `*others` as one tuple."""


def parts_of(net: nn.Module, data: Any, path: Path) -> list[Part]:
    """The decoder and the encoder of a network for these data; `path` is the file of the encoder.

    Raises ModelError for a network that has none.
    """
    task = task_of(data)
    example = example_inputs(data, 2)
    free = {axis: torch.export.Dim(name) for axis, name in task.free.items()}
    if not isinstance(net, Seq2Seq):
        raise ModelError(f"a {type(net).__name__} has no encoder and decoder; take one of edgekd's own families")
    return [_decoder(net, example, decoder_of(path)), _encoder(net, example, task.input, free, path)]


def _encoder(net: Seq2Seq, example: Tensor, name: str, free: dict[int, Any], path: Path) -> Part:
    return Part(
        file=path,
        module=Encoder(net).eval(),
        inputs=(example,),
        names=([name], [*_names("", len(net.decoder)), "bias"]),
        free=(free,),
    )


def _decoder(net: Seq2Seq, example: Tensor, path: Path) -> Part:
    """The decoder for one token, with 3 earlier ones as an example; their number may be 0 in the exported file."""
    count, layers = len(example), len(net.decoder)
    with torch.no_grad():
        memory, bias = net.memory_of(example)
    past = [torch.zeros(*key.shape[:2], 3, key.shape[3]) for key, _ in memory for _ in range(2)]
    token = torch.ones(count, 1, dtype=torch.int32)
    batch, length, earlier = (torch.export.Dim(name) for name in ("batch", "length", "earlier"))
    known = [one for pair in memory for one in pair]
    return Part(
        file=path,
        module=Decoder(net).eval(),
        inputs=(token, bias, *known, *past),
        names=(
            ["token", "bias", *_names("", layers), *_names("past_", layers)],
            ["logits", *_names("present_", layers)],
        ),
        free=(
            {0: batch},
            {0: batch, 3: length},
            (*({0: batch, 2: length} for _ in known), *({0: batch, 2: earlier} for _ in past)),
        ),
    )


def _names(start: str, layers: int) -> list[str]:
    """Names of the keys and values of each layer."""
    return [f"{start}{what}_{layer}" for layer in range(layers) for what in ("key", "value")]


class Encoder(nn.Module):
    """Maps source ids (B, S) to keys and values of each cross-attention (B, H, S, C / H), and the mask of the padding
    (B, 1, 1, S)."""

    def __init__(self, net: Seq2Seq) -> None:
        super().__init__()
        self.net = net

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        memory, bias = self.net.memory_of(ids)
        return *(one for pair in memory for one in pair), bias


class Decoder(nn.Module):
    """Maps one token per row (B, 1), what the encoder gives, and the keys and values of the earlier tokens to logits
    (B, V), and the keys and values with this token."""

    def __init__(self, net: Seq2Seq) -> None:
        super().__init__()
        self.net = net

    def forward(self, token: Tensor, bias: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        half = len(others) // 2
        memory, past = _pairs(others[:half]), _pairs(others[half:])
        logits, grown = self.net.step(token, memory, bias, past)
        return logits, *(one for pair in grown for one in pair)


def _pairs(flat: tuple[Tensor, ...]) -> Past:
    return list(zip(flat[::2], flat[1::2], strict=True))
