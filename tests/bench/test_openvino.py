"""A runtime in an environment of its own, for real: onnxruntime-openvino."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.bench.measure import Subject, logits_of, measure_speed
from edgekd.bench.records import QUICK
from edgekd.devices.device import Site
from edgekd.devices.environments import environment_folder
from edgekd.devices.local import connect
from edgekd.errors import EdgekdError
from edgekd.files import read_json
from edgekd.target import load_target
from edgekd.tasks.image_classification import IMAGE_CLASSIFICATION as CLASSES

SHAPE = (3, 16, 16)


@pytest.fixture(scope="module")
def openvino() -> Site:
    try:
        site = connect(load_target("openvino-cpu"))
    except EdgekdError as reason:
        pytest.skip(str(reason))
    if not site.measurable:
        pytest.skip(site.elsewhere)
    return site


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    weights = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "weights"], ["features"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["features"], ["active"]),
            helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["logits"]),
        ],
        "convolution",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(weights, "weights")],
    )
    path = tmp_path / "convolution.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return Subject(name="convolution", file=path, precision="fp32")


def test_it_runs_where_it_was_asked_to(openvino: Site, subject: Subject) -> None:
    (figures,) = measure_speed([subject], openvino, None, None, QUICK)
    assert figures.latency_p50_ms.value and figures.load_ms.value and figures.first_call_ms.value
    assert figures.latency_p50_ms.low is not None and figures.latency_p50_ms.high is not None
    assert figures.latency_p50_ms.low <= figures.latency_p50_ms.value <= figures.latency_p50_ms.high
    assert figures.fingerprint["providers_assigned"][0] == "OpenVINOExecutionProvider"
    assert figures.placement is not None
    assert set(figures.placement.nodes) == set(figures.placement.time_share) == {"OpenVINOExecutionProvider"}
    assert figures.placement.fell_back == {}


def test_logits_are_those_of_the_cpu_provider(openvino: Site, subject: Subject, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).standard_normal((70, *SHAPE)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    given = logits_of(subject, openvino, tmp_path / "rows.npy", tmp_path, CLASSES)
    expected = logits_of(subject, connect(load_target("cpu-x86")), tmp_path / "rows.npy", tmp_path, CLASSES)
    assert given.shape == (70, 8)
    assert np.allclose(given, expected, atol=1e-4)
    assert np.abs(expected).max() > 0.1


def test_one_table_of_two_runtimes(openvino: Site, subject: Subject, cli: Callable[..., Any], tmp_path: Path) -> None:
    rows = np.random.default_rng(2).standard_normal((40, *SHAPE)).astype(np.float32)
    np.savez(tmp_path / "set.npz", inputs=rows, labels=np.arange(40) % 8)
    targets = ("--target", "cpu-x86", "--target", "openvino-cpu")
    done = cli("bench", subject.file, *targets, "--quick", "--data", "set.npz", "--json", "out.json")
    assert done.returncode == 0, done.stderr
    models = read_json(tmp_path / "out.json")["models"]
    assert [model["target"] for model in models] == ["cpu-x86", "openvino-cpu"]
    assert models[0]["scores"][0]["value"] == models[1]["scores"][0]["value"]
    assert "OpenVINO" in done.stdout


def test_the_environment_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert environment_folder("openvino") == tmp_path / "edgekd" / "environments" / "openvino"
