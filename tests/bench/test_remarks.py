"""What is said beside the figures, from records by hand."""

import os
from typing import Any

import pytest

from edgekd.bench.records import Record
from edgekd.bench.remarks import remarks


def record(disturbance: dict[str, float | None] | None = None, **values: Any) -> Record:
    plain: dict[str, Any] = {"mode": "latency", "load_s": 1.0, "fingerprint": {"inputs": "data"}, "memory": {}}
    return Record(**plain | {"latency_s": (1.0, 2.0), "disturbance": disturbance or {}} | values)


def test_nothing_to_say() -> None:
    quiet: dict[str, float | None] = {
        "others_cores": 0.1, "waited": 0.001, "steal": 0.0, "mhz": 3_000.0, "load_1min": 9.0,
    }  # fmt: skip
    assert remarks([record(quiet), record(quiet)]) == []
    assert remarks([record()]) == []
    assert remarks([record(dict.fromkeys(quiet))]) == []


@pytest.mark.parametrize(
    ("disturbance", "said"),
    [
        ({"others_cores": 1.54}, f"other programs kept up to 1.5 of {os.cpu_count()} CPUs busy (in 1 of 3 processes)"),
        ({"waited": 0.125}, "waiting for a CPU took up to 12 % of the time (in 1 of 3 processes)"),
        ({"steal": 0.5}, "the hypervisor took up to 50 % for others (in 1 of 3 processes)"),
        ({"mhz": 2_000.0}, "the CPU's frequency lay between 2000 and 3000 MHz"),
    ],
)
def test_a_loaded_machine(disturbance: dict[str, float | None], said: str) -> None:
    quiet: dict[str, float | None] = {"others_cores": 0.0, "waited": 0.0, "steal": 0.0, "mhz": 3_000.0}
    told = remarks([record(quiet), record(quiet | disturbance), record()])
    assert told == [f"loaded machine: {said}; times may be too long"]


def test_a_hot_device() -> None:
    given: list[dict[str, float | None]] = [{"throttled": 4.0, "temperature_c": 81.0}, {"temperature_c": 60.0}]
    assert remarks([record(one) for one in given]) == [
        "hot device: the device was throttled (in 1 of 2 processes); the device had up to 81 °C (in 1 of 2 processes); "
        "times may be too long"
    ]


def test_the_worst_process_is_told_and_all_reasons_in_one_line() -> None:
    given: list[dict[str, float | None]] = [{"waited": 0.04, "steal": 0.3}, {"waited": 0.5}, {"waited": 0.0}]
    assert remarks([record(one) for one in given]) == [
        "loaded machine: waiting for a CPU took up to 50 % of the time (in 2 of 3 processes); "
        "the hypervisor took up to 30 % for others (in 1 of 3 processes); times may be too long"
    ]


def test_a_warm_up_that_did_not_become_stable() -> None:
    told = remarks([record(warm=False), record(), record(warm=False)])
    assert told == ["not yet stable when the warm-up time was over: 2 of 3 processes"]


def test_inner_loops() -> None:
    (told,) = remarks([record(inner_calls=3), record(inner_calls=11)])
    assert told.startswith("calls are shorter than 50 µs: each timing is the mean of up to 11 calls")
    assert "p95 and p99 are of such means" in told


def test_random_inputs() -> None:
    assert remarks([record(fingerprint={"inputs": "random"})]) == ["seeded random inputs, for no data was given"]
    assert remarks([record(fingerprint={"inputs": "random"}, latency_s=())]) == []


def test_the_gravest_comes_first() -> None:
    one = record({"steal": 0.5}, warm=False, inner_calls=2, fingerprint={"inputs": "random"})
    assert [line.split()[0] for line in remarks([one])] == ["loaded", "not", "calls", "seeded"]
