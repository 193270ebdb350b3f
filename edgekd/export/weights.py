"""Store the weights of a float network in 8 bits. It still computes in float: the file is small, and the answers differ
little. This module needs no torch.

The weights are written as Cast and Mul of int8 numbers. A runtime computes both when it loads the file, because they
depend on constants alone. ONNX Runtime's CPU provider would compute DequantizeLinear in every call instead: a ResNet-20
took 6.9 times as long with it, and as long as in fp32 with Cast and Mul.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgekd.export.shrink import graphs

__all__ = ["store_weights"]

OVERHEAD = 120
"""Bytes that the two nodes and their names take in the file."""
RECURRENT = ("LSTM", "GRU", "RNN")


def store_weights(model: ModelProto, per_channel: bool = True, in_float: Collection[str] = ()) -> int:
    """Store the float weights of the layers of `model` as symmetric int8, and return how many tensors were stored.

    Layers are convolutions, matrix products, recurrent cells and embeddings. With `per_channel` each output channel (or
    row of an embedding) has a scale of its own. A tensor stays in float if only nodes named in `in_float` read it, if
    subgraphs read it, or if the file would not become smaller.
    """
    graph = model.graph
    inner = {name for part in graphs(model) if part is not graph for node in part.node for name in node.input}
    kept = inner | {value.name for value in (*graph.input, *graph.output)}
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in kept}
    stored: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for place, axes in _axes(node, constants).items() if node.name not in in_float else ():
            name = node.input[place]
            if name not in stored and (nodes := _stored(graph, constants[name], axes if per_channel else ())):
                stored[name] = nodes
    for node in graph.node:
        node.input[:] = [f"{name}_real" if name in stored else name for name in node.input]
    others = [tensor for tensor in graph.initializer if tensor.name not in stored]
    nodes = [*(node for pair in stored.values() for node in pair), *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(others)
    graph.node.extend(nodes)
    return len(stored)


def _axes(node: NodeProto, constants: dict[str, TensorProto]) -> dict[int, tuple[int, ...]]:
    """The places of the weights among the node's inputs, and the axes of them along which scales may differ."""
    places: dict[int, tuple[int, ...]] = {}
    if node.op_type in ("Conv", "Gather"):
        places = {0 if node.op_type == "Gather" else 1: (0,)}
    elif node.op_type == "ConvTranspose":
        places = {1: (1,)}
    elif node.op_type == "Gemm":
        turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        places = {1: (0,) if turned else (1,)}
    elif node.op_type == "MatMul":
        places = {1: (-1,), 0: (-2,)}
    elif node.op_type in RECURRENT:
        places = {1: (0, 1), 2: (0, 1)}
    names = {place: node.input[place] for place in places if place < len(node.input)}
    return {place: places[place] for place, name in names.items() if name in constants}


def _stored(graph: GraphProto, tensor: TensorProto, axes: tuple[int, ...]) -> list[NodeProto]:
    """Add the int8 form of `tensor` with its scales to the graph, and return the nodes that give its real numbers; no
    nodes if that would save nothing."""
    if tensor.data_type != TensorProto.FLOAT or tensor.data_location == TensorProto.EXTERNAL:
        return []
    weights = numpy_helper.to_array(tensor)
    if weights.ndim < 2:
        return []
    levels, scale = _rounded(weights, axes)
    if levels.nbytes + scale.nbytes + OVERHEAD >= weights.nbytes:
        return []
    name = tensor.name
    graph.initializer.append(numpy_helper.from_array(levels, f"{name}_quantized"))
    graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
    return [
        helper.make_node("Cast", [f"{name}_quantized"], [f"{name}_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}_float", f"{name}_scale"], [f"{name}_real"]),
    ]


def _rounded(weights: NDArray[Any], axes: tuple[int, ...]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The levels from -127 to 127 of `weights`, and their scales, which differ along `axes` alone and can be multiplied
    by the levels as they are. A channel of zeros has the scale 1."""
    along = {axis % weights.ndim for axis in axes}
    others = tuple(axis for axis in range(weights.ndim) if axis not in along)
    largest = np.abs(weights).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.clip(np.rint(weights / scale), -127, 127).astype(np.int8), scale
