"""Put the card's resize and crop into an ONNX graph, and measure how closely they agree with Pillow.

Pillow resizes 8-bit images in two passes, over the columns and then over the rows, with a triangle filter that widens
where the image shrinks, in fixed point, and rounds to 8 bits after each pass. ONNX Runtime's Resize does the same for
uint8 with `antialias` (the wide filter) and `exclude_outside` (at the borders, Pillow divides by the sum of the weights
inside the image). Only its scale is a 32-bit float, so that some pixels differ by a grey level. On float pixels Resize
would not round between the passes, and would differ more.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import PIL
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekd.card import Card, Data
from edgekd.data.images import Split
from edgekd.data.originals import some_originals
from edgekd.errors import ModelError
from edgekd.tasks.task import Task

__all__ = ["OLDEST_OPSET", "PREFIX", "SHAPE_KEY", "Fidelity", "fidelity", "same_answers", "with_resize"]

PREFIX = "edgekd_resize_"
"""Beginning of the names of all nodes that resize and crop."""

SHAPE_KEY = "timed_shape"
"""Metadata key: the input's shape at which times are measured if the user gives none."""

OLDEST_OPSET = 18
"""Resize has `antialias` since this opset."""

MAX_LEVELS = 2
"""Largest difference of a pixel from Pillow, in grey levels of 255. On photographs, 1 was measured for smaller sizes
and 2 for larger ones."""

MEASURED = 64
"""Number of images with which the difference is measured."""


@dataclass(frozen=True)
class Fidelity:
    """How closely the resize in the graph agrees with Pillow's on real images of their own sizes."""

    images: int
    max_levels: int
    """Largest difference of a pixel, in grey levels of 255."""
    mean_levels: float
    """Mean absolute difference of all pixels."""
    same: float | None = None
    """Share of the images to which the fp32 model gives the same answer after both ways of resizing; None for a task
    without equal answers."""

    @property
    def words(self) -> str:
        """The differences in words."""
        return (
            f"differs from Pillow {PIL.__version__} by at most {self.max_levels} of 255 grey levels, "
            f"{self.mean_levels:.2g} on average, on {self.images} validation images"
        )


def with_resize(model: onnx.ModelProto, card: Card) -> onnx.ModelProto:
    """Make `model`, whose input is uint8 (batch, size, size, C), take images of any height and width.

    All images of a batch have the same size. Raises ModelError if the model's opset has no such Resize.
    """
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < OLDEST_OPSET:
        raise ModelError(
            f"export.resize needs opset {OLDEST_OPSET} or newer, the model has {opset}; set opset.export in the "
            "target, export the teacher again, or leave export.resize out"
        )
    given = model.graph.input[0]
    inside = f"{PREFIX}image"
    _rename(model.graph, given.name, inside)
    nodes, constants = _steps(given.name, inside, card.data)
    kept = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *kept])
    model.graph.initializer.extend(constants)
    for axis, name in ((1, "height"), (2, "width")):
        given.type.tensor_type.shape.dim[axis].dim_param = name
    return model


def _rename(graph: onnx.GraphProto, before: str, after: str) -> None:
    """Make all nodes read `after` in place of `before`, also in the branches of If and the bodies of Loop."""
    for node in graph.node:
        node.input[:] = [after if name == before else name for name in node.input]
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                _rename(inner, before, after)


