"""What a model file says of itself before it runs: the sequences edgekd made it for, and whether inputs steer it."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto

__all__ = ["sequence_of", "steering_of"]

KEYS = ("sequence_length", "padding")
"""Keys of an ONNX file's metadata that edgekd writes into models for text, beside its own version."""
STEERING = ("If", "Loop")
"""Nodes whose time depends on what their inputs say."""


def sequence_of(model: Path) -> dict[str, int]:
    """`sequence_length` and `padding` as edgekd wrote them into the file's metadata; empty for other models."""
    return dict(_asked(model)[0])


def steering_of(model: Path) -> tuple[str, ...]:
    """Which of If and Loop the model has, wherever in it; empty where the time of a call depends on shapes alone."""
    return _asked(model)[1]


_Found = tuple[tuple[tuple[str, int], ...], tuple[str, ...]]


def _asked(model: Path) -> _Found:
    try:
        state = model.stat()
    except OSError:
        return (), ()  # whoever loads it says what is wrong
    return _read(model, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _read(model: Path, changed: int, size: int) -> _Found:
    """Kept, for each of many workers asks; of the file as it was changed last."""
    import onnx

    try:
        content = onnx.load(model, load_external_data=False)
        found = {entry.key: entry.value for entry in content.metadata_props}
        steering = tuple(sorted(set(_steering(content.graph))))
    except Exception:  # protobuf's errors have no common base; the runtime says what is wrong with the file
        return (), ()
    try:
        values = {key: int(found[key]) for key in KEYS if key in found and "edgekd" in found}
    except ValueError:
        return (), steering
    return tuple(values.items()) if values.get("sequence_length", 0) > 0 else (), steering


def _steering(graph: "GraphProto") -> Iterable[str]:
    for node in graph.node:
        if node.op_type in STEERING and node.domain in ("", "ai.onnx"):
            yield node.op_type
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _steering(inner)
