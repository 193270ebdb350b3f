"""Plans and records as JSON, and which records may be pooled."""

import dataclasses
import json

import pytest

from edgekd.bench import worker
from edgekd.bench.records import QUICK, RECORD_VERSION, THOROUGH, Effort, Plan, Record, comparable
from edgekd.bench.statistics import min_calls_for

RECORD = Record(
    mode="latency",
    load_s=0.25,
    fingerprint={"cpu": "a", "onnxruntime": "1.24", "nodes_by_provider": {"CPUExecutionProvider": 3}},
    memory={"import_bytes": 10, "load_bytes": 20, "run_bytes": None},
    first_call_s=0.5,
    warmup_s=(0.1, 0.2),
    latency_s=(0.01, 0.02, 0.03),
    batch_size=2,
)


PAIRED = dataclasses.replace(
    RECORD,
    mode="pair",
    latency_s=(0.01, 0.02, 0.03, 0.04),
    block_calls=2,
    baseline={"load_s": 0.2, "first_call_s": 0.4, "latency_s": [0.02, 0.03, 0.04, 0.05], "fingerprint": {"cpu": "a"}},
)


def as_worker_result(record: Record) -> dict[str, object]:
    return json.loads(json.dumps({"schema_version": RECORD_VERSION, **dataclasses.asdict(record)}))  # type: ignore[no-any-return]


def test_a_record_survives_json() -> None:
    assert Record.from_json(as_worker_result(RECORD)) == RECORD
    assert Record.from_json(as_worker_result(PAIRED)) == PAIRED
    predicted = dataclasses.replace(RECORD, mode="predict", latency_s=(), outputs_shape=(10_000, 10))
    assert Record.from_json(as_worker_result(predicted)) == predicted
    profiled = dataclasses.replace(
        RECORD,
        mode="profile",
        kernels=({"provider": "CPUExecutionProvider", "op_type": "Conv", "node": "c", "us": [1, 2]},),
        assigned=(("CPUExecutionProvider", "Conv", "c"), ("CPUExecutionProvider", "Relu", "r")),
        disturbance={"waited": 0.5, "mhz": None},
        energy_j=1.5,
    )
    assert Record.from_json(as_worker_result(profiled)) == profiled


def test_parent_and_worker_write_the_same_version() -> None:
    assert worker.SCHEMA_VERSION == RECORD_VERSION


@pytest.mark.parametrize("version", [1, 2])
def test_what_an_older_worker_wrote_is_still_read(version: int) -> None:
    old = {
        "schema_version": version,
        "mode": "latency",
        "load_s": 0.25,
        "first_call_s": 0.5,
        "warmup_s": [0.1],
        "latency_s": [0.01, 0.02],
        "batch_size": 1,
        "memory": {"import_bytes": 10, "load_bytes": 20, "run_bytes": 30},
        "fingerprint": {"cpu": "a"},
    }
    read = Record.from_json(old)
    assert (read.latency_s, read.inner_calls, read.energy_j, read.warm) == ((0.01, 0.02), 1, None, True)


def test_what_a_mode_does_not_give_may_be_absent() -> None:
    given = {"schema_version": 1, "mode": "predict", "load_s": 1.0, "fingerprint": {}, "memory": {}}
    read = Record.from_json(given)
    assert (read.first_call_s, read.latency_s, read.warmup_s, read.outputs_shape) == (None, (), (), ())


@pytest.mark.parametrize("version", [None, 0, RECORD_VERSION + 1, "1"])
def test_another_schema_is_refused(version: object) -> None:
    with pytest.raises(ValueError, match=rf"^schema_version is {version!r}, {RECORD_VERSION} is known$"):
        Record.from_json(as_worker_result(RECORD) | {"schema_version": version})


def test_a_record_with_other_keys_is_refused() -> None:
    with pytest.raises(TypeError, match=r"surprise"):
        Record.from_json(as_worker_result(RECORD) | {"surprise": 1})
    without = as_worker_result(RECORD)
    del without["load_s"]
    with pytest.raises(TypeError, match=r"load_s"):
        Record.from_json(without)


def test_a_plan_is_plain_json() -> None:
    plan = Plan(mode="latency", provider="CPUExecutionProvider", affinity=(1, 2), provider_options={"a": "b"})
    given = json.loads(json.dumps(plan.as_json()))
    assert (given.pop("affinity"), given.pop("custom_ops")) == ([1, 2], [])
    assert Plan(**given, affinity=(1, 2)) == plan
    assert set(plan.as_json()) == set(worker.DEFAULTS)  # neither knows a key that the other does not


def test_each_effort_gives_a_p95_and_thorough_a_p99() -> None:
    assert [e.processes * e.min_calls >= min_calls_for(95) for e in (QUICK, Effort(), THOROUGH)] == [True] * 3
    assert THOROUGH.processes * THOROUGH.min_calls >= min_calls_for(99)
    assert QUICK.budget_s < Effort().budget_s < THOROUGH.budget_s
    assert all(2 <= e.min_processes <= e.processes for e in (QUICK, Effort(), THOROUGH))


