"""The one walk over all tensors of an ONNX model, for everything that must know where its weights lie."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

__all__ = ["external_files"]


def external_files(model: "ModelProto") -> list[str]:
    """Names of the other files in which the model keeps weights, sorted; empty where it is one file.

    Initializers, sparse initializers and tensors in node attributes count, also in subgraphs, functions and training
    graphs.
    """
    from onnx.external_data_helper import uses_external_data

    tensors = [*_graph_tensors(model.graph)]
    for function in model.functions:
        tensors += [*_node_tensors(function.node), *_attribute_tensors(function.attribute_proto)]
    for training in model.training_info:
        tensors += [*_graph_tensors(training.initialization), *_graph_tensors(training.algorithm)]
    outside = [tensor for tensor in tensors if uses_external_data(tensor)]
    return sorted({entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location"})


def _graph_tensors(graph: "GraphProto") -> Iterator["TensorProto"]:
    yield from graph.initializer
    yield from _parts(graph.sparse_initializer)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: "Iterable[NodeProto]") -> Iterator["TensorProto"]:
    for node in nodes:
        yield from _attribute_tensors(node.attribute)


def _attribute_tensors(attributes: "Iterable[AttributeProto]") -> Iterator["TensorProto"]:
    """The tensors of constants, and of the branches and loops inside nodes."""
    for attribute in attributes:
        yield from (attribute.t, *attribute.tensors)
        yield from _parts([attribute.sparse_tensor, *attribute.sparse_tensors])
        for graph in (attribute.g, *attribute.graphs):
            yield from _graph_tensors(graph)


def _parts(sparse: "Iterable[SparseTensorProto]") -> Iterator["TensorProto"]:
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)
