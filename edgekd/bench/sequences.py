"""Read a model file's metadata, and whether inputs steer the time of a call, without running the model."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.external import GENERATION, metadata_of

if TYPE_CHECKING:
    from onnx import GraphProto

__all__ = ["generates_of", "sequence_of", "steering_of", "task_name_of", "timed_shape_of"]

KEYS = ("sequence_length", "padding")
"""Metadata keys that edgekd writes into the ONNX files of text models, in addition to its own version."""
SHAPE_KEY = "timed_shape"
"""Metadata key that edgekd writes if the model takes images of any size: the input's shape, separated by commas."""
STEERING = ("If", "Loop", "NonMaxSuppression")
"""Op types whose time depends on the values of their inputs."""


def sequence_of(model: Path) -> dict[str, int]:
    """Return `sequence_length` and `padding` from the file's metadata if edgekd wrote them; empty for other models."""
    return dict(_found_in(model)[0])


def task_name_of(model: Path) -> str:
    """Return the name of the task if edgekd wrote it to the file's metadata; empty for other models."""
    return _found_in(model)[2]


def generates_of(model: Path) -> bool:
    """Whether the file is the encoder of a model that generates, see edgekd/external.py."""
    return _found_in(model)[4]


def steering_of(model: Path) -> tuple[str, ...]:
    """Return which of STEERING occur in the model or its subgraphs; if empty, only shapes determine the time of a
    call.
    """
    return _found_in(model)[1]


def timed_shape_of(model: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of its only input from the file's metadata if edgekd wrote it there; empty for other models."""
    return dict(_found_in(model)[3])


_Found = tuple[tuple[tuple[str, int], ...], tuple[str, ...], str, tuple[tuple[str, tuple[int, ...]], ...], bool]
_NOTHING: _Found = (), (), "", (), False


def _found_in(model: Path) -> _Found:
    try:
        state = model.stat()
    except OSError:
        return _NOTHING  # the session that loads the file reports the error
    return _read(model, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _read(model: Path, changed: int, size: int) -> _Found:
    """Read the model file. Results are cached by modification time and size, because many workers need them."""
    try:
        found, inputs, steering = _in_ort(model) if model.suffix == ".ort" else _in_onnx(model)
    except (
        Exception
    ):  # protobuf's and onnxruntime's have no common base; the worker reports what is wrong with the file
        return _NOTHING
    task = found.get("task", "") if "edgekd" in found else ""
    try:
        values = {key: int(found[key]) for key in KEYS if key in found and "edgekd" in found}
        text = found.get(SHAPE_KEY) if "edgekd" in found and len(inputs) == 1 else None
        shape = tuple(int(size) for size in text.split(",")) if text else ()
    except ValueError:
        return (), steering, task, (), False
    shapes = ((inputs[0], shape),) if shape else ()
    sequence = tuple(values.items()) if values.get("sequence_length", 0) > 0 else ()
    return sequence, steering, task, shapes, {"edgekd", GENERATION} <= found.keys()


_Content = tuple[dict[str, str], list[str], tuple[str, ...]]
"""The metadata of a model file, the names of its inputs, and the operators that steer it."""


def _in_onnx(model: Path) -> _Content:
    import onnx

    content = onnx.load(model, load_external_data=False)
    return (
        metadata_of(content),
        [value.name for value in content.graph.input],
        tuple(sorted(set(_steering(content.graph)))),
    )


def _in_ort(model: Path) -> _Content:
    """What ONNX Runtime says of a file in its own format, whose operators it does not tell."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.get_modelmeta().custom_metadata_map, [value.name for value in session.get_inputs()], ()


def _steering(graph: "GraphProto") -> Iterable[str]:
    for node in graph.node:
        if node.op_type in STEERING and node.domain in ("", "ai.onnx"):
            yield node.op_type
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _steering(inner)