def _steps(image: str, result: str, data: Data) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes and constants from the input `image` (batch, height, width, C) to `result` (batch, size, size, C).

    Sizes are computed as in edgekd/data/images.py, with 64-bit floats as in Python; both round half to even.
    """
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(name: str, value: object, dtype: type) -> str:
        constants.append(numpy_helper.from_array(np.array(value, dtype), PREFIX + name))
        return PREFIX + name

    def step(op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        output = result if name == "image" else PREFIX + name
        nodes.append(helper.make_node(op, list(inputs), [output], name=PREFIX + name, **attributes))
        return output

    zero, one, three = (constant(f"at_{k}", [k], np.int64) for k in (0, 1, 3))
    size = constant("size", [data.size, data.size], np.int64)
    shape = step("Shape", [image], "shape")
    sides = step("Slice", [shape, one, three, zero], "sides")
    shorter = step("Cast", [step("ReduceMin", [sides, zero], "shorter", keepdims=1)], "shorter_float", to=_DOUBLE)
    wanted = constant("wanted", [data.resize or data.size], np.float64)
    scale = step("Div", [wanted, shorter], "scale")
    scaled = step("Mul", [step("Cast", [sides], "sides_float", to=_DOUBLE), scale], "scaled")
    whole = step("Cast", [step("Round", [scaled], "rounded")], "whole", to=TensorProto.INT64)
    large = step("Max", [whole, size], "large")
    # An image that already has the network's size is not resized, even if `data.resize` is larger.
    equal = step("Cast", [step("Equal", [sides, size], "equal")], "equal_number", to=TensorProto.INT64)
    as_it_is = step("Cast", [step("ReduceMin", [equal, zero], "all_equal", keepdims=1)], "as_it_is", to=_BOOL)
    target = step("Where", [as_it_is, size, large], "target")
    batch = step("Slice", [shape, zero, one, zero], "batch")
    channels = constant("channels", [data.channels], np.int64)
    sizes = step("Concat", [batch, target, channels], "sizes", axis=0)
    resized = step("Resize", [image, "", "", sizes], "resized", mode="linear", antialias=1, exclude_outside=1)
    margins = step("Sub", [target, size], "margins")
    begin = step("Div", [margins, constant("two", [2], np.int64)], "begin")
    end = step("Add", [begin, size], "end")
    cropped = step("Slice", [resized, begin, end, constant("axes", [1, 2], np.int64)], "cropped")
    # The reshape tells the sizes to the rest of the graph; 0 keeps the batch.
    step("Reshape", [cropped, constant("fixed", [0, data.size, data.size, data.channels], np.int64)], "image")
    return nodes, constants


_DOUBLE, _BOOL = TensorProto.DOUBLE, TensorProto.BOOL


def fidelity(split: Split, card: Card) -> Fidelity:
    """Compare the resize in the graph with Pillow's on at most MEASURED images of the split.

    Raises ModelError for a difference of more than MAX_LEVELS, so that no such file is shipped.
    """
    places = np.linspace(0, len(split) - 1, min(MEASURED, len(split))).astype(np.int64)
    session = _session(_resize_alone(card).SerializeToString())
    found = [session.run(None, {"image": image[None]})[0] for image in some_originals(split, MEASURED)]
    away = np.abs(np.concatenate(found).astype(np.int64) - split.read(places))
    measured = Fidelity(images=len(places), max_levels=int(away.max()), mean_levels=float(away.mean()))
    if measured.max_levels > MAX_LEVELS:
        raise ModelError(f"the resize in the graph {measured.words}; {MAX_LEVELS} are allowed; leave export.resize out")
    return measured


def _resize_alone(card: Card) -> onnx.ModelProto:
    """A model that only resizes and crops uint8 images."""
    shape = ["batch", card.data.size, card.data.size, card.data.channels]
    ends = [helper.make_tensor_value_info(name, TensorProto.UINT8, shape) for name in ("image", "out")]
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["out"])], "resize", ends[:1], ends[1:])
    opset = helper.make_opsetid("", OLDEST_OPSET)
    return with_resize(helper.make_model(graph, opset_imports=[opset], ir_version=8), card)


def same_answers(file: Path, split: Split, task: Task) -> float | None:
    """The share of at most MEASURED images to which the file gives the same answer, whether the graph resizes them or
    Pillow does; None for a task without equal answers. Runs on the CPU provider."""
    if task.same is None:
        return None
    places = np.linspace(0, len(split) - 1, min(MEASURED, len(split))).astype(np.int64)
    session = _session(str(file))
    return task.same(_outputs(session, some_originals(split, MEASURED)), _outputs(session, split.read(places)))


def _outputs(session: onnxruntime.InferenceSession, images: Iterable[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """The outputs (n, C) for images of different sizes, one by one."""
    name = session.get_inputs()[0].name
    outputs: NDArray[np.float32] = np.concatenate([session.run(None, {name: image[None]})[0] for image in images])
    return outputs


def _session(model: str | bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
