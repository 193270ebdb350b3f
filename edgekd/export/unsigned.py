"""Rewrite int8 activations as uint8, for providers whose kernels multiply unsigned activations by signed weights.

ONNX Runtime's CPU provider on x86 has fast kernels for uint8 activations with int8 weights (U8S8) alone: a file with
int8 activations (S8S8) is slower there than its float original. Adding 128 to the zero point and to every value gives
the same real numbers: (q + 128) − (z + 128) = q − z, and the limits of rounding move along. This module needs no torch.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgekd.errors import ModelError
from edgekd.export.shrink import graphs

__all__ = ["to_unsigned"]

SHIFT = 128
DOMAINS = ("", "ai.onnx", "com.microsoft")
MOVING = {
    **dict.fromkeys(("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"), (0,)),
    **dict.fromkeys(("Slice", "Gather", "GatherElements", "GatherND", "Expand", "Tile", "Split", "Pad"), (0,)),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth", "Resize", "Upsample"), (0,)),
    "Concat": None,
}
"""Operators that only move values or keep the largest, and the places of the values among their inputs; None for all.
"""


def to_unsigned(model: ModelProto) -> int:
    """Make the int8 activations of a QDQ `model` uint8, and return the number of QuantizeLinear nodes changed.

    Weights stay int8. Inputs and outputs of the model keep their type; an int8 one is converted inside. Without graph
    optimization, the outputs of the model are the same bit for bit. Raises ModelError, and changes nothing, if an int8
    activation is read by an operator that computes with it, or if a zero point is not constant.
    """
    if model.functions or sum(1 for _ in graphs(model)) > 1:
        raise ModelError("its int8 activations cannot be made uint8: it has subgraphs or functions")
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    _convert_ports(graph)
    rewrite = _Rewrite(graph, _constants(graph))
    changed = rewrite.all_nodes()
    graph.initializer.extend(rewrite.added)
    kept = [value for value in graph.value_info if value.name not in rewrite.shifted]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    if changed or rewrite.shifted:
        model.CopyFrom(copy)
    return changed


def _constants(graph: GraphProto) -> dict[str, NDArray[Any] | None]:
    """The values that do not depend on the model's inputs; None for those that nodes compute."""
    inputs = {value.name for value in graph.input}
    known: dict[str, NDArray[Any] | None] = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name not in inputs
    }
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            known[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif all(name in known for name in node.input if name):
            known.update(dict.fromkeys(node.output))
    return known


def _convert_ports(graph: GraphProto) -> None:
    """Put a pair of DequantizeLinear and QuantizeLinear with scale 1 between int8 inputs or outputs and the rest.

    The rewrite then treats them as any other pair, whose values and zero point it moves.
    """
    before: list[NodeProto] = []
    after: list[NodeProto] = []
    for values, nodes in ((graph.input, before), (graph.output, after)):
        for value in values:
            if value.type.tensor_type.elem_type != TensorProto.INT8:
                continue
            inner, real = f"{value.name}_edgekd_int8", f"{value.name}_edgekd_real"
            outgoing = values is graph.output
            for node in graph.node:
                if outgoing:
                    node.output[:] = [inner if name == value.name else name for name in node.output]
                node.input[:] = [inner if name == value.name else name for name in node.input]
            first, last = (inner, value.name) if outgoing else (value.name, inner)
            scale = numpy_helper.from_array(np.array(1, np.float32), f"{real}_scale")
            point = numpy_helper.from_array(np.array(0, np.int8), f"{real}_point")
            graph.initializer.extend([scale, point])
            nodes.append(helper.make_node("DequantizeLinear", [first, scale.name, point.name], [real]))
            nodes.append(helper.make_node("QuantizeLinear", [real, scale.name, point.name], [last]))
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)


