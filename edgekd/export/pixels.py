"""Normalise images row by row where ONNX Runtime would do it pixel by pixel. This module needs no torch.

Exported files take images (B, H, W, C), transpose them to (B, C, H, W), and multiply and add a number for each channel.
Int8 convolutions of the CPU provider want (B, H, W, C), so ONNX Runtime moves the transposition behind the
normalisation, whose innermost axis then has C elements. For so short an axis its kernels take about 4 ns for each
number: more than half of the time of a small detector.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgekd.export.equalize import number_of
from edgekd.export.shrink import graphs

__all__ = ["PREFIX", "normalize_rows"]

PREFIX = "edgekd_pixels_"
"""Beginning of the names of all values and constants that are put in."""


@dataclass(frozen=True)
class _Normalisation:
    nodes: tuple[NodeProto, ...]
    """The nodes between the input and the network, in their order."""
    scale: NDArray[np.float32]
    shift: NDArray[np.float32]
    """A number for each channel (C,)."""


def normalize_rows(model: ModelProto) -> None:
    """Let `model` normalise its images (B, H, W, C) on rows of W · C numbers, before it transposes them.

    All numbers stay the same. A model that does not begin with Transpose, Cast, Mul and Add, whose images have no fixed
    size (as where the graph resizes them) or only one channel, or that has more than one input or branches (If, Loop),
    stays as it is.
    """
    graph = model.graph
    if len(graph.input) != 1 or len(list(graphs(model))) > 1:
        return
    dims = [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim]
    found = _normalisation(graph)
    if found is None or len(dims) != 4 or not all(dims[1:]) or dims[3] == 1 or dims[3] != found.scale.size:
        return
    _, height, width, channels = dims
    constants: dict[str, NDArray[Any]] = {
        "scale": found.scale,
        "shift": found.shift,
        "times": np.array([width], np.int64),
        "rows": np.array([0, height, width * channels], np.int64),
        "image": np.array([0, height, width, channels], np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(value, PREFIX + name) for name, value in constants.items())
    steps = [
        ("Reshape", [f"{PREFIX}float", f"{PREFIX}rows"], "flat"),
        ("Tile", [f"{PREFIX}scale", f"{PREFIX}times"], "scales"),
        ("Mul", [f"{PREFIX}flat", f"{PREFIX}scales"], "scaled"),
        ("Tile", [f"{PREFIX}shift", f"{PREFIX}times"], "shifts"),
        ("Add", [f"{PREFIX}scaled", f"{PREFIX}shifts"], "shifted"),
        ("Reshape", [f"{PREFIX}shifted", f"{PREFIX}image"], "normal"),
    ]
    nodes = [helper.make_node("Cast", [graph.input[0].name], [f"{PREFIX}float"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node(op, inputs, [PREFIX + output]) for op, inputs, output in steps]
    nodes.append(helper.make_node("Transpose", [f"{PREFIX}normal"], [found.nodes[-1].output[0]], perm=[0, 3, 1, 2]))
    kept = [node for node in graph.node if not any(node is one for one in found.nodes)]
    del graph.node[:]
    graph.node.extend([*nodes, *kept])


def _normalisation(graph: GraphProto) -> _Normalisation | None:
    """What is between the image and the network; None if it is anything else, or if others read a part of it."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {output.name for output in graph.output}
    value, nodes, numbers = graph.input[0].name, list[NodeProto](), list[NDArray[np.float32]]()
    for op in ("Transpose", "Cast", "Mul", "Add"):
        readers = [node for node in graph.node if value in node.input]
        if len(readers) != 1 or readers[0].op_type != op or value in outputs:
            return None
        node = readers[0]
        others = [constants.get(name) for name in node.input if name != value]
        if op in ("Mul", "Add"):
            if len(others) != 1 or others[0] is None:
                return None
            numbers.append(numpy_helper.to_array(others[0]))
        nodes.append(node)
        value = node.output[0]
    perm = next((list(one.ints) for one in nodes[0].attribute if one.name == "perm"), [])
    to_float = number_of(nodes[1], "to", 0) == TensorProto.FLOAT
    if perm != [0, 3, 1, 2] or not to_float or any(one.shape != (1, one.size, 1, 1) for one in numbers):
        return None
    scale, shift = (one.reshape(-1) for one in numbers)
    return _Normalisation(nodes=tuple(nodes), scale=scale, shift=shift) if scale.size == shift.size else None
