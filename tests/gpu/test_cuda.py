"""What needs an NVIDIA GPU and an onnxruntime with the CUDA provider."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.bench.measure import Subject, logits_of, measure_speed
from edgekd.bench.records import QUICK
from edgekd.devices.device import Site
from edgekd.devices.local import connect
from edgekd.errors import EdgekdError
from edgekd.files import read_json
from edgekd.target import load_target
from edgekd.tasks.image_classification import IMAGE_CLASSIFICATION as CLASSES


@pytest.fixture(scope="module")
def cuda() -> Site:
    try:
        return connect(load_target("cuda"))
    except EdgekdError as reason:
        pytest.skip(str(reason))


@pytest.fixture
def convolution(tmp_path: Path) -> Path:
    weights = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "weights"], ["features"], pads=[1, 1, 1, 1]),
            helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["logits"]),
        ],
        "convolution",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(weights, "weights")],
    )
    path = tmp_path / "convolution.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def test_figures_and_placement(cuda: Site, convolution: Path) -> None:
    subject = Subject(name="convolution", file=convolution, precision="fp32")
    (figures,) = measure_speed([subject], cuda, None, None, QUICK)
    assert figures.latency_p50_ms.value
    assert figures.placement is not None
    assert set(figures.placement.nodes) == {"CUDAExecutionProvider"}


def test_logits_are_those_of_the_cpu(cuda: Site, convolution: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(1).standard_normal((70, 3, 32, 32)).astype(np.float32))
    subject = Subject(name="convolution", file=convolution, precision="fp32")
    given = logits_of(subject, cuda, tmp_path / "rows.npy", tmp_path, CLASSES)
    expected = logits_of(subject, connect(load_target("cpu-x86")), tmp_path / "rows.npy", tmp_path, CLASSES)
    assert np.allclose(given, expected, atol=1e-4)


def test_the_script_benches_three_precisions(cuda: Site, convolution: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("bench_cuda", Path(__file__).with_name("bench_cuda.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.bench(convolution, tmp_path / "out.json", None)
    assert [model["precision"] for model in read_json(tmp_path / "out.json")["models"]] == ["fp32", "fp16", "int8"]
