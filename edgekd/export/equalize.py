"""Cross-layer equalisation and bias correction of a float network before its quantization (Nagel et al. 2019, arXiv
1906.04721). This module needs no torch.

Equalisation makes the ranges of a layer's channels alike without changing what the network computes: a channel is
divided by a positive number, and the weights that read it in the next layer are multiplied by it. Bias correction
removes the mean error that the rounding of the weights adds to each output channel.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

__all__ = ["channel_means", "correct_bias", "equalize", "number_of", "outgoing"]

PASSING = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool")
"""Operators f on single channels with f(s·x) = s·f(x) for s > 0. Clip (ReLU6) is none of them."""
ROUNDS = 20
SETTLED = 1e-3
"""The rounds end when no factor differs from 1 by more than this."""


def equalize(model: ModelProto) -> int:
    """Equalise the weights of neighbouring layers in place, and return the number of pairs.

    A pair is two convolutions, or two matrix products (Gemm), with nothing between them but operators of PASSING, whose
    values nothing else reads. Convolutions have one group, or one for each channel. The factor of channel i is
    sqrt(r1 / r2), where r1 is the largest absolute weight that gives the channel and r2 the largest that reads it, so
    that both become sqrt(r1 · r2) (equation 11 of the paper). All pairs are visited again until the factors settle.
    """
    graph = model.graph
    pairs = _pairs(graph)
    arrays = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in graph.initializer}
    for _ in range(ROUNDS):
        changes = [_equalize_pair(first, second, arrays) for first, second in pairs]
        if max(changes, default=0.0) < SETTLED:
            break
    _put(graph, {name: arrays[name] for pair in pairs for node in pair for name in node.input[1:3] if name})
    return len(pairs)


def _pairs(graph: GraphProto) -> list[tuple[NodeProto, NodeProto]]:
    constants = {tensor.name for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    readers = {name: node for node in graph.node for name in node.input}
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    pairs = []
    for node in graph.node:
        if not _movable(node, constants, uses, sizes):
            continue
        value = node.output[0]
        while uses[value] == 1 and value in readers and readers[value].op_type in PASSING:
            value = readers[value].output[0]
        other = readers.get(value)
        alike = other is not None and other.op_type == node.op_type and other.input[0] == value
        if uses[value] == 1 and other is not None and alike and _movable(other, constants, uses, sizes):
            pairs.append((node, other))
    return pairs


def _movable(node: NodeProto, constants: set[str], uses: Counter[str], sizes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the node is a layer whose weights can be scaled by channels, and belong to it alone."""
    names = [name for name in node.input[1:] if name]
    if node.op_type not in ("Conv", "Gemm") or any(name not in constants or uses[name] > 1 for name in names):
        return False
    if node.op_type == "Gemm":
        plain = all(number_of(node, key, 1.0) == 1 for key in ("alpha", "beta"))
        return plain and not number_of(node, "transA", 0) and all(len(sizes[name]) == 1 for name in names[1:])
    group, shape = number_of(node, "group", 1), sizes[names[0]]
    return group == 1 or (shape[1] == 1 and group == shape[0])


def number_of(node: NodeProto, name: str, default: float) -> float:
    """The value of a node's attribute that is a number."""
    return next((float(onnx.helper.get_attribute_value(a)) for a in node.attribute if a.name == name), default)


def outgoing(node: NodeProto) -> int:
    """The axis of a layer's weights that counts its output channels."""
    return 0 if node.op_type == "Conv" or number_of(node, "transB", 0) else 1


def _incoming(node: NodeProto, weights: NDArray[Any]) -> int:
    """The axis that counts the input channels; those of a depthwise convolution are its output channels."""
    if node.op_type == "Conv":
        return 0 if number_of(node, "group", 1) > 1 else 1
    return 1 - outgoing(node)


def _equalize_pair(first: NodeProto, second: NodeProto, arrays: dict[str, NDArray[Any]]) -> float:
    """Equalise two layers, and return how far the largest factor is from 1."""
    one, other = arrays[first.input[1]], arrays[second.input[1]]
    gives, reads = outgoing(first), _incoming(second, other)
    r1, r2 = _largest(one, gives), _largest(other, reads)
    usable = (r1 > 0) & (r2 > 0)
    factors = np.where(usable, np.sqrt(np.where(usable, r1, 1) / np.where(usable, r2, 1)), 1)
    one /= _along(factors, one.ndim, gives)
    other *= _along(factors, other.ndim, reads)
    if len(first.input) > 2 and first.input[2]:
        arrays[first.input[2]] /= factors.astype(one.dtype)
    return float(np.abs(factors - 1).max())


