"""Put non-maximum suppression behind a detector, as ONNX operators that give what the worker gives in NumPy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, parser

from edgekd.bench.worker import FIRST, KEPT, suppressed
from edgekd.card import Card, Export
from edgekd.errors import ConfigError, ModelError
from edgekd.external import metadata_of
from edgekd.target import Target

__all__ = ["PREFIX", "final_detections", "refuse_suppression", "suppression_notes", "two_stages", "with_suppression"]

PREFIX = "nms_"
"""The names of all nodes and values of the suppression begin with this."""

WITHOUT = ("TensorrtExecutionProvider", "CoreMLExecutionProvider", "QNNExecutionProvider", "XnnpackExecutionProvider")
"""Providers that leave NonMaxSuppression to another one: TensorRT by the default of `trt_op_types_to_exclude`, the
others because they do not list it among their operators."""

SAME_IMAGES = 0.95
"""The smallest share of images whose detections must all be those of NumPy. Two boxes that overlap by just the limit
may be rounded to either side, which moves all rows behind them."""

_GRAPH = """
agraph (float[batch, rows, places] raw) => (float[batch, kept, 6] found)
<int64[2] parts = {{4, {classes}}}, int64[2] row = {{0, {pairs}}}, int64[4] pads = {{0, 0, 0, {missing}}},
 int64[1] first = {{{first}}}, int64 places = {{{places}}}, int64[1] last = {{2}}, int64[1] middle = {{1}},
 int64[3] wide = {{1, 1, 4}}, int64[2] halves = {{2, 2}}, int64[1, {classes}, 1] classes = {{{numbers}}},
 float none = {{-1}}, int64[1] kept = {{{kept}}}, float[1] overlap = {{{overlap}}}, float[1] lowest = {{{lowest}}},
 int64[2] outer = {{0, 2}}, float[6] unused = {{0, 0, 0, 0, 0, -1}}>
{{
  corners, scores = Split <axis = 1> (raw, parts)
  pairs = Reshape (scores, row)
  enough = Pad (pairs, pads, none)
  best, at = TopK (enough, first)
  place = Mod (at, places)
  label = Div (at, places)
  column = Unsqueeze (place, last)
  columns = Expand (column, wide)
  turned = Transpose <perm = [0, 2, 1]> (corners)
  boxes = GatherElements <axis = 1> (turned, columns)
  low, high = Split <axis = 2> (boxes, halves)
  above = Max (low, high)
  proper = Concat <axis = 2> (low, above)
  labels = Unsqueeze (label, middle)
  own = Equal (labels, classes)
  all = Unsqueeze (best, middle)
  each = Where (own, all, none)
  chosen = NonMaxSuppression (proper, each, kept, overlap, lowest)
  where = Gather <axis = 1> (chosen, outer)
  values = GatherND (best, where)
  shape = Shape (best)
  blank = Expand (none, shape)
  left = ScatterND (blank, where, values)
  top, rank = TopK (left, kept)
  slot = Unsqueeze (rank, last)
  slots = Expand (slot, wide)
  picked = GatherElements <axis = 1> (boxes, slots)
  score = Unsqueeze (top, last)
  number = GatherElements <axis = 1> (label, rank)
  float = Cast <to = 1> (number)
  class = Unsqueeze (float, last)
  lines = Concat <axis = 2> (picked, score, class)
  used = Greater (score, none)
  found = Where (used, lines, unused)
}}
"""
"""`first` pairs of class and place with the highest scores are ordered by score; equal scores keep the order of classes
and places, because TopK does. NonMaxSuppression then takes each class for itself: a pair has its score in the row of
its own class, and −1 in the others. The pairs that it keeps are ranked again. A corner x2 left of x1 gives a box of no
area, which suppresses nothing."""


def with_suppression(model: onnx.ModelProto, export: Export) -> onnx.ModelProto:
    """`model`, whose only output is (batch, 4 + C, L), with suppression behind it: its output then is float32 (batch,
    `export.nms_boxes`, 6), of x1, y1, x2, y2, score and class; unused rows have class −1.

    Raises ModelError if the number of classes or places is not fixed.
    """
    output = onnx.shape_inference.infer_shapes(model).graph.output[0]
    dims = output.type.tensor_type.shape.dim
    rows, places = (dim.dim_value for dim in dims[1:]) if len(dims) == 3 else (0, 0)
    if rows < 5 or not places:
        raise ModelError(
            "export.nms: needs boxes and scores (batch, 4 + classes, places) of fixed sizes, and the network gives "
            f"{[dim.dim_value or dim.dim_param or '?' for dim in dims]}"
        )
    _rename(model, output.name, f"{PREFIX}raw")
    part = _suppression(rows - 4, places, export, output.name)
    model.graph.node.extend(part.node)
    model.graph.initializer.extend(part.initializer)
    shape = [dims[0].dim_value or dims[0].dim_param or "batch", export.nms_boxes, 6]
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, shape))
    return model


def _suppression(classes: int, places: int, export: Export, output: str) -> onnx.GraphProto:
    """The nodes and constants of the suppression, whose last node gives `output`."""
    pairs, kept = classes * places, export.nms_boxes
    graph: onnx.GraphProto = parser.parse_graph(
        _GRAPH.format(
            classes=classes,
            places=places,
            pairs=pairs,
            missing=max(0, kept - pairs),
            first=max(kept, min(FIRST, pairs)),
            kept=kept,
            overlap=float(export.nms_overlap),
            lowest=float(export.nms_score),
            numbers=", ".join(map(str, range(classes))),
        )
    )
    names = {name: f"{PREFIX}{name}" for node in graph.node for name in (*node.input, *node.output)}
    names["found"] = output
    for number, node in enumerate(graph.node):
        node.name = f"{PREFIX}{node.op_type}_{number}"
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    return graph


def _rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def suppression_notes(card: Card) -> dict[str, str]:
    """The metadata of a file that differ if its graph suppresses; nothing if it does not."""
    export = card.export
    if not export.nms:
        return {}
    rule = {"lowest_score": export.nms_score, "overlap": export.nms_overlap, "first": FIRST, "kept": export.nms_boxes}
    return {
        "output": f"float32 (batch, {export.nms_boxes}, 6): x1, y1, x2, y2 in pixels of the input, score and class of "
        "each detection, the highest score first; rows of class -1 are unused",
        "suppression": json.dumps({**rule, "in_graph": True}),
    }


def refuse_suppression(card: Card, target: Target) -> None:
    """Raise ConfigError if the card wants suppression in the graph, and the target's provider cannot take it."""
    if not card.export.nms:
        return
    start, rest = f"{card.file}: export.nms: ", "leave export.nms out, and suppress as docs/deploying.md shows"
    if target.fixed_shapes:
        raise ConfigError(
            f"{start}NonMaxSuppression gives a free number of boxes inside the graph, and target {target.name} has "
            f"fixed_shapes = true; {rest}"
        )
    if target.provider.name in WITHOUT and not target.provider.allow_cpu_fallback:
        raise ConfigError(
            f"{start}{target.provider.name} leaves NonMaxSuppression to the CPU, and target {target.name} has "
            f"allow_cpu_fallback = false; {rest}"
        )


