"""What a network's latency depends on, counted without running it: sums over its layers by kind of kernel.

The network is built on torch's meta device, where tensors have shapes and no values, so that thousands of shapes can be
counted. The kinds and sums are edgekd's own choice; edgekd/search/latency.py fits their prices to measurements.
"""

import math
from collections import Counter

import torch
from torch import nn

from edgekd.candidate import Shape
from edgekd.card import Card
from edgekd.export.trace import Call, Traced, trace
from edgekd.nets.deployed import Deployed, count_params, example_inputs
from edgekd.nets.families import make
from edgekd.nets.folding import folded_structure

__all__ = ["Counts", "count"]

Counts = dict[str, float]
"""Maps the name of a sum to its value. `params` and `macs` are always there."""

MOVING = ("slice", "constant_pad_nd", "cat", "permute", "transpose", "mean", "_to_copy")
"""Operations that move values or reduce them, and are a kernel of their own."""

POOLING = ("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d")
ADDING = ("add", "mul", "sub", "div", "hardswish", "hardsigmoid", "sigmoid", "silu", "tanh", "gelu")
"""Element-wise operations that are not part of the convolution before them, unlike ReLU and batch normalisation."""

LANES = (16, 32, 64)
"""Numbers of channels that kernels compute at a time; a part of them is wasted where the channels are no multiple."""


def count(card: Card, shape: Shape) -> Counts:
    """The sums over the layers of the student of that shape, with its branches folded, for one example.

    Raises ConfigError if it cannot be built, and RuntimeError or NotImplementedError if it cannot be run on the meta
    device.
    """
    with torch.device("meta"):
        net = folded_structure(make(card, card.student, shape, "student.knobs").eval())
        deployed = Deployed(net, card.data).eval()
    counts: Counter[str] = Counter(one=1, params=count_params(net))
    _drop_normalisation(deployed)
    traced = trace(deployed, example_inputs(card.data, 1).to("meta"))
    for call in traced.calls:
        _add(counts, call, traced)
    return dict(counts)


def _drop_normalisation(net: nn.Module) -> None:
    """Remove batch normalisation, which is part of the convolution before it, because torch computes its shapes
    slowly."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())


def _add(counts: Counter[str], call: Call, traced: Traced) -> None:
    kind = call.op.removeprefix("aten.").partition(".")[0].rstrip("_")
    size = math.prod(call.shape)
    if kind == "convolution":
        _add_convolution(counts, call, traced)
    elif kind in ("addmm", "mm", "bmm"):
        inside = traced.shapes[call.args[1 if kind == "addmm" else 0]][-1]
        _put(counts, "gemm", macs=size * inside, moved=inside * call.shape[-1])
    elif kind in POOLING:
        _put(counts, "pool", macs=0, moved=math.prod(traced.shapes[call.args[0]]))
    elif kind in ADDING:
        _put(counts, "add", macs=0, moved=size)
    elif kind in MOVING:
        _put(counts, kind.strip("_"), macs=0, moved=math.prod(traced.shapes[_first(call)]))


def _first(call: Call) -> str:
    first = call.args[0]
    return str(first[0] if isinstance(first, tuple) else first)


def _add_convolution(counts: Counter[str], call: Call, traced: Traced) -> None:
    x, weight, groups = call.args[0], traced.shapes[call.args[1]], call.args[8]
    outside, inside, *kernel = weight
    pixels, before = math.prod(call.shape[2:]), math.prod(traced.shapes[x])
    area = math.prod(kernel)
    macs = pixels * outside * inside * area
    if groups > 1:
        kind = "depthwise" if inside == 1 else "grouped"
    else:
        kind = "pointwise" if area == 1 else "dense"
    _put(counts, kind, macs=macs, moved=before + pixels * outside)
    for lanes in LANES:
        counts[f"{kind} by {lanes}"] += pixels * _up(outside, lanes) * _up(inside * area, 4)
    counts[f"{kind} weights"] += outside * inside * area
    counts[f"{kind} columns"] += pixels * inside * area


def _up(channels: int, lanes: int) -> int:
    return -(-channels // lanes) * lanes


def _put(counts: Counter[str], kind: str, macs: int, moved: int) -> None:
    counts["macs"] += macs
    counts[f"{kind} layers"] += 1
    counts[f"{kind} macs"] += macs
    counts[f"{kind} moved"] += moved
