"""Clipping of a float network's weights before its quantization with one scale for each layer, where a few large
weights spoil the scale of all others. This module needs no torch.

It is the range setting by the smallest error of Nagel et al. 2021 (arXiv 2106.08295, section 3.1), in which an error
counts by the power of what the weight multiplies.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from edgekd.export.equalize import channel_means, number_of, outgoing
from edgekd.target import Quantization

__all__ = ["clip_weights"]

STEP, BOUNDS = 0.9, 64
"""Bounds that are tried: the largest absolute weight times STEP to the power of 0, 1, …, BOUNDS − 1."""
TINY = 1e-12


def clip_weights(
    model: ModelProto,
    scheme: Quantization,
    batches: Iterable[Mapping[str, NDArray[Any]]],
    in_float: Collection[str] = (),
) -> int:
    """Clip the weights of the layers of `model` in place, and return how many layers have smaller weights then.

    All weights of a layer are clipped at the bound with the smallest sum of p · (ŵ − w)². Here ŵ is the weight w after
    clipping and rounding by `scheme`, with one scale for the layer, and p the mean square over `batches` of examples of
    the input channel that w multiplies. So weights that multiply nothing but zeros do not count. Layers are
    convolutions and matrix products (Gemm) whose weights nothing else reads; the nodes named in `in_float` stay as they
    are.
    """
    graph = model.graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    layers = [
        node
        for node in graph.node
        if node.op_type in ("Conv", "Gemm") and node.name not in in_float and _own(node.input[1], arrays, uses)
    ]
    power = channel_means(model, {node.input[0] for node in layers}, batches, squared=True)
    bounds = {node.input[1]: _bound(node, arrays[node.input[1]], power[node.input[0]], scheme) for node in layers}
    smaller = {name: bound for name, bound in bounds.items() if bound < np.abs(arrays[name]).max()}
    for tensor in graph.initializer:
        if tensor.name in smaller:
            bound = np.float32(smaller[tensor.name])
            tensor.CopyFrom(numpy_helper.from_array(np.clip(arrays[tensor.name], -bound, bound), tensor.name))
    return len(smaller)


def _own(name: str, arrays: Mapping[str, NDArray[Any]], uses: Counter[str]) -> bool:
    return name in arrays and uses[name] == 1 and arrays[name].dtype == np.float32


def _bound(node: NodeProto, given: NDArray[np.float32], power: NDArray[np.float64], scheme: Quantization) -> float:
    """The best bound of a layer's weights, where `power` is that of each input channel; their largest absolute value
    where no other one is better."""
    weights = np.asarray(given if outgoing(node) == 0 else given.T, np.float64)
    groups = int(number_of(node, "group", 1)) if node.op_type == "Conv" else 1
    each = np.repeat(power.reshape(groups, -1), len(weights) // groups, axis=0)
    each = each.reshape(*each.shape, *[1] * (weights.ndim - 2))
    largest = float(np.abs(weights).max())

    def error(bound: float) -> float:
        rounded = _rounded(np.clip(weights, -bound, bound), scheme)
        return float((each * np.square(rounded - weights)).sum())

    return min((largest * STEP**step for step in range(BOUNDS)), key=error)


def _rounded(weights: NDArray[np.float64], scheme: Quantization) -> NDArray[np.float64]:
    """The weights as ONNX Runtime's tool rounds them: symmetric int8, or uint8 with a zero point."""
    if scheme.weight == "int8":
        scale = max(float(np.abs(weights).max()) / (64 if scheme.reduce_range else 127), TINY)
        return np.asarray(np.rint(weights / scale) * scale)
    top = 127 if scheme.reduce_range else 255
    low, high = min(float(weights.min()), 0.0), max(float(weights.max()), 0.0)
    scale = max((high - low) / top, TINY)
    point = np.rint(-low / scale)
    return np.asarray((np.clip(np.rint(weights / scale) + point, 0, top) - point) * scale)
