"""Export the teacher as an ONNX file that takes the same input as the student."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper, version_converter

from edgekd.card import Card, Data
from edgekd.errors import InputError, one_line
from edgekd.export.onnx import completed, export, fix_shapes, taking_any_size
from edgekd.export.resize import OLDEST_OPSET as OLDEST_FOR_RESIZE
from edgekd.export.shrink import save_model
from edgekd.export.suppress import suppression_notes, with_suppression
from edgekd.nets.deployed import example_inputs
from edgekd.nets.folding import folded
from edgekd.nets.outputs import TINY
from edgekd.nets.teachers import LoadedTeacher, OnnxNet
from edgekd.target import Target
from edgekd.tasks.front_end import FrontEnd
from edgekd.tasks.known import task_of

__all__ = ["export_teacher"]

OLDEST_OPSET, CONVERTED_OPSET = 7, 13
_NONE: Mapping[str, str] = MappingProxyType({})
"""Preprocessing needs the broadcasting of opset 7; a model with an older opset is converted to the second number."""


def export_teacher(
    teacher: LoadedTeacher, card: Card, target: Target, path: Path, notes: Mapping[str, str] = _NONE
) -> None:
    """Write the teacher with preprocessing in the graph, from uint8 (batch, H, W, C) or int32 ids (batch, length) to
    logits.

    An existing file is kept. `notes` are added to the metadata of a file that edgekd exports.
    """
    if path.exists():
        return
    if teacher.net is not None:
        export(folded(teacher.net, card.data), card, target, path, {"trained": teacher.file.name, **notes})
        return
    assert isinstance(teacher.module, OnnxNet)  # the only other kind
    module = teacher.module
    oldest = OLDEST_FOR_RESIZE if card.export.resize else OLDEST_OPSET
    model = _giving_logits(_modern(onnx.load(teacher.file), teacher.file, oldest), module)
    how = task_of(card.data).normalization(card.data)
    if how is None:
        save_model(_taking_int32(model), path)
        return
    if not module.takes_raw:
        own = isinstance(how, FrontEnd)
        model = completed(model, card) if own else _with_preprocessing(model, card.data, teacher.file)
    if target.fixed_shapes:
        fix_shapes(model, tuple(example_inputs(card.data, 1).shape))
    if card.export.nms:
        model = with_suppression(model, card.export)
        _add_notes(model, suppression_notes(card))
    save_model(taking_any_size(model, card) if card.export.resize else model, path)


def _add_notes(model: onnx.ModelProto, notes: Mapping[str, str]) -> None:
    """Write metadata in place of those with the same keys."""
    others = [entry for entry in model.metadata_props if entry.key not in notes]
    del model.metadata_props[:]
    model.metadata_props.extend(others)
    for key, value in notes.items():
        model.metadata_props.add(key=key, value=value)


def _modern(model: onnx.ModelProto, path: Path, oldest: int) -> onnx.ModelProto:
    """Return `model` with at least IR version 4, where weights are not inputs, and opset `oldest`.

    Raises InputError for a model that onnx cannot convert.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), OLDEST_OPSET)
    if opset < oldest:
        wanted = max(oldest, CONVERTED_OPSET)
        try:
            model = version_converter.convert_version(model, wanted)
        except Exception as error:  # the converter may raise any exception
            raise InputError(
                f"{path}: is of opset {opset}, and onnx cannot convert it to opset {wanted} "
                f"({one_line(error, 150)}); export the teacher with opset {oldest} or a newer one"
            ) from error
    if model.ir_version < 4:
        weights = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in weights]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version = 4
    return model


def _giving_logits(model: onnx.ModelProto, module: OnnxNet) -> onnx.ModelProto:
    """Make the logits the only output of `model`; of probabilities, the logarithm is taken, as in distillation."""
    if len(model.graph.output) == 1 and not module.logarithm:
        return model
    output = next(value for value in model.graph.output if value.name == module.output)
    del model.graph.output[:]
    model.graph.output.append(output)
    if not module.logarithm:
        return model
    shape = [dim.dim_value or dim.dim_param or None for dim in output.type.tensor_type.shape.dim]
    names = [f"{output.name}_{what}" for what in ("float", "clipped", "logarithm")]
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    clip = helper.make_node("Clip", names[:1], names[1:2], min=TINY)
    if opset >= 11:  # since opset 11 its limits are inputs
        model.graph.initializer.append(numpy_helper.from_array(np.array(TINY, np.float32), f"{output.name}_smallest"))
        clip = helper.make_node("Clip", [names[0], f"{output.name}_smallest"], names[1:2])
    cast = helper.make_node("Cast", [output.name], names[:1], to=TensorProto.FLOAT)
    model.graph.node.extend([cast, clip, helper.make_node("Log", names[1:2], names[2:])])
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(names[2], TensorProto.FLOAT, shape or None))
    return model


def _taking_int32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make `model`, which takes token ids, take an int32 input."""
    ids = model.graph.input[0]
    if ids.type.tensor_type.elem_type == TensorProto.INT64:
        inside = f"{ids.name}_int64"
        for node in model.graph.node:
            node.input[:] = [inside if name == ids.name else name for name in node.input]
        model.graph.node.insert(0, helper.make_node("Cast", [ids.name], [inside], to=TensorProto.INT64))
        ids.type.tensor_type.elem_type = TensorProto.INT32
    return model


def _with_preprocessing(model: onnx.ModelProto, data: Data, path: Path) -> onnx.ModelProto:
    """Put (x / 255 − mean) / std on uint8 NHWC before `model`, which takes normalised float NCHW."""
    nodes = [
        helper.make_node("Transpose", ["image"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["nchw"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["normalized"]),
    ]
    _, height, width, channels = task_of(data).example(data, 1).shape
    shape: list[str | int | None] = ["batch", height, width, channels]
    scale = [1 / (255 * std) for std in data.std]
    shift = [-mean / std for mean, std in zip(data.mean, data.std, strict=True)]
    graph = helper.make_graph(
        nodes,
        "preprocessing",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, shape)],
        [
            helper.make_tensor_value_info("normalized", TensorProto.FLOAT, ["batch", channels, height, width]),
        ],
        [_per_channel("scale", scale), _per_channel("shift", shift)],
    )
    front = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        merged = compose.merge_models(
            compose.add_prefix(front, "edgekd_"),
            model,
            io_map=[("edgekd_normalized", model.graph.input[0].name)],
        )
    except (ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path}: preprocessing cannot be put before it: {one_line(error)}") from error
    return merged


def _per_channel(name: str, values: list[float]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=np.float32).reshape(1, -1, 1, 1), name)
