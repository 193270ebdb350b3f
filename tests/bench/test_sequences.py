"""Models that take sequences: timed at a stated length, answered one by one without their padding."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgekd.bench import worker
from edgekd.bench.measure import Subject, logits_of, measure_speed
from edgekd.bench.records import Effort, Feeding, Plan
from edgekd.bench.sequences import sequence_of
from edgekd.devices.device import Site
from edgekd.devices.local import Local
from edgekd.errors import InputError
from edgekd.target import load_target
from edgekd.tasks.image_classification import IMAGE_CLASSIFICATION as CLASSES

SITE = Site(load_target("cpu-x86"), Local())
EFFORT = Effort(processes=2, min_processes=2, warmup_s=0.0, min_calls=2, max_calls=2, max_s=0.0)


def write_model(path: Path, *, by: str = "edgekd", **metadata: str) -> Path:
    """ids (batch, length) -> (batch, 2): the length of the input as it came, and the sum of the ids."""
    nodes = [
        helper.make_node("Cast", ["ids"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["float", "one"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["float", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "unit"], ["ones"]),
        helper.make_node("ReduceSum", ["ones", "one"], ["length"], keepdims=1),
        helper.make_node("Concat", ["length", "sum"], ["logits"], axis=1),
    ]
    given = helper.make_tensor_value_info("ids", TensorProto.INT32, ["batch", "length"])
    taken = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    constants = [
        helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor("unit", TensorProto.FLOAT, [], [1.0]),
    ]
    graph = helper.make_graph(nodes, "counts", [given], [taken], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for key, value in {by: "1", **metadata}.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


def rows(lengths: list[int]) -> NDArray[np.int32]:
    ids = np.zeros((len(lengths), 12), dtype=np.int32)
    for row, length in enumerate(lengths):
        ids[row, :length] = np.arange(1, length + 1)
    return ids


def feeds(model: Path, **plan: Any) -> worker.Feeds:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return worker.Feeds(session, Plan(mode=plan.pop("mode", "latency"), provider="CPU", **plan).as_json())


def test_the_file_says_its_length_and_padding(tmp_path: Path) -> None:
    given = {"sequence_length": "5", "padding": "0"}
    assert sequence_of(write_model(tmp_path / "a.onnx", **given)) == {"sequence_length": 5, "padding": 0}
    assert sequence_of(write_model(tmp_path / "b.onnx", padding="0")) == {}
    assert sequence_of(write_model(tmp_path / "c.onnx", sequence_length="many", padding="0")) == {}
    assert sequence_of(write_model(tmp_path / "d.onnx", sequence_length="-3")) == {}
    assert sequence_of(write_model(tmp_path / "e.onnx")) == {}
    assert sequence_of(tmp_path / "gone.onnx") == {}
    others = write_model(tmp_path / "f.onnx", by="others", sequence_length="5", padding="0")
    assert sequence_of(others) == {}  # others mean something else by it


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write_model(tmp_path / "a.onnx", sequence_length="5")
    assert sequence_of(path) == {"sequence_length": 5}
    write_model(path, sequence_length="17", padding="0")
    assert sequence_of(path) == {"sequence_length": 17, "padding": 0}


def test_random_inputs_have_the_length(tmp_path: Path) -> None:
    model = write_model(tmp_path / "a.onnx")
    assert {one["ids"].shape for one in feeds(model, sequence_length=7).ready} == {(1, 7)}
    assert {one["ids"].shape for one in feeds(model, shapes={"ids": (2, 9)}).ready} == {(2, 9)}


@pytest.mark.parametrize(("asked", "given"), [(5, 5), (4, 5), (7, 5), (9, 12), (1, 2)])
def test_rows_of_the_nearest_length_are_timed(tmp_path: Path, asked: int, given: int) -> None:
    np.save(tmp_path / "rows.npy", rows([12, 5, 2, 5, 12]))
    plan: dict[str, Any] = {"inputs": str(tmp_path / "rows.npy"), "sequence_length": asked, "padding": 0}
    found = feeds(write_model(tmp_path / "a.onnx"), **plan)
    assert found.length == given
    assert {one["ids"].shape for one in found.ready} == {(1, given)}
    for one in found.ready:
        assert one["ids"].tolist() == [list(range(1, given + 1))]


def test_a_batch_is_cut_to_its_longest_row(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", rows([3, 5, 2]))
    model = write_model(tmp_path / "a.onnx")
    answer = tmp_path / "answers.npy"
    for size, expected in ((1, [3, 5, 2]), (2, [5, 5, 2]), (3, [5, 5, 5])):
        plan = Plan(
            mode="predict",
            provider="CPUExecutionProvider",
            inputs=str(tmp_path / "rows.npy"),
            outputs=str(answer),
            batch_size=size,
            padding=0,
        )
        worker.measure(plan.as_json(), str(model))
        assert np.load(answer)[:, 0].tolist() == expected
        assert np.load(answer)[:, 1].tolist() == [6, 15, 3]


def test_figures_say_the_length_and_answers_come_one_by_one(tmp_path: Path) -> None:
    model = write_model(tmp_path / "a.onnx", sequence_length="5", padding="0")
    np.save(tmp_path / "rows.npy", rows([3, 5, 2, 4]))
    subject = Subject(name="a", file=model, precision="fp32")
    logits = logits_of(subject, SITE, tmp_path / "rows.npy", tmp_path / "records", CLASSES)
    assert logits.tolist() == [[3, 6], [5, 15], [2, 3], [4, 10]]
    for inputs in (tmp_path / "rows.npy", None):
        (figures,) = measure_speed([subject], SITE, inputs, None, EFFORT)
        assert figures.fingerprint["sequence_length"] == 5
        assert "timed with sequences of 5" in figures.notes


def test_other_models_have_no_length(tmp_path: Path) -> None:
    subject = Subject(name="a", file=write_model(tmp_path / "a.onnx"), precision="fp32")
    with pytest.raises(
        InputError, match=r"the size of axis 1 \(length\) is free; give its shape, as --shape ids=1,LENGT"
    ):
        measure_speed([subject], SITE, None, None, EFFORT)
    effort = dataclasses.replace(EFFORT, feeding=Feeding(shapes={"ids": (1, 9)}))
    (figures,) = measure_speed([subject], SITE, None, None, effort)
    assert figures.fingerprint["shapes"] == {"ids": [1, 9]}
    assert "inputs: ids int32 1×9 (batch: axis 0)" in figures.notes
    assert "sequence_length" not in figures.fingerprint
    assert not any("sequences" in note for note in figures.notes)