def _largest(weights: NDArray[Any], axis: int) -> NDArray[np.float64]:
    others = tuple(place for place in range(weights.ndim) if place != axis)
    return np.asarray(np.abs(weights).max(axis=others), np.float64)


def _along(values: NDArray[Any], rank: int, axis: int) -> NDArray[np.float32]:
    shape = [1] * rank
    shape[axis] = -1
    return np.asarray(values.reshape(shape), np.float32)


def _put(graph: GraphProto, arrays: Mapping[str, NDArray[Any]]) -> None:
    for tensor in graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))


def correct_bias(model: ModelProto, quantized: ModelProto, batches: Iterable[Mapping[str, NDArray[Any]]]) -> int:
    """Correct the biases of the float `model` in place, and return the number of layers.

    `quantized` is what ONNX Runtime's tool made of it. Where the tool rounded weights W to W + ε, the mean of an output
    channel moves by the sum of ε · E[x] over the inputs x of the channel (equation 17 of the paper). It is taken from
    the bias. E[x] is the mean of each input channel over `batches` of examples; padding is ignored, as in the paper.
    """
    graph = model.graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    layers = [
        node
        for node in graph.node
        if node.op_type in ("Conv", "Gemm") and node.input[1] in arrays and f"{node.input[1]}_quantized" in stored
    ]
    means = channel_means(model, {node.input[0] for node in layers}, batches)
    for node in layers:
        error = _restored(node, stored) - arrays[node.input[1]]
        shift = _shift(node, error, means[node.input[0]])
        given = node.input[2] if len(node.input) > 2 else ""
        bias = (arrays[given] if given else np.zeros(shift.shape, np.float32)) - shift
        name = f"{node.input[1]}_corrected_bias"
        graph.initializer.append(numpy_helper.from_array(np.asarray(bias, np.float32), name))
        del node.input[2:]
        node.input.append(name)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return len(layers)


def channel_means(
    model: ModelProto, names: set[str], batches: Iterable[Mapping[str, NDArray[Any]]], squared: bool = False
) -> dict[str, NDArray[np.float64]]:
    """The mean of each channel (axis 1) of the named values over `batches` of examples, or of its squares."""
    inputs = {value.name for value in model.graph.input}
    watched = ModelProto()
    watched.CopyFrom(model)
    known = {value.name for value in watched.graph.output}
    inner = sorted(names - inputs)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner if name not in known)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    sums: dict[str, NDArray[np.float64]] = {}
    count = 0
    for batch in batches:
        found = dict(zip(inner, session.run(inner, dict(batch)) if inner else (), strict=True))
        found |= {name: batch[name] for name in names & inputs}
        count += 1
        for name, value in found.items():
            axes = (0, *range(2, value.ndim))
            numbers = np.asarray(value, np.float64)
            sums[name] = sums.get(name, 0) + (np.square(numbers) if squared else numbers).mean(axis=axes)
    return {name: total / count for name, total in sums.items()}


def _restored(node: NodeProto, stored: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """The weights as the quantised layer has them."""
    name = node.input[1]
    levels = stored[f"{name}_quantized"].astype(np.float64)
    shape = [1] * levels.ndim
    if stored[f"{name}_scale"].size > 1:
        shape[outgoing(node)] = -1
    scale, point = (stored[f"{name}_{end}"].astype(np.float64).reshape(shape) for end in ("scale", "zero_point"))
    return np.asarray((levels - point) * scale)


def _shift(node: NodeProto, error: NDArray[np.float64], means: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean error of each output channel."""
    if node.op_type == "Gemm":
        turned = error if outgoing(node) == 0 else error.T
        return np.asarray(turned @ means)
    groups = int(number_of(node, "group", 1))
    summed = error.sum(axis=tuple(range(2, error.ndim)))  # (outputs, inputs of the group)
    each = means.reshape(groups, -1)
    parts = np.einsum("goi,gi->go", summed.reshape(groups, -1, summed.shape[1]), each)
    return np.asarray(parts.reshape(-1))
