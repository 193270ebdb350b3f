"""Find what belongs to an ONNX model: the files in which it keeps weights, the decoder of a model that generates, and
its metadata. All code that needs these uses this module."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import InputError, one_line
from edgekd.files import atomic, file_sha256, real
from edgekd.units import flat

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

__all__ = [
    "DECODER",
    "GENERATION",
    "copy_model",
    "decoder_of",
    "encoder_of",
    "external_files",
    "file_digest",
    "generates",
    "metadata_of",
    "model_bytes",
    "model_files",
    "name_decoder",
    "whole_model",
]


GENERATION = "generation"
"""Metadata key of the settings with which a model generates. Its decoder is a second file, see `decoder_of`."""


DECODER = "decoder_sha256"
"""Metadata key of the SHA-256 of the decoder's file with which an encoder was written."""


def decoder_of(file: Path) -> Path:
    """The file of the decoder that belongs to the encoder in `file`: NAME.decoder.onnx for NAME.onnx."""
    return file.with_name(f"{file.stem}.decoder.onnx")


def encoder_of(file: Path) -> Path:
    """The file of the encoder to which the decoder in `file` belongs; any other file is returned as it is."""
    stem = file.name.removesuffix(".decoder.onnx")
    encoder = file.with_name(f"{stem}.onnx")
    belongs = stem != file.name and file.name in _other_files(encoder)
    return encoder if belongs else file


def metadata_of(model: "ModelProto") -> dict[str, str]:
    """The model's metadata by key."""
    return {entry.key: entry.value for entry in model.metadata_props}


def generates(model: "ModelProto") -> bool:
    """Whether edgekd exported the model as the encoder of a model that generates."""
    return {"edgekd", GENERATION} <= metadata_of(model).keys()


def name_decoder(model: "ModelProto", decoder: Path) -> None:
    """Write the SHA-256 of the decoder's file into the metadata of an encoder, in place of the one that is there."""
    from onnx.helper import set_model_props

    set_model_props(model, metadata_of(model) | {DECODER: file_sha256(decoder)})


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
    entries = [entry for tensor in outside for entry in tensor.external_data if entry.key == "location"]
    return sorted({os.fsdecode(entry.value) for entry in entries})  # protobuf gives bytes for a text that is not UTF-8


def model_files(file: Path, model: "ModelProto | None" = None) -> list[Path]:
    """The model's file, the other files that hold its weights, and its decoder if it generates; only the file if it
    cannot be read as ONNX.

    Raises InputError for weights that are missing, cannot be read, or lie outside the folder of the model, and for a
    decoder that is not the one with which the encoder was written.
    """
    model = _model_in(file) if model is None else model
    if model is None:
        return [file]
    files = [file, *(_beside(file, name) for name in _others(file, model))]
    _refuse_other_decoder(file, model)
    return files


def _refuse_other_decoder(file: Path, model: "ModelProto") -> None:
    """Raise InputError if the decoder beside an encoder is not the one that the encoder names; an encoder that names
    none is not judged."""
    wanted = next((entry.value for entry in model.metadata_props if entry.key == DECODER), "")
    if not wanted or not generates(model):
        return
    decoder = decoder_of(file)
    found = file_sha256(decoder)
    if found != wanted:
        raise InputError(
            f"{decoder}: is not the decoder with which {file.name} was written (SHA-256 {found[:12]}…, the encoder "
            f"names {flat(wanted[:12])}…); take both files of one model"
        )


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


def copy_model(source: Path, file: Path) -> list[Path]:
    """Copy a model, and return the files written: the decoder of one that generates first, because the encoder tells
    its digest, then `file`. Raises InputError as `model_files` does."""
    parts = [(source, file)]
    if decoder_of(source) in model_files(source):
        parts.insert(0, (decoder_of(source), decoder_of(file)))
    for one, copy in parts:
        with atomic(copy) as temporary:
            shutil.copyfile(one, temporary)
    return [copy for _, copy in parts]


def whole_model(file: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a model, including the other files in which it keeps weights.

    Raises InputError if one of them cannot be read. A file that is not an ONNX model counts as a single file.
    """
    return model_bytes(file), file_digest(file)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hex. For an ONNX model of several files, all of them are included."""
    names = [] if path.suffix in (".safetensors", ".pt", ".pth") else _other_files(path)
    content = [file_sha256(path)]
    for beside in (path.parent / name for name in names):
        # If one is missing, the model is unusable; the code that loads the model reports this with a better message.
        content.append(file_sha256(beside) if beside.is_file() else "missing")
    return hashlib.sha256(" ".join(content).encode()).hexdigest() if names else content[0]


def _others(file: Path, model: "ModelProto") -> list[str]:
    """Names of the other files of a model, beside its file."""
    return [*external_files(model), *([decoder_of(file).name] if generates(model) else [])]


def _other_files(path: Path) -> list[str]:
    """Names of the other files of an ONNX model, beside its file; none if the file is not an ONNX model."""
    model = _model_in(path)
    return [] if model is None else _others(path, model)


def _model_in(path: Path) -> "ModelProto | None":
    """The model in a file, without weights in other files; None if the file is not an ONNX model."""
    import onnx

    try:
        return onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's errors have no common base class; loading the model reports what is wrong
        return None


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