@dataclass
class _Rewrite:
    graph: GraphProto
    constants: dict[str, NDArray[Any] | None]
    added: list[TensorProto] = field(default_factory=list)
    shifted: set[str] = field(default_factory=set)
    """Names of the values that are uint8 now and were int8 before."""

    def all_nodes(self) -> int:
        """Rewrite the nodes in their order, in which a value is produced before it is read."""
        outputs = {value.name for value in self.graph.output if value.type.tensor_type.elem_type == TensorProto.INT8}
        changed = 0
        for node in self.graph.node:
            if node.op_type == "QuantizeLinear" and node.domain in DOMAINS:
                if self._is_int8(node) and node.input[0] not in self.constants and node.output[0] not in outputs:
                    self._move_zero_point(node)
                    changed += 1
            elif self.shifted.intersection(node.input):
                self._reader(node)
        return changed

    def _is_int8(self, node: NodeProto) -> bool:
        """Whether a QuantizeLinear gives int8: its zero point says so, or since opset 21 `output_dtype`."""
        for attribute in node.attribute:
            if attribute.name == "output_dtype" and attribute.i:
                return bool(attribute.i == TensorProto.INT8)
        if len(node.input) < 3 or not node.input[2]:
            return False  # then it gives uint8
        point = self.constants.get(node.input[2])
        if point is None:
            raise self._refusal(node, "its zero point is not constant")
        return bool(point.dtype == np.int8)

    def _move_zero_point(self, node: NodeProto) -> None:
        """Add 128 to the zero point of a QuantizeLinear or DequantizeLinear; a missing one is 0."""
        name = node.input[2] if len(node.input) > 2 else ""
        point = self.constants.get(name) if name else np.zeros(self._scale_shape(node), np.int8)
        if point is None:
            raise self._refusal(node, "its zero point is not constant")
        del node.input[2:]
        node.input.append(self._constant(point))
        for attribute in node.attribute:
            if attribute.name == "output_dtype" and node.op_type == "QuantizeLinear":
                attribute.i = TensorProto.UINT8
        if node.op_type == "QuantizeLinear":
            self.shifted.add(node.output[0])

    def _scale_shape(self, node: NodeProto) -> tuple[int, ...]:
        scale = self.constants.get(node.input[1])
        if scale is None:
            raise self._refusal(node, "its scale is not constant")
        return scale.shape

    def _reader(self, node: NodeProto) -> None:
        """Rewrite a node that reads a value that is uint8 now."""
        if node.op_type == "DequantizeLinear" and node.domain in DOMAINS:
            self._move_zero_point(node)
            return
        nearest = node.op_type not in ("Resize", "Upsample") or _text(node, "mode", "nearest") == "nearest"
        if node.op_type not in MOVING or node.domain not in ("", "ai.onnx") or not nearest:
            raise self._refusal(node, "it computes with int8 values, and only their way to DequantizeLinear is known")
        if node.op_type == "Resize" and _text(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
            raise self._refusal(node, "it fills in a value from outside")
        places = MOVING[node.op_type]
        for place, name in enumerate(node.input):
            if (places is None or place in places) and name not in self.shifted:
                node.input[place] = self._shifted_constant(node, name)
        if node.op_type == "Pad" and _text(node, "mode", "constant") == "constant":
            self._pad(node)
        if node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]:
            self.shifted.add(node.output[0])  # the second output holds places, not values
        else:
            self.shifted.update(node.output)

    def _pad(self, node: NodeProto) -> None:
        """Give the value that is filled in, which is 0 in int8 if it is not given."""
        given = node.input[2] if len(node.input) > 2 else ""
        value = self._shifted_constant(node, given) if given else self._constant(np.array(0, np.int8))
        rest = list(node.input[3:])
        del node.input[2:]
        node.input.extend([value, *rest])

    def _shifted_constant(self, node: NodeProto, name: str) -> str:
        value = self.constants.get(name)
        if value is None:
            raise self._refusal(node, f"its input {name!r} is int8 and neither an activation nor a stored constant")
        return self._constant(value)

    def _constant(self, value: NDArray[Any]) -> str:
        """Store int8 `value` plus 128 as uint8 and return its name."""
        name = f"edgekd_unsigned_{len(self.added)}"
        self.added.append(numpy_helper.from_array((value.astype(np.int16) + SHIFT).astype(np.uint8), name))
        return name

    def _refusal(self, node: NodeProto, why: str) -> ModelError:
        return ModelError(
            f"its int8 activations cannot be made uint8: node {node.name or node.output[0]!r} ({node.op_type}): {why}"
        )


def _text(node: NodeProto, name: str, default: str) -> str:
    found: str = next((attribute.s.decode() for attribute in node.attribute if attribute.name == name), default)
    return found
