"""The teacher as an ONNX file that takes what the student takes."""

from pathlib import Path

import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from edgekd.card import Card, Data
from edgekd.errors import InputError, one_line
from edgekd.export.onnx import export, save_model
from edgekd.nets.teachers import OnnxNet, Teacher
from edgekd.target import Target
from edgekd.tasks.known import task_of

__all__ = ["export_teacher"]


def export_teacher(teacher: Teacher, card: Card, target: Target, path: Path) -> None:
    """Write the teacher: uint8 (batch, H, W, C), or int32 ids (batch, length), to logits, preprocessing in the graph;
    kept if it is there."""
    if path.exists():
        return
    if teacher.net is not None:
        export(teacher.net, card, target, path, {"trained": teacher.file.name})
        return
    assert isinstance(teacher.module, OnnxNet)  # the only other kind
    model = onnx.load(teacher.file)
    if task_of(card.data).normalization(card.data) is None:
        save_model(_taking_int32(model), path)
        return
    save_model(model if teacher.module.takes_uint8 else _with_preprocessing(model, card.data, teacher.file), path)


def _taking_int32(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` (token ids) with an int32 input."""
    ids = model.graph.input[0]
    if ids.type.tensor_type.elem_type == TensorProto.INT64:
        inside = f"{ids.name}_int64"
        for node in model.graph.node:
            node.input[:] = [inside if name == ids.name else name for name in node.input]
        model.graph.node.insert(0, helper.make_node("Cast", [ids.name], [inside], to=TensorProto.INT64))
        ids.type.tensor_type.elem_type = TensorProto.INT32
    return model


def _with_preprocessing(model: onnx.ModelProto, data: Data, path: Path) -> onnx.ModelProto:
    """`model` (normalised float NCHW) behind (x / 255 − mean) / std on uint8 NHWC."""
    nodes = [
        helper.make_node("Transpose", ["image"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["nchw"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["normalized"]),
    ]
    shape: list[str | int | None] = ["batch", data.size, data.size, data.channels]
    scale = [1 / (255 * std) for std in data.std]
    shift = [-mean / std for mean, std in zip(data.mean, data.std, strict=True)]
    graph = helper.make_graph(
        nodes,
        "preprocessing",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, shape)],
        [
            helper.make_tensor_value_info(
                "normalized", TensorProto.FLOAT, ["batch", data.channels, data.size, data.size]
            )
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
    except ValueError as error:
        raise InputError(f"{path}: preprocessing cannot be put before it: {one_line(error)}") from error
    return merged


def _per_channel(name: str, values: list[float]) -> onnx.TensorProto:
    import numpy as np

    return numpy_helper.from_array(np.array(values, dtype=np.float32).reshape(1, -1, 1, 1), name)