def final_detections(outputs: NDArray[Any], export: Export) -> NDArray[np.float32]:
    """What suppression in NumPy with the settings of `export` leaves of outputs (n, 4 + C, L): (n, KEPT, 6)."""
    rule = export.nms_score, export.nms_overlap, export.nms_boxes
    rows = [suppressed(one, *rule) for one in outputs.astype(np.float32)]
    return np.stack(rows) if rows else np.zeros((0, KEPT, 6), np.float32)


def two_stages(file: Path) -> onnx.ModelProto | None:
    """The model of a file that suppresses in its graph, which also gives what goes into the suppression, as its second
    output; None for any other file."""
    model = onnx.load(file)
    if not json.loads(metadata_of(model).get("suppression", "{}")).get("in_graph"):
        return None
    makers = {name: node for node in model.graph.node for name in node.output}
    node = next(node for node in model.graph.node if node.op_type == "NonMaxSuppression")
    while node.op_type != "Split" or makers[node.input[0]].op_type == "GatherElements":  # the corners of all places
        node = makers[node.input[0]]
    model.graph.output.append(helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, None))
    return model


def before_suppression(session: onnxruntime.InferenceSession, feeds: list[dict[str, Any]], file: Path) -> NDArray[Any]:
    """What a session of `two_stages` gives before the suppression, (n, 4 + C, L).

    Raises ModelError if what it gives behind is not what NumPy's suppression leaves.
    """
    rule = json.loads(session.get_modelmeta().custom_metadata_map["suppression"])
    pairs = [session.run(None, feed) for feed in feeds]
    found, raw = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    settings = rule["lowest_score"], rule["overlap"], rule["kept"]
    expected = np.stack([suppressed(one, *settings) for one in raw])[:, : rule["kept"]]
    same = float((found == expected).all(axis=(1, 2)).mean())
    if same < SAME_IMAGES:
        raise ModelError(
            f"{file}: its suppression gives other detections than NumPy's for {100 * (1 - same):.0f} % of the images"
        )
    return np.asarray(raw)
