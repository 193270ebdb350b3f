"""Store a table of embeddings once that is also the matrix of the output, in a file with 8-bit weights. This module
needs no torch.

ONNX Runtime's tool quantises the rows that a Gather reads and the matrix of the product as two tensors. Its fast
kernels need the matrix (C, V) as a constant of its own, so the rows are read from there, as columns.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgekd.export.equalize import number_of

__all__ = ["gathers_of_tied_tables", "tie"]


def gathers_of_tied_tables(model: ModelProto) -> dict[str, int]:
    """The names of the nodes that gather rows of a table (V, C) that is also the matrix (C, V) of a product, and how
    many axes their indices have.

    The model needs the shapes of its values and names of its nodes. A node whose indices have no known shape is left
    out.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    matrices = [_matrix(node, constants) for node in graph.node]
    shapes = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info)}
    found: dict[str, int] = {}
    for node in graph.node:
        if node.op_type != "Gather" or node.input[0] not in constants or number_of(node, "axis", 0) != 0:
            continue
        table, ids = numpy_helper.to_array(constants[node.input[0]]), shapes.get(node.input[1])
        same = any(one is not None and np.array_equal(one.T, table) for one in matrices)
        if node.name and table.ndim == 2 and same and ids is not None and ids.HasField("shape"):
            found[node.name] = len(ids.shape.dim)
    return found


def _matrix(node: NodeProto, constants: dict[str, TensorProto]) -> NDArray[Any] | None:
    """The matrix (C, V) by which a product multiplies its rows, where ONNX Runtime's tool writes it in 8 bits."""
    plain = node.op_type == "MatMul" or (
        node.op_type == "Gemm"
        and number_of(node, "alpha", 1.0) == number_of(node, "beta", 1.0) == 1
        and not number_of(node, "transA", 0)
    )
    if not plain or node.input[1] not in constants:
        return None
    matrix = numpy_helper.to_array(constants[node.input[1]])
    if matrix.ndim != 2:
        return None
    return matrix.T if number_of(node, "transB", 0) else matrix


def tie(model: ModelProto, gathers: dict[str, int]) -> None:
    """Let the nodes that `gathers_of_tied_tables` has named read the matrix of the product, which is symmetric int8.

    They were left in float when the model was quantised. The rows get the scales of the matrix: one for each row, if
    weights have a scale per channel. Raises ValueError if the matrix was left in float.
    """
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes += _rows(node, graph, constants, gathers[node.name]) if node.name in gathers else [node]
    del graph.node[:]
    graph.node.extend(nodes)


def _rows(gather: NodeProto, graph: GraphProto, constants: dict[str, NDArray[Any]], axes: int) -> list[NodeProto]:
    """The nodes that give what `gather` gives, for indices of so many axes, from the columns of the int8 matrix."""
    ids, name = gather.input[1], gather.name
    matrix, scale = _quantised(graph, constants, constants[gather.input[0]].T)
    nodes = [
        helper.make_node("Gather", [matrix, ids], [f"{name}_levels"], axis=1),
        helper.make_node("Cast", [f"{name}_levels"], [f"{name}_float"], to=TensorProto.FLOAT),
    ]
    if constants[scale].size > 1:
        nodes.append(helper.make_node("Gather", [scale, ids], [f"{name}_scales"]))
        scale = f"{name}_scales"
    return [
        *nodes,
        helper.make_node("Mul", [f"{name}_float", scale], [f"{name}_columns"]),
        helper.make_node("Transpose", [f"{name}_columns"], [gather.output[0]], perm=[*range(1, axes + 1), 0]),
    ]


def _quantised(graph: GraphProto, constants: dict[str, NDArray[Any]], matrix: NDArray[Any]) -> tuple[str, str]:
    """The names of the int8 form of `matrix` (C, V), which a product reads, and of its scales, as ONNX Runtime's tool
    names them."""
    for node in graph.node:
        name = node.input[1] if node.op_type == "MatMulInteger" else ""
        levels, scale = constants.get(name), f"{name.removesuffix('_quantized')}_scale"
        if levels is None or levels.shape != matrix.shape or scale not in constants:
            continue
        steps = constants[scale]
        if (np.abs(levels * steps - matrix) <= 0.51 * steps).all():
            return name, scale
    raise ValueError("the matrix of the output was not quantised")