def test_records_may_be_pooled_if_all_marks_are_equal() -> None:
    assert comparable([RECORD]) == ""
    assert comparable([RECORD, dataclasses.replace(RECORD, load_s=9.0), RECORD]) == ""


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("cpu", "b", "cpu is 'a' in one and 'b' in another"),
        ("onnxruntime", None, "onnxruntime is '1.24' in one and None in another"),
        (
            "nodes_by_provider",
            {"CPUExecutionProvider": 2},
            "nodes_by_provider is {'CPUExecutionProvider': 3} in one and {'CPUExecutionProvider': 2} in another",
        ),
    ],
)
def test_the_first_mark_that_differs_is_named_with_both_values(key: str, value: object, said: str) -> None:
    other = dataclasses.replace(RECORD, fingerprint=RECORD.fingerprint | {key: value})
    assert comparable([RECORD, RECORD, other]) == said


def test_a_mark_only_the_second_has_and_another_batch_differ() -> None:
    other = dataclasses.replace(RECORD, fingerprint=RECORD.fingerprint | {"affinity": [1]})
    assert comparable([RECORD, other]) == "affinity is None in one and [1] in another"
    assert "batch_size" in comparable([RECORD, dataclasses.replace(RECORD, batch_size=4)])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"latency_s": []}, "latency_s holds no call"),
        ({"latency_s": ["a"]}, "should be seconds"),
        ({"latency_s": [float("nan")]}, "should be seconds"),
        ({"latency_s": [-1.0]}, "should be seconds"),
        ({"latency_s": [10**400]}, "should be seconds"),
        ({"latency_s": [1e300]}, "should be seconds"),
        ({"inner_calls": "x"}, "inner_calls and batch_size should be whole numbers above 0"),
        ({"inner_calls": 0}, "inner_calls and batch_size should be whole numbers above 0"),
        ({"batch_size": 0}, "inner_calls and batch_size should be whole numbers above 0"),
        ({"load_s": None}, "should be seconds"),
        ({"fingerprint": [1]}, "fingerprint should be an object"),
        ({"memory": []}, "memory should be an object"),
        ({"memory": {"run_bytes": "much"}}, "memory should hold numbers"),
        ({"disturbance": {"waited": "x"}}, "disturbance should hold numbers"),
        ({"kernels": [{"x": 1}]}, "kernels should hold"),
        ({"mode": "throughput", "calls": 0, "elapsed_s": 1.0}, "calls and elapsed_s should be above 0"),
    ],
)
def test_what_no_figure_can_be_computed_from_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Record.from_json(as_worker_result(RECORD) | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"block_calls": 0}, "block_calls is 0; 4 calls should be whole blocks"),
        ({"block_calls": -2}, "block_calls is -2"),
        ({"block_calls": 3}, "block_calls is 3; 4 calls should be whole blocks"),
        ({"block_calls": 2.0}, "block_calls is 2.0"),
        ({"block_calls": None}, "block_calls is None"),
        ({"latency_s": [0.01, 0.02]}, "equally many calls, not 2 and 4"),
        ({"latency_s": []}, "equally many calls, not 0 and 4"),
        ({"latency_s": [0.01, 0.0, 0.01, 0.01]}, "seconds above 0"),
        ({"load_s": 0.0}, "seconds above 0"),
        ({"first_call_s": None}, "seconds above 0"),
        ({"baseline": None}, "baseline should be an object with a fingerprint"),
        ({"baseline": [1]}, "baseline should be an object with a fingerprint"),
    ],
)
def test_a_pair_without_ratios_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Record.from_json(as_worker_result(PAIRED) | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"latency_s": [0.01, 0.02]}, "equally many calls, not 4 and 2"),
        ({"latency_s": []}, "equally many calls, not 4 and 0"),
        ({"latency_s": [0.01, 0.01, -0.01, 0.01]}, "seconds above 0"),
        ({"latency_s": [0.01, 0.01, 10**400, 0.01]}, "seconds above 0"),
        ({"latency_s": [0.01, 0.01, 5e-324, 0.01]}, "seconds above 0"),
        ({"latency_s": [0.01, 0.01, float("inf"), 0.01]}, "seconds above 0"),
        ({"latency_s": "four"}, "seconds above 0"),
        ({"load_s": 0}, "seconds above 0"),
        ({"load_s": None}, "seconds above 0"),
        ({"first_call_s": float("nan")}, "seconds above 0"),
        ({"fingerprint": None}, "baseline should be an object with a fingerprint"),
    ],
)
def test_a_baseline_without_ratios_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Record.from_json(as_worker_result(PAIRED) | {"baseline": (PAIRED.baseline or {}) | changes})


def test_an_empty_pair_is_refused() -> None:
    nothing = {"latency_s": [], "baseline": (PAIRED.baseline or {}) | {"latency_s": []}}
    with pytest.raises(ValueError, match="not 0 and 0"):
        Record.from_json(as_worker_result(PAIRED) | nothing)
