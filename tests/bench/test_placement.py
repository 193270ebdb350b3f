"""Nodes that ran elsewhere than the target asks."""

import dataclasses

import pytest

from edgekd.bench.placement import fallback
from edgekd.bench.records import Record
from edgekd.target import Provider, load_target

STRICT = dataclasses.replace(
    load_target("openvino-cpu"), provider=Provider(name="OpenVINOExecutionProvider", allow_cpu_fallback=False)
)
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
