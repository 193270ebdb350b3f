"""What `distill` and `sweep` note of a teacher's files before they begin."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.errors import InputError
from edgekd.run import Run

Cli = Callable[..., Any]


def write_onnx(folder: Path, scale: float) -> Path:
    """Digits to logits, by weights that lie in `weights` beside the model."""
    weights = np.full((64, 10), scale, np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    given = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 8, 8, 1])
    told = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])
    graph = helper.make_graph(nodes, "g", [given], [told], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    (folder / "weights").unlink(missing_ok=True)
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    return folder / "m.onnx"


def test_a_run_is_of_the_weights_beside_its_onnx_teacher(
    cli: Cli, tiny_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(card: Any, target: Any, asked: Any, run: Run, *rest: Any) -> None:
        run.begin("digest")
        raise InputError("begun")

    monkeypatch.setattr("edgekd.pipeline.distill", begun)
    command = ("distill", tiny_card, "-t", "cpu-x86", "--teacher", write_onnx(tmp_path, 1.0), "--out", "run")
    for _ in range(2):
        assert "begun" in cli(*command).stderr
    write_onnx(tmp_path, 2.0)
    assert "files.teacher_sha256 was" in cli(*command).stderr


def test_a_sweep_tells_the_weights_beside_its_onnx_teacher(
    cli: Cli, tiny_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = []

    def begun(subject: Any, *rest: Any) -> None:
        noted.append(subject.digests["SHA-256 of the teacher"])
        raise InputError("begun")

    monkeypatch.setattr("edgekd.search.sweep.sweep", begun)
    for scale in (1.0, 1.0, 2.0):
        teacher = write_onnx(tmp_path, scale)
        done = cli("sweep", tiny_card, "--shape", "channels=[8,8]", "--temperatures", "1,4", "--teacher", teacher)
        assert "begun" in done.stderr, done.stderr
    assert noted[0] == noted[1] != noted[2]
    assert len(noted[0]) == 12
