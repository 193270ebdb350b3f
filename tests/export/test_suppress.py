"""Suppression in the graph gives what the worker's gives in NumPy."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgekd.bench.sequences import steering_of
from edgekd.bench.worker import detections
from edgekd.card import Export, card_tables
from edgekd.errors import ConfigError, ModelError
from edgekd.export.onnx import cpu_logits
from edgekd.export.shrink import save_model
from edgekd.export.suppress import final_detections, refuse_suppression, suppression_notes, with_suppression
from edgekd.target import load_target
from edgekd.tasks.detection import DETECTION
from edgekd.tasks.known import build_card

Boxes = NDArray[np.float32]


def passing(rows: int, places: int | str = 40) -> onnx.ModelProto:
    """A model that gives its input (batch, rows, places) as `boxes`."""
    shape: list[str | int | None] = ["batch", rows, places]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "boxes")]
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["boxes"])], "passing", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def some_outputs(seed: int, classes: int = 3, places: int = 40, count: int = 4) -> Boxes:
    """Corners and scores (count, 4 + classes, places) of boxes that overlap in groups; scores have few values."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(20, 80, (count, 2, 5))[:, :, rng.integers(0, 5, places)] + rng.normal(
        0, 3, (count, 2, places)
    )
    sides = rng.uniform(10, 20, (count, 2, places))
    scores = rng.integers(0, 20, (count, classes, places)) / 20  # many are equal, some are 0
    scores[rng.random(scores.shape) < 0.3] = 0.01  # the lowest score itself
    return np.concatenate([centres - sides, centres + sides, scores], axis=1).astype(np.float32)


def in_graph(outputs: Boxes, export: Export) -> Boxes:
    model = with_suppression(passing(*outputs.shape[1:]), export)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: Boxes = session.run(["boxes"], {"image": outputs})[0]
    return found


@pytest.mark.parametrize("seed", range(8))
def test_the_graph_finds_what_the_worker_finds(seed: int) -> None:
    outputs = some_outputs(seed)
    found = in_graph(outputs, Export(nms=True))
    assert found.shape == (4, 100, 6) and found.dtype == np.float32
    assert np.array_equal(found, detections(outputs, 4))
    assert 3 < (found[..., 5] >= 0).sum(axis=1).mean() < 100
    assert np.array_equal(detections(found, 4), found)  # the worker takes it as it is


@pytest.mark.parametrize(
    ("score", "overlap", "boxes"), [(0.3, 0.6, 100), (0.01, 0.2, 100), (0.0, 0.9, 7), (0.5, 0.45, 1)]
)
def test_the_settings_of_the_card_hold(score: float, overlap: float, boxes: int) -> None:
    export = Export(nms=True, nms_score=score, nms_overlap=overlap, nms_boxes=boxes)
    outputs = some_outputs(11, classes=2, places=120)
    found, expected = in_graph(outputs, export), final_detections(outputs, export)
    assert found.shape == (4, boxes, 6)
    assert np.array_equal(detections(found, 4), expected)
    used = found[found[..., 5] >= 0]
    assert used[:, 4].min() > score


def test_more_pairs_than_are_compared() -> None:
    outputs = some_outputs(3, classes=5, places=400)  # 2,000 pairs, of which the best 1,000 are compared
    assert np.array_equal(in_graph(outputs, Export(nms=True)), detections(outputs, 4))


def test_no_boxes_and_all_boxes() -> None:
    nothing = some_outputs(0)
    nothing[:, 4:] = 0
    found = in_graph(nothing, Export(nms=True))
    assert not found[..., :5].any() and (found[..., 5] == -1).all()
    apart = np.zeros((2, 5, 200), np.float32)
    apart[:, 0], apart[:, 2] = np.arange(200) * 10, np.arange(200) * 10 + 5
    apart[:, 3], apart[:, 4] = 5, 0.5  # all scores are equal: the first places are kept
    found = in_graph(apart, Export(nms=True))
    assert np.array_equal(found, detections(apart, 2))
    assert found[0, :, 0].tolist() == [10.0 * k for k in range(100)]
    one_of_two = nothing.copy()
    one_of_two[1, 4, 3] = 0.9
    found = in_graph(one_of_two, Export(nms=True))
    assert (found[..., 5] >= 0).sum(axis=1).tolist() == [0, 1, 0, 0]


def test_few_places_and_boxes_without_area() -> None:
    few = some_outputs(5, classes=1, places=3)
    assert np.array_equal(in_graph(few, Export(nms=True)), detections(few, 4))
    turned = some_outputs(6)
    turned[:, [0, 2], ::2] = turned[:, [2, 0], ::2]  # x2 left of x1: they suppress nothing
    assert np.array_equal(in_graph(turned, Export(nms=True)), detections(turned, 4))


def test_sizes_that_are_not_fixed_are_refused() -> None:
    for rows, places in ((7, "places"), (4, 40)):
        with pytest.raises(ModelError, match=r"export\.nms: needs boxes and scores"):
            with_suppression(passing(rows, places), Export(nms=True))


def card_with(things: Any, export: str) -> Any:
    tables = tomllib.loads(f"{things.CARD}\n[export]\n{export}\n")
    return build_card(card_tables(tables, "things.toml"), "things.toml")


def test_answers_are_compared_before_and_behind_the_suppression(tmp_path: Path, things: Any) -> None:
    card, outputs = card_with(things, "nms = true"), some_outputs(2, classes=2)
    for overlap, told in ((0.6, ""), (0.3, "other detections than NumPy's for 100 %")):
        model = with_suppression(passing(6), Export(nms=True, nms_overlap=overlap))
        for key, value in suppression_notes(card).items():
            model.metadata_props.add(key=key, value=value)
        save_model(model, tmp_path / "model.onnx")
        assert steering_of(tmp_path / "model.onnx") == ("NonMaxSuppression",)  # `bench` says that its time may differ
        if told:
            with pytest.raises(ModelError, match=told):
                cpu_logits(tmp_path / "model.onnx", DETECTION, outputs)
        else:
            assert np.array_equal(cpu_logits(tmp_path / "model.onnx", DETECTION, outputs), outputs)
    assert json.loads(suppression_notes(card)["suppression"]) == {
        "lowest_score": 0.01, "overlap": 0.6, "first": 1000, "kept": 100, "in_graph": True,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["qnn-npu", "coreml", "tensorrt"])
def test_targets_that_cannot_take_it_refuse_it(name: str, things: Any) -> None:
    told = "allow_cpu_fallback = false" if name == "tensorrt" else "fixed_shapes = true"
    with pytest.raises(ConfigError, match=rf"things\.toml: export\.nms: .*{told}"):
        refuse_suppression(card_with(things, "nms = true"), load_target(name))
    refuse_suppression(card_with(things, "resize = false"), load_target(name))
    refuse_suppression(card_with(things, "nms = true"), load_target("wasm"))


def test_settings_without_effect_are_refused(things: Any) -> None:
    with pytest.raises(ConfigError, match=r"nms_overlap: has no effect without nms = true"):
        card_with(things, "nms_overlap = 0.5")
    with pytest.raises(ConfigError, match=r"nms_boxes: got 101"):
        card_with(things, "nms = true\nnms_boxes = 101")
