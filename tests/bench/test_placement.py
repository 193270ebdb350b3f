"""Where nodes ran, what fell back, and what of an int8 file is left in float."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from edgekd.bench.placement import fallback, int8_nodes, placement_of
from edgekd.bench.records import Effort, Record
from edgekd.bench.runner import measure_placement
from edgekd.devices.device import Site
from edgekd.devices.local import Local
from edgekd.figures import Placement
from edgekd.target import Provider, load_target

STRICT = dataclasses.replace(
    load_target("openvino-cpu"), provider=Provider(name="OpenVINOExecutionProvider", allow_cpu_fallback=False)
)
OPENVINO, CPU = "OpenVINOExecutionProvider", "CPUExecutionProvider"
LENIENT = dataclasses.replace(STRICT, provider=Provider(name="OpenVINOExecutionProvider", allow_cpu_fallback=True))


def record(**nodes: int) -> Record:
    return Record(mode="latency", load_s=1.0, fingerprint={"nodes_by_provider": nodes}, memory={})


@pytest.mark.parametrize(
    "nodes", [{"OpenVINOExecutionProvider": 9}, {"OpenVINOExecutionProvider": 9, "CPUExecutionProvider": 0}, {}]
)
def test_nothing_fell_back(nodes: dict[str, int]) -> None:
    assert fallback(record(**nodes), STRICT) == ""


def test_nodes_elsewhere_are_counted_and_named() -> None:
    given = fallback(record(OpenVINOExecutionProvider=5, CPUExecutionProvider=3, XnnpackExecutionProvider=2), STRICT)
    assert given == (
        "3 of 10 nodes on CPUExecutionProvider, 2 of 10 nodes on XnnpackExecutionProvider; "
        "target openvino-cpu asks for OpenVINOExecutionProvider alone"
    )


def test_a_target_may_allow_it() -> None:
    assert fallback(record(OpenVINOExecutionProvider=5, CPUExecutionProvider=3), LENIENT) == ""
    assert fallback(record(OpenVINOExecutionProvider=5, CPUExecutionProvider=3), STRICT) != ""


def test_a_runtime_that_does_not_tell_is_not_accused() -> None:
    assert fallback(Record(mode="latency", load_s=1.0, fingerprint={}, memory={}), STRICT) == ""


def kernel(provider: str, op_type: str, node: str, *us: float) -> dict[str, Any]:
    return {"provider": provider, "op_type": op_type, "node": node, "us": list(us)}


KERNELS = (
    kernel(CPU, "Pad", "pad", 20, 10, 90),
    kernel(OPENVINO, "fused subgraph", "subgraph", 60, 50, 70),
    kernel(CPU, "TopK", "last", 20, 20, 20),
)
PROFILED = Record(mode="profile", load_s=1.0, fingerprint={}, memory={}, kernels=KERNELS)
ASSIGNED = ((OPENVINO, "Conv", "a"), (OPENVINO, "Relu", "b"), (CPU, "Pad", "pad"), (CPU, "TopK", "last"))


def test_a_profile_of_kernels_alone_shows_a_fallback() -> None:
    """Builds before 1.24 do not tell which nodes they assigned to whom."""
    assert fallback(PROFILED, STRICT) == (
        "2 of 3 nodes on CPUExecutionProvider (1 Pad, 1 TopK); "
        "target openvino-cpu asks for OpenVINOExecutionProvider alone"
    )
    told = fallback(dataclasses.replace(PROFILED, assigned=ASSIGNED), STRICT)
    assert told.startswith("2 of 4 nodes on CPUExecutionProvider (1 Pad, 1 TopK); ")
    assert fallback(PROFILED, LENIENT) == ""


@pytest.fixture
def site(place: Callable[..., Site]) -> Site:
    """The lenient target on a device that it describes."""
    return place(LENIENT)


def test_placement_by_hand(site: Site) -> None:
    placed = placement_of(dataclasses.replace(PROFILED, assigned=ASSIGNED), None, site, costliest=2)
    # Medians 20, 60 and 20 µs.
    assert placed.nodes == {OPENVINO: 2, CPU: 2}
    assert placed.time_share == {CPU: pytest.approx(0.4), OPENVINO: pytest.approx(0.6)}
    assert placed.fell_back == {"Pad": 1, "TopK": 1}
    assert (placed.fused, placed.unfused, placed.fused_share) == (None, None, None)
    assert placed.costliest == (
        {
            "node": "subgraph",
            "op_type": "fused subgraph",
            "provider": OPENVINO,
            "us": 60.0,
            "share": pytest.approx(0.6),
        },
        {"node": "pad", "op_type": "Pad", "provider": CPU, "us": 20.0, "share": pytest.approx(0.2)},
    )
    assert placement_of(PROFILED, None, site).nodes == {CPU: 2, OPENVINO: 1}
    assert placement_of(PROFILED, None, site).costliest == ()


def test_kernels_in_8_bits_are_counted_without_a_graph(site: Site) -> None:
    kinds = ["QLinearConv", "QLinearAdd", "QGemm", "MatMulIntegerToFloat", "Conv", "QuantizeLinear"]
    kernels = tuple(kernel(CPU, kind, kind, 1, 1) for kind in kinds)
    placed = placement_of(dataclasses.replace(PROFILED, kernels=kernels), None, site)
    assert (placed.fused, placed.unfused, placed.fused_share) == (4, None, None)


def test_a_profile_without_kernels_has_no_shares(site: Site) -> None:
    assert placement_of(dataclasses.replace(PROFILED, kernels=()), None, site) == Placement(nodes={}, time_share={})


# --- int8 graphs by hand ---

CONSTANTS: dict[str, NDArray[Any]] = {
    "s": np.array(0.05, np.float32),
    "z": np.array(128, np.uint8),
    "zw": np.array(0, np.int8),
    "w": np.random.default_rng(0).integers(-127, 128, (4, 4, 3, 3)).astype(np.int8),
    "wf": np.ones((4, 4, 3, 3), np.float32),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
}


def graph_of(nodes: Sequence[NodeProto], constants: dict[str, NDArray[Any]] = CONSTANTS) -> GraphProto:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 4, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    given = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    return helper.make_graph(list(nodes), "hand", [image], [logits], given)


def to_int8(source: str, out: str) -> NodeProto:
    return helper.make_node("QuantizeLinear", [source, "s", "z"], [out])


def to_float(source: str, out: str, zero: str = "z") -> NodeProto:
    return helper.make_node("DequantizeLinear", [source, "s", zero], [out])


def test_a_float_graph_has_no_int8_nodes() -> None:
    nodes = [helper.make_node("Conv", ["image", "wf"], ["c"]), helper.make_node("Relu", ["c"], ["logits"])]
    assert int8_nodes(graph_of(nodes)) == (None, None, {})


def test_a_fused_convolution() -> None:
    conv = helper.make_node("QLinearConv", ["q", "s", "z", "w", "s", "zw", "s", "z"], ["r"])
    assert int8_nodes(graph_of([to_int8("image", "q"), conv, to_float("r", "logits")])) == (1, 0, {})


def test_a_convolution_between_pairs_is_left_in_float() -> None:
    nodes = [
        to_int8("image", "q"),
        to_float("q", "d"),
        to_float("w", "wd", "zw"),
        helper.make_node("Conv", ["d", "wd"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        to_int8("r", "q2"),
        to_float("q2", "logits"),
    ]
    assert int8_nodes(graph_of(nodes)) == (0, 2, {"Conv": 1, "Relu": 1})


def test_one_that_never_comes_back_to_int8_counts_for_its_weights() -> None:
    nodes = [
        to_int8("image", "q"),
        to_float("q", "d"),
        to_float("w", "wd", "zw"),
        helper.make_node("Conv", ["d", "wd"], ["logits"]),
    ]
    assert int8_nodes(graph_of(nodes)) == (0, 1, {"Conv": 1})


def test_what_lies_between_pairs_blocks_fusion() -> None:
    nodes = [
        to_int8("image", "q"),
        helper.make_node("QLinearConv", ["q", "s", "z", "w", "s", "zw", "s", "z"], ["a"]),
        to_float("a", "b"),
        helper.make_node("Pad", ["b", "pads"], ["padded"]),
        helper.make_node("Elu", ["padded"], ["c"]),
        to_int8("c", "d"),
        helper.make_node("QLinearConv", ["d", "s", "z", "w", "s", "zw", "s", "z"], ["e"]),
        to_float("e", "logits"),
    ]
    found = int8_nodes(graph_of(nodes))
    assert found == (2, 2, {"Pad": 1, "Elu": 1})
    assert Placement(nodes={}, time_share={}, fused=2, unfused=1).fused_share == pytest.approx(2 / 3)


def test_a_float_head_and_a_float_entrance_are_no_blockers() -> None:
    nodes = [
        helper.make_node("Mul", ["image", "s"], ["scaled"]),
        to_int8("scaled", "q"),
        helper.make_node("QLinearConv", ["q", "s", "z", "w", "s", "zw", "s", "z"], ["a"]),
        to_float("a", "b"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["logits"]),
    ]
    assert int8_nodes(graph_of(nodes)) == (1, 0, {})


def test_each_node_is_counted_once() -> None:
    """Two branches in float that meet, and the same weights read twice."""
    nodes = [
        to_int8("image", "q"),
        to_float("q", "d"),
        to_float("w", "wd", "zw"),
        helper.make_node("Conv", ["d", "wd"], ["c1"]),
        helper.make_node("Conv", ["d", "wd"], ["c2"]),
        helper.make_node("Add", ["c1", "c2"], ["sum"]),
        to_int8("sum", "q2"),
        to_float("q2", "logits"),
    ]
    assert int8_nodes(graph_of(nodes)) == (0, 3, {"Conv": 2, "Add": 1})


def test_what_onnx_runtime_really_fuses(tmp_path: Path) -> None:
    """Two convolutions with an Elu between them, which has no kernel in 8 bits."""
    nodes = [
        to_int8("image", "q"),
        to_float("q", "d"),
        to_float("w", "wd", "zw"),
        helper.make_node("Conv", ["d", "wd"], ["c"]),
        to_int8("c", "q2"),
        to_float("q2", "d2"),
        helper.make_node("Elu", ["d2"], ["h"]),
        to_int8("h", "q3"),
        to_float("q3", "d3"),
        helper.make_node("Conv", ["d3", "wd"], ["c2"]),
        to_int8("c2", "q4"),
        to_float("q4", "logits"),
    ]
    model = helper.make_model(graph_of(nodes), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    base = load_target("cpu-x86")
    given: list[tuple[Any, tuple[int, int, dict[str, int]]]] = [
        ("all", (2, 1, {"Elu": 1})),
        ("disable", (0, 3, {"Conv": 2, "Elu": 1})),
    ]
    for level, expected in given:
        session = dataclasses.replace(base.session, graph_level=level)
        target = dataclasses.replace(base, session=session)
        placed = measure_placement(tmp_path / "m.onnx", Site(target, Local()), None, Effort(costliest=3))
        assert (placed.fused, placed.unfused, placed.blockers) == expected
        assert placed.nodes.keys() == {CPU}
        assert len(placed.costliest) == 3
        assert sum(placed.time_share.values()) == pytest.approx(1)
        costs = [entry["us"] for entry in placed.costliest]
        assert costs == sorted(costs, reverse=True)
