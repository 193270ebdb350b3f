"""Every place of an ONNX model that can name another file for its weights is found, by all who ask."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.check.precommit import file_problems
from edgekd.errors import InputError
from edgekd.external import external_files, file_digest, model_bytes, model_files, whole_model


def outside() -> TensorProto:
    """Two numbers that lie in the file `weights`."""
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "w")
    onnx.external_data_helper.set_external_data(tensor, "weights")
    tensor.ClearField("raw_data")
    return tensor


def sparse() -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=outside(), indices=numpy_helper.from_array(np.array([0, 1])), dims=[4])


def graph_of(nodes: list[onnx.NodeProto], **more: Any) -> onnx.GraphProto:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    return helper.make_graph(nodes, "g", [], [output], **more)


def constant(**value: Any) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["y"], **value)


def branching() -> onnx.NodeProto:
    branch = graph_of([constant(value=outside())])
    return helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)


def with_function() -> onnx.ModelProto:
    inside = helper.make_function("own", "F", [], ["y"], [constant(value=outside())], [helper.make_opsetid("", 20)])
    return helper.make_model(graph_of([helper.make_node("F", [], ["y"], domain="own")]), functions=[inside])


def with_default() -> onnx.ModelProto:
    model = with_function()
    model.functions[0].ClearField("node")
    model.functions[0].attribute_proto.append(helper.make_attribute("value", outside()))
    return model


def trained_on() -> onnx.ModelProto:
    model = helper.make_model(graph_of([]))
    model.training_info.add().algorithm.CopyFrom(graph_of([], initializer=[outside()]))
    return model


PLACES: dict[str, Callable[[], onnx.ModelProto]] = {
    "initializer": lambda: helper.make_model(graph_of([], initializer=[outside()])),
    "sparse initializer": lambda: helper.make_model(graph_of([], sparse_initializer=[sparse()])),
    "attribute": lambda: helper.make_model(graph_of([constant(value=outside())])),
    "sparse attribute": lambda: helper.make_model(graph_of([constant(sparse_value=sparse())])),
    "list of tensors": lambda: helper.make_model(
        graph_of([helper.make_node("Own", [], ["y"], domain="own", all=[outside()])])
    ),
    "list of graphs": lambda: helper.make_model(
        graph_of([helper.make_node("Own", [], ["y"], domain="own", all=[graph_of([branching()])])])
    ),
    "subgraph": lambda: helper.make_model(graph_of([branching()])),
    "function": with_function,
    "default of a function": with_default,
    "training graph": trained_on,
}


@pytest.mark.parametrize("place", PLACES)
def test_weights_in_another_file_are_found_in_every_place(place: str, tmp_path: Path) -> None:
    model = PLACES[place]()
    assert external_files(model) == ["weights"]
    file, weights = tmp_path / "m.onnx", tmp_path / "weights"
    file.write_bytes(model.SerializeToString())
    for ask in (file_problems, model_files, model_bytes, whole_model):  # as pre-commit, bench and check ask
        with pytest.raises(InputError, match="keeps weights in 'weights', which cannot be read"):
            ask(file)
    weights.write_bytes(b"\0" * 4_000)
    assert model_files(file) == [file, weights]
    assert model_bytes(file) == file.stat().st_size + 4_000
    assert "size" in file_problems(file, max_size_kb=4)[0]  # both files count
    before = file_digest(file)
    assert whole_model(file) == (file.stat().st_size + 4_000, before)
    weights.write_bytes(b"\1" * 4_000)
    assert file_digest(file) != before


def test_a_model_of_one_file_names_none() -> None:
    assert external_files(helper.make_model(graph_of([constant(value_floats=[1.0, 2.0])]))) == []


def test_a_name_left_over_on_a_tensor_that_lies_inside_is_no_other_file() -> None:
    tensor = outside()
    tensor.raw_data, tensor.data_location = np.ones(2, np.float32).tobytes(), TensorProto.DEFAULT
    assert external_files(helper.make_model(graph_of([], initializer=[tensor]))) == []


@pytest.mark.parametrize("command", ["bench", "check", "quantize"])
@pytest.mark.parametrize("links", [{"weights": "weights"}, {"weights": "back", "back": "weights"}])
def test_weights_that_are_a_loop_of_links_are_told_in_one_line(
    links: dict[str, str], command: str, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    for name, other in links.items():
        (tmp_path / name).symlink_to(other)
    file = tmp_path / "m.onnx"
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])]
    answer = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])]
    add = helper.make_node("Add", ["x", "w"], ["y"])
    model = helper.make_model(helper.make_graph([add], "g", given, answer, initializer=[outside()]), ir_version=9)
    file.write_bytes(model.SerializeToString())
    options = {"check": ["--budget", "size_kb=1"], "quantize": ["--data", "set.npz"]}.get(command, [])
    np.savez(tmp_path / "set.npz", inputs=np.zeros((40, 2), np.float32), labels=np.zeros(40, np.int64))
    done = cli(command, file, "-t", "cpu-x86", *options)
    assert done.returncode == 2, done.stderr
    told = [line for line in (done.stderr + done.stdout).splitlines() if "weights" in line]
    assert len(told) == 1, told
    assert "keeps weights in 'weights', which cannot be read (Too many levels of symbolic links)" in told[0]
    with pytest.raises(InputError, match="Too many levels of symbolic links"):
        whole_model(file)


def test_a_name_that_is_not_utf8_is_told_in_one_line(tmp_path: Path, cli: Callable[..., Any]) -> None:
    model = helper.make_model(graph_of([constant(value=outside())], initializer=[outside()]))
    content = model.SerializeToString()
    first = content.index(b"weights")
    file = tmp_path / "m.onnx"
    file.write_bytes(content[:first] + b"w\xff" + content[first + 2 :])  # one name is text, the other one bytes
    (tmp_path / "weights").write_bytes(bytes(8))
    done = cli("check", file, "-t", "cpu-x86", "--budget", "size_kb=1")
    assert done.returncode == 2
    assert "keeps weights in 'w\\udcffights', which cannot be read" in done.stdout + done.stderr
    (tmp_path / os.fsdecode(b"w\xffights")).write_bytes(bytes(8))
    assert model_bytes(file) == file.stat().st_size + 16
    assert file_digest(file) == whole_model(file)[1]
