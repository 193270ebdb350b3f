"""Save ONNX models, and make their files smaller without changing what they compute; this module needs no torch."""

import string
from collections.abc import Iterator
from itertools import count, product
from pathlib import Path
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from edgekd.files import atomic

__all__ = ["graphs", "layer_names", "save_model", "shrink"]

LAYERS = {"Conv": 1, "Gemm": 1, "MatMul": 1, "QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}
"""Op types of layers, and the place of the weights among their inputs."""


def save_model(model: ModelProto, path: Path) -> None:
    """Write the model atomically, without the exporter's notes on every node (16 kB in a small network)."""
    for graph in graphs(model):
        for thing in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
            thing.doc_string = ""
            del thing.metadata_props[:]
        del graph.metadata_props[:]
    # The exporter writes its newest IR version, which older runtimes refuse, although the opset needs less. Below IR
    # version 4 every weight would have to be an input.
    oldest = max(4, onnx.helper.find_min_ir_version_for(model.opset_import, True))
    model.ir_version = min(model.ir_version, oldest)
    with atomic(path) as temporary:
        onnx.save_model(model, temporary)


def shrink(model: ModelProto) -> None:
    """Remove everything from `model` that its outputs do not depend on, and store equal constants once.

    * Operator sets, nodes and constants that nothing uses are removed.
    * Constants with the same type, shape and content become one, except int8 ones.
    * Zero points of convolutions' weights and biases that are 0, which is the default, are left out.
    * Inner values and constants get short names. Nodes with weights are named after them, as in a profile; others get
      no name.

    Names of inputs and outputs, the metadata of the model and all numbers stay. A model with subgraphs or functions
    keeps its names and constants, because values there may be used by name.
    """
    _drop_operator_sets(model)
    if model.functions or sum(1 for _ in graphs(model)) > 1:
        return
    graph = model.graph
    del graph.value_info[:]  # shapes of inner values are inferred by the runtime
    _drop_zero_points(graph)
    _drop_unused(graph)
    _share_constants(graph)
    _shorten_names(graph)


def _drop_operator_sets(model: ModelProto) -> None:
    used = {node.domain for graph in graphs(model) for node in graph.node}
    used |= {node.domain for function in model.functions for node in function.node} | {"", "ai.onnx"}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def graphs(model: ModelProto) -> Iterator[GraphProto]:
    """Yield the model's graph and all subgraphs of its nodes."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs


def _drop_zero_points(graph: GraphProto) -> None:
    """Leave out the zero points of a convolution's weights and bias that are 0, which is the default.

    Other zero points stay: ONNX Runtime fuses a Gemm or MatMul only if all its zero points are given, and those of
    activations take one byte each.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    other = {name for node in graph.node if node.op_type != "Conv" for name in node.input}
    other |= {value.name for value in graph.output}
    for node in graph.node:
        weights = node.op_type == "DequantizeLinear" and node.input[0] in constants and len(node.input) == 3
        if not weights or node.output[0] in other or node.input[2] not in constants:
            continue
        if not numpy_helper.to_array(constants[node.input[2]]).any():
            del node.input[2]


def _drop_unused(graph: GraphProto) -> None:
    used = {value.name for value in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(graph.node):  # in topological order, so that the readers of a value come first here
        if used.intersection(node.output):
            used.update(node.input)
            kept.append(node)
    constants = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(constants)


def _share_constants(graph: GraphProto) -> None:
    """Store equal constants once, except int8 ones, such as zero points of weights.

    ONNX Runtime's exact kernels for x86 CPUs without VNNI (`session.x64quantprecision`) convert the int8 constants of
    each layer to uint8, and cannot load a file in which two layers have the same one.
    """
    visible = {value.name for value in (*graph.input, *graph.output)}
    first: dict[tuple[Any, ...], str] = {}
    instead: dict[str, str] = {}
    kept: list[TensorProto] = []
    for tensor in graph.initializer:
        key = (tensor.data_type, tuple(tensor.dims), _content(tensor))
        known = first.get(key)
        if known is None or tensor.name in visible or tensor.data_type == TensorProto.INT8:
            first.setdefault(key, tensor.name)
            kept.append(tensor)
        else:
            instead[tensor.name] = known
    kept = [tensor if tensor.HasField("raw_data") else _raw(tensor) for tensor in kept]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    _rename(graph, instead)


def _content(tensor: TensorProto) -> object:
    if tensor.data_location == TensorProto.EXTERNAL or tensor.data_type == TensorProto.STRING:
        return tensor.name  # content that is not compared
    return numpy_helper.to_array(tensor).tobytes()


def _raw(tensor: TensorProto) -> TensorProto:
    """Store the numbers as bytes, which is the shortest form: one field per number takes up to ten bytes."""
    if tensor.data_location == TensorProto.EXTERNAL or tensor.data_type == TensorProto.STRING:
        return tensor
    array = numpy_helper.to_array(tensor)
    return numpy_helper.from_array(array, tensor.name) if array.dtype.kind in "biuf" else tensor


def _shorten_names(graph: GraphProto) -> None:
    visible = {value.name for value in (*graph.input, *graph.output)}
    short = (name for name in _names() if name not in visible)
    constants = [tensor.name for tensor in graph.initializer]
    values = [name for node in graph.node for name in node.output if name]
    chosen = {name: next(short) for name in dict.fromkeys(constants + values) if name not in visible}
    layers = layer_names(graph)
    for number, node in enumerate(graph.node):
        node.name = layers.get(number, "")
    _rename(graph, chosen)
    for tensor in graph.initializer:
        tensor.name = chosen.get(tensor.name, tensor.name)


def layer_names(graph: GraphProto) -> dict[int, str]:
    """Name the nodes with weights by their place in the graph: `net.stem.0.weight_quantized` becomes `stem.0`."""
    constants = {tensor.name for tensor in graph.initializer}
    sources = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    levels = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    sources |= {node.output[0]: levels[node.input[0]] for node in graph.node if _scales(node, levels)}
    names: dict[int, str] = {}
    for number, node in enumerate(graph.node):
        if node.op_type in LAYERS:
            place = LAYERS[node.op_type]
            weight = sources.get(node.input[place], node.input[place])
            name = weight.removesuffix("_quantized").removesuffix(".weight").removeprefix("net.")
            if weight in constants and name not in names.values():
                names[number] = name
    return names


def _scales(node: NodeProto, levels: dict[str, str]) -> bool:
    """Whether the node multiplies int8 weights, which a Cast gives, by their scales."""
    return node.op_type == "Mul" and node.input[0] in levels


def _names() -> Iterator[str]:
    """Yield a, b, …, z, A, …, Z, aa, ab, …"""
    for length in count(1):
        yield from map("".join, product(string.ascii_letters, repeat=length))


def _rename(graph: GraphProto, names: dict[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
