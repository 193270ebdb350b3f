"""The one walk over all tensors of an ONNX model, for everything that must know where its weights lie."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import InputError, one_line
from edgekd.files import file_sha256
from edgekd.units import flat

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

__all__ = ["external_data", "external_files", "file_digest", "model_bytes", "whole_model"]


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


def external_data(file: Path) -> InputError | None:
    """Why a model whose weights lie in other files is refused: its size and SHA-256 would leave them out."""
    import onnx

    try:
        model = onnx.load(file, load_external_data=False)
    except Exception:  # protobuf's errors have no common base; the runtime says what is wrong with the file
        return None
    others = external_files(model)
    where = flat(", ".join(others))
    return InputError(f"{file}: keeps its weights in other files ({where}); save it as one file") if others else None


def whole_model(file: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of a model, the other files in which it keeps weights included.

    Raises InputError if one of them cannot be read. What is no ONNX model is one file.
    """
    import onnx

    digest = file_digest(file)
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception:  # protobuf's errors have no common base; the runtime says what is wrong with the file
        return file.stat().st_size, digest
    return model_bytes(file, model), digest


def model_bytes(file: Path, model: "ModelProto") -> int:
    """Bytes of the file, and of the others in which the model keeps weights; InputError if one cannot be read."""
    return file.stat().st_size + sum(_weights_bytes(file, other) for other in external_files(model))


def _weights_bytes(file: Path, location: str) -> int:
    folder = file.parent
    try:
        path = (folder / location).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise InputError(f"{file}: keeps weights in {location!r}; they should lie in the folder of the model")
        return path.stat().st_size
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{file}: keeps weights in {location!r}, which cannot be read ({reason}); add it") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hex; of an ONNX model whose tensors lie in other files, of those as well."""
    names = [] if path.suffix in (".safetensors", ".pt", ".pth") else _external_files(path)
    content = [file_sha256(path)]
    for beside in (path.parent / name for name in names):
        # One that is missing makes the model unusable, which whoever loads it says better.
        content.append(file_sha256(beside) if beside.is_file() else "missing")
    return hashlib.sha256(" ".join(content).encode()).hexdigest() if names else content[0]


def _external_files(path: Path) -> list[str]:
    """Names of the files beside an ONNX model that hold its tensors; none where it is no ONNX model."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's errors have no common base; whoever loads the model says what is wrong with it
        return []
    return external_files(model)


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
