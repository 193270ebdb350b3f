"""The one walk over all tensors of an ONNX model, for everything that must know where its weights lie."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

__all__ = ["external_files"]


def external_files(model: "ModelProto") -> list[str]:
    """Names of the other files in which the model keeps weights, sorted; empty where it is one file.

    Initializers, sparse initializers, tensors in node attributes, and those of subgraphs and functions all count.
    """
    tensors = [*_graph_tensors(model.graph), *(t for f in model.functions for t in _node_tensors(f.node))]
    return sorted({entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"})


def _graph_tensors(graph: "GraphProto") -> Iterator["TensorProto"]:
    yield from graph.initializer
    yield from _parts(graph.sparse_initializer)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: "Iterable[NodeProto]") -> Iterator["TensorProto"]:
    """The tensors of constants, and of the branches and loops inside nodes."""
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        yield from _parts([attribute.sparse_tensor, *attribute.sparse_tensors])
        for graph in (attribute.g, *attribute.graphs):
            yield from _graph_tensors(graph)


def _parts(sparse: "Iterable[SparseTensorProto]") -> Iterator["TensorProto"]:
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)
