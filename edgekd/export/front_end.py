"""Put the front end of audio networks into an ONNX graph.

Its two large matrices, which would take hundreds of kilobytes, are written as the formulas that compute them: ONNX
Runtime computes them once, when it loads the file, because they depend on no input.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekd.tasks.front_end import FLOOR, FrontEnd

__all__ = ["PREFIX", "with_formulas", "with_front_end"]

PREFIX = "edgekd_front_"
"""Beginning of the names of all nodes and constants of the front end."""


def with_front_end(model: onnx.ModelProto, how: FrontEnd, name: str) -> onnx.ModelProto:
    """Make `model`, whose input is float features (batch, 1, bins, frames), take raw samples (batch, samples).

    `name` is the name of its new input, which is int16 or float32.
    """
    features = model.graph.input[0]
    first = features.type.tensor_type.shape.dim[0]
    axis = first.dim_value or first.dim_param or "batch"
    steps = _Steps()
    steps.build(how, name, features.name)
    kept = list(model.graph.node)
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend([*steps.nodes, *kept])
    model.graph.initializer.extend(steps.constants)
    kind = TensorProto.INT16 if how.integer else TensorProto.FLOAT
    model.graph.input.append(helper.make_tensor_value_info(name, kind, [axis, how.samples]))
    return model


def with_formulas(model: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Replace, in place, the constants of `model` that a tool has computed from the formulas of the front end of
    `original`, by these formulas again. A model without a front end stays as it is."""
    makers = {value: node for node in original.graph.node if node.name.startswith(PREFIX) for value in node.output}
    computed = {tensor.name for tensor in model.graph.initializer} & makers.keys()
    if not computed:
        return
    needed, waiting = set[str](), sorted(computed)
    while waiting:
        value = waiting.pop()
        if value not in needed:
            needed.add(value)
            waiting += makers[value].input if value in makers else []
    known = {value for node in model.graph.node for value in node.output}
    nodes = [node for node in original.graph.node if needed & set(node.output) - known]
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in computed]
    names = {tensor.name for tensor in kept}
    kept += [tensor for tensor in original.graph.initializer if tensor.name in needed - names]
    later = list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend([*nodes, *later])


class _Steps:
    """The nodes and constants, in the order in which they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: object, dtype: type) -> str:
        name = f"{PREFIX}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def step(self, op: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        name = f"{PREFIX}{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output or name], name=name, **attributes))
        return output or name

    def build(self, how: FrontEnd, samples: str, features: str) -> None:
        wave = self.step("Cast", [samples], to=TensorProto.FLOAT) if how.integer else samples
        wave = self.step("Unsqueeze", [wave, self.constant([1], np.int64)])
        spectrum = self.step("Conv", [wave, self._transform(how)], strides=[how.hop], kernel_shape=[how.window])
        power = self.step("Mul", [spectrum, spectrum])
        energies = self.step("MatMul", [self._filters(how), power])  # adds the squares of cosines and sines as well
        found = self.step("Log", [self.step("Add", [energies, self.constant(FLOOR, np.float32)])])
        scale, shift = (np.array(values)[:, None] for values in scale_and_shift(how))
        if how.coefficients:
            found = self.step("MatMul", [self.constant(scale * how.cosines, np.float32), found])
        else:
            found = self.step("Mul", [found, self.constant(scale, np.float32)])
        found = self.step("Add", [found, self.constant(shift, np.float32)])
        self.step("Unsqueeze", [found, self.constant([1], np.int64)], features)

    def _range(self, numbers: range, axis: int) -> str:
        """The whole numbers as a row (axis 0 is added) or as a column (axis 1 is added)."""
        ends = [self.constant(end, np.int64) for end in (numbers.start, numbers.stop, 1)]
        return self.step("Unsqueeze", [self.step("Range", ends), self.constant([axis], np.int64)])

    def _angle(self, turns: str, of: int) -> str:
        """2π · turns / of, where whole turns are removed before the division, so that float is exact enough."""
        left = self.step("Mod", [turns, self.constant(of, np.int64)])
        left = self.step("Sub", [left, self.constant(of // 2, np.int64)])
        return self.step(
            "Mul", [self.step("Cast", [left], to=TensorProto.FLOAT), self.constant(2 * np.pi / of, np.float32)]
        )

    def _transform(self, how: FrontEnd) -> str:
        """The DFT of a windowed frame as a matrix (2 · lines, 1, window): cosines, then sines.

        The angles are moved by half a turn into −π … π, where floats are more exact. This changes the sign of cosines
        and sines, and so not the power; the window's length is even.
        """
        at = self._range(range(how.window), 0)
        angles = self._angle(self.step("Mul", [self._range(how.lines, 1), at]), how.window)
        waves = self.step("Concat", [self.step("Cos", [angles]), self.step("Sin", [angles])], axis=0)
        half = self.step("Cos", [self._angle(at, how.window)])  # −cos(2π n / window)
        bell = self.step("Add", [half, self.constant(1, np.float32)])
        bell = self.step("Mul", [bell, self.constant(0.5 / how.top, np.float32)])
        return self.step("Unsqueeze", [self.step("Mul", [waves, bell]), self.constant([1], np.int64)])

    def _filters(self, how: FrontEnd) -> str:
        """`FrontEnd.filters` twice side by side, (mels, 2 · lines)."""
        low, middle, high = (how.points[place : place + how.mels, None] for place in range(3))
        row = self.step("Cast", [self._range(how.lines, 0)], to=TensorProto.FLOAT)
        at = self.step("Mul", [row, self.constant(how.rate / how.window, np.float32)])
        sides = []
        for begin, width in ((low, middle - low), (high, middle - high)):
            away = self.step("Sub", [at, self.constant(begin, np.float32)])
            sides.append(self.step("Div", [away, self.constant(width, np.float32)]))
        filters = self.step("Relu", [self.step("Min", sides)])
        return self.step("Concat", [filters, filters], axis=1)


def scale_and_shift(how: FrontEnd) -> tuple[list[float], list[float]]:
    """The factor and the summand of each bin that make features (x − mean) / std."""
    mean, std = (values * (how.bins if len(values) == 1 else 1) for values in (how.mean, how.std))
    return [1 / one for one in std], [-one / other for one, other in zip(mean, std, strict=True)]
