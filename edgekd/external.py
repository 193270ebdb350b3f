"""Find the files in which an ONNX model keeps its weights. All code that needs these files uses this module."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.card import Card
from edgekd.errors import InputError, one_line
from edgekd.files import file_sha256, real
from edgekd.units import flat

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

__all__ = [
    "digests_of_more",
    "external_files",
    "file_digest",
    "model_bytes",
    "model_files",
    "named_files",
    "weights_of",
    "whole_model",
]


def external_files(model: "ModelProto") -> list[str]:
    """Sorted names of the other files in which the model keeps weights; empty if the model is a single file.

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


def model_files(file: Path, model: "ModelProto | None" = None) -> list[Path]:
    """The model's file and the other files that hold its weights; only the file if it cannot be read as ONNX.

    Raises InputError for weights that are missing, cannot be read, or lie outside the folder of the model.
    """
    names = _external_files(file) if model is None else external_files(model)
    return [file, *(_beside(file, name) for name in names)]


def model_bytes(file: Path, model: "ModelProto | None" = None) -> int:
    """Size in bytes of the model's file and of its weights in other files. Raises InputError as `model_files` does."""
    return sum(part.stat().st_size for part in model_files(file, model))


def _beside(file: Path, location: str) -> Path:
    folder, shown = file.parent, flat(repr(location))
    try:
        path = real(folder / location)
        if not path.is_relative_to(real(folder)):
            raise InputError(f"{file}: keeps weights in {shown}; they should lie in the folder of the model")
        path.open("rb").close()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{file}: keeps weights in {shown}, which cannot be read ({reason}); add it") from error
    return folder / location


def whole_model(file: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a model, including the other files in which it keeps weights.

    Raises InputError if one of them cannot be read. A file that is not an ONNX model counts as a single file.
    """
    return model_bytes(file), file_digest(file)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hex. For an ONNX model whose tensors are in other files, these files are included."""
    names = [] if path.suffix in (".safetensors", ".pt", ".pth") else _external_files(path)
    content = [file_sha256(path)]
    for beside in (path.parent / name for name in names):
        # If one is missing, the model is unusable; the code that loads the model reports this with a better message.
        content.append(file_sha256(beside) if beside.is_file() else "missing")
    return hashlib.sha256(" ".join(content).encode()).hexdigest() if names else content[0]


def _external_files(path: Path) -> list[str]:
    """Names of the files beside an ONNX model that hold its tensors; none if the file is not an ONNX model."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's errors have no common base class; loading the model reports what is wrong
        return []
    return external_files(model)


def named_files(card: Card, teacher: Path | None, data: Path | None) -> dict[str, str]:
    """SHA-256 of the teachers' files that the card or the user (`teacher`) names, by their key in run.json.

    Raises InputError if a file or data folder that the user named does not exist.
    """
    if teacher and not teacher.is_file():
        raise InputError(f"--teacher {teacher}: no such weights file")
    if data and not data.exists() and not getattr(card.data, "download", False):
        raise InputError(f"{data}: no such data folder; give the folder with --data DIR")
    weights = weights_of(card, teacher)
    files = {"teacher_sha256": file_digest(weights) if weights and weights.is_file() else ""}
    return files | {f"{name}_sha256": content for name, content in digests_of_more(card).items()}


def weights_of(card: Card, teacher: Path | None) -> Path | None:
    """The file of the teacher that the user or else the card names; None if neither names a file."""
    return teacher or (card.resolve(card.teacher.weights) if card.teacher.weights else None)


def digests_of_more(card: Card) -> dict[str, str]:
    """SHA-256 of the weights of each of the card's further teachers. It is empty for a missing file, because the code
    that loads the file reports the problem."""
    paths = [card.resolve(further.weights) if further.weights else None for further in card.more_teachers]
    return {
        f"more_teachers[{number}]": file_digest(path) if path and path.is_file() else ""
        for number, path in enumerate(paths)
    }


def _graph_tensors(graph: "GraphProto") -> Iterator["TensorProto"]:
    yield from graph.initializer
    yield from _parts(graph.sparse_initializer)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: "Iterable[NodeProto]") -> Iterator["TensorProto"]:
    for node in nodes:
        yield from _attribute_tensors(node.attribute)


def _attribute_tensors(attributes: "Iterable[AttributeProto]") -> Iterator["TensorProto"]:
    """Yield the tensors in node attributes: constants, and those in the subgraphs of branches and loops."""
    for attribute in attributes:
        yield from (attribute.t, *attribute.tensors)
        yield from _parts([attribute.sparse_tensor, *attribute.sparse_tensors])
        for graph in (attribute.g, *attribute.graphs):
            yield from _graph_tensors(graph)


def _parts(sparse: "Iterable[SparseTensorProto]") -> Iterator["TensorProto"]:
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)
