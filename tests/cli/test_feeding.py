"""Models whose inputs need more than edgekd can know, as a user of `bench` and `check` meets them."""

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

Cli = Callable[..., Any]
FREE = ["n", 3, "height", "width"]
WIDE = ["--tolerance", "max_slowdown=9", "--tolerance", "max_slowdown_stored=9", "--tolerance", "max_load_growth=off"]


@pytest.fixture
def here(tmp_path: Path) -> str:
    """A target that any machine is."""
    architecture = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    text = 'title = "this machine"\nprecisions = ["fp32"]\n[hardware]\narchitecture = "{}"\n[provider]\nname = "{}"\n'
    (tmp_path / "here.toml").write_text(text.format(architecture, "CPUExecutionProvider"))
    return "here.toml"


def write(path: Path, shape: list[Any], output: str = "y") -> Path:
    """x of a shape to its means over height and width (n, 3), and the largest of them (n,)."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], [output], axes=[2, 3], keepdims=0),
        helper.make_node("ArgMax", [output], ["label"], axis=1, keepdims=0),
    ]
    taken = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
        helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", 3]),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "g", given, taken)
    path.parent.mkdir(exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_free_size_is_asked_for_and_each_shape_has_a_row(cli: Cli, here: str, tmp_path: Path) -> None:
    write(tmp_path / "m.onnx", FREE)
    for command in (("bench", "--quick"), ("check", "--budget", "latency_p50_ms=99"), ("baseline", "accept")):
        done = cli(*command, "m.onnx", "-t", here)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert line.startswith(
            "edgekd: m.onnx: input x is float [n,3,height,width], and the sizes of axes 2 (height), 3"
        )
        assert "--shape x=1,3,HEIGHT,WIDTH" in line
    shapes = ["--shape", "x=1,3,4,4", "--shape", "x=1,3,8,8"]
    done = cli("bench", "m.onnx", "-t", here, "--quick", *shapes, "--json", "f.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "inputs: x float 1×3×8×8 (batch: axis 0)" in done.stdout
    models = json.loads((tmp_path / "f.json").read_text())["models"]
    assert [model["name"] for model in models] == ["m.onnx (x 1×3×4×4)", "m.onnx (x 1×3×8×8)"]
    assert [model["fingerprint"]["shapes"] for model in models] == [{"x": [1, 3, 4, 4]}, {"x": [1, 3, 8, 8]}]


def test_a_first_check_writes_the_baseline_and_a_later_one_is_held_against_it(
    cli: Cli, here: str, tmp_path: Path
) -> None:
    write(tmp_path / "m.onnx", FREE)
    check = ["check", "m.onnx", "-t", here, "--baseline", "b/m.json", "--write-baseline-if-missing", *WIDE]
    missed = cli(*check, "--shape", "x=1,3,4,4", "--budget", "size_kb=0.01")
    assert missed.returncode == 1
    assert "b/m.json: is not there, and was not written, for the budgets do not pass" in missed.stdout
    assert not (tmp_path / "b").exists()
    first = cli(*check, "--shape", "x=1,3,4,4", "--budget", "size_kb=10")
    assert (first.returncode, first.stderr) == (0, "")
    assert "m.onnx on here: pass" in first.stdout
    assert "note: b/m.json: was not there; it was written, and the next check is held against it" in first.stdout
    other = cli(*check, "--shape", "x=1,3,5,5")
    assert other.returncode == 2
    assert "shapes was {'x': [1, 3, 4, 4]} and is {'x': [1, 3, 5, 5]}" in other.stderr
    (tmp_path / "b" / "m.json").unlink()
    alone = cli(*check, "--shape", "x=1,3,4,4")  # without any budget
    assert (alone.returncode, alone.stderr) == (0, "")
    assert (tmp_path / "b" / "m.json").is_file()


def test_two_files_of_one_name_are_told_apart(cli: Cli, here: str, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder / "m.onnx", ["n", 3, 4, 4])
    done = cli("check", "a/m.onnx", "b/m.onnx", "-t", here, "--budget", "size_kb=9", "--json", "c.json")
    assert done.returncode == 0
    assert [one["name"] for one in json.loads((tmp_path / "c.json").read_text())["judged"]] == ["a/m.onnx", "b/m.onnx"]
    assert "a/m.onnx on here: pass" in done.stdout and "b/m.onnx on here: pass" in done.stdout
    done = cli("bench", "a/m.onnx", "b/m.onnx", "-t", here, "--quick", "--json", "f.json")
    models = json.loads((tmp_path / "f.json").read_text())["models"]
    assert [(model["name"], model["file"]) for model in models] == [("a/m.onnx", "m.onnx"), ("b/m.onnx", "m.onnx")]


def test_class_labels_and_another_output_answer(cli: Cli, here: str, tmp_path: Path) -> None:
    write(tmp_path / "m.onnx", FREE)
    rows = np.broadcast_to(np.eye(3, dtype=np.float32)[[0, 1, 0, 1] * 50][:, :, None, None], (200, 3, 5, 5))
    np.savez(tmp_path / "d.npz", x=rows, labels=np.array([0, 1, 0, 2] * 50))  # nothing is ever said to be 2
    for option in ([], ["--output", "y"]):
        done = cli("bench", "m.onnx", "-t", here, "--quick", "--data", "d.npz", "--json", "f.json", *option)
        assert (done.returncode, done.stderr) == (0, "")
        (model,) = json.loads((tmp_path / "f.json").read_text())["models"]
        assert (model["scores"][0]["value"], model["fingerprint"]["shapes"]) == (0.75, {"x": [1, 3, 5, 5]})
        calibration = [one.get("value") for one in model["scores"] if one["name"] == "ece"]
        assert (calibration in ([], [None])) is (not option)
    done = cli("check", "m.onnx", "-t", here, "--budget", "min_accuracy=0.6", "--data", "d.npz")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_manifest_says_what_is_fed(cli: Cli, here: str, tmp_path: Path) -> None:
    write(tmp_path / "m.onnx", FREE)
    text = f'targets = ["{here}"]\n[inputs.x]\nshape = [1, 3, 4, 4]\nbatch_axis = 0\n[[model]]\npath = "m.onnx"\n'
    (tmp_path / "c.toml").write_text(
        text + "[model.budget]\nlatency_p50_ms = 1000\n[model.inputs.x]\nshape = [1, 3, 6, 6]"
    )
    done = cli("check", "--manifest", "c.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert "inputs: x float 1×3×6×6 (batch: axis 0)" in done.stdout
    (tmp_path / "c.toml").write_text(text.replace("[1, 3, 4, 4]", '"1x3"'))
    done = cli("check", "--manifest", "c.toml")
    assert done.returncode == 2
    assert "c.toml: inputs.x.shape" in done.stderr
