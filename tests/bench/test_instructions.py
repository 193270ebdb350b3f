"""Counting instructions on an emulated board, which a fake one stands for."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekd.bench.instructions import count_instructions, instructions_of, require_counting
from edgekd.bench.kept import Subject
from edgekd.bench.measure import measure_speed
from edgekd.bench.records import Effort, Plan, Record
from edgekd.budget import Budget
from edgekd.devices.device import Site
from edgekd.errors import ModelError, UnavailableError
from edgekd.machine import Machine
from edgekd.target import load_target

ARM = load_target("cpu-arm")
BOARD = Machine("aarch64", "", frozenset({"asimd"}), "0xd08", "Linux", "qemu-user (cortex-a72)")
HERE = Machine("x86_64", "a PC", frozenset(), "", "Linux")
EFFORT = Effort(placement=False)


class Counter:
    """Workers whose blocks of ten calls need these instructions; it keeps the plans."""

    def __init__(self, *blocks: int) -> None:
        self.counts = [100]
        for block in blocks:
            self.counts.append(self.counts[-1] + block)
        self.plans: list[Plan] = []

    def __call__(self, plan: Plan, model: Path, *_: Any) -> Record:
        self.plans.append(plan)
        about: dict[str, Any] = {"mode": plan.mode, "load_s": 0.1, "memory": {"run_bytes": 5}}
        mark = {"providers": ["CPUExecutionProvider"], "nodes_by_provider": {}}
        counts = tuple(self.counts) if plan.mode == "count" else ()
        return Record(**about, fingerprint=mark, calls=50, block_calls=10, elapsed_s=1.0, counts=counts)


@pytest.fixture
def subject(tmp_path: Path, tiny_onnx: Callable[[Path], Path]) -> Subject:
    return Subject(name="student", file=tiny_onnx(tmp_path / "m.onnx"), precision="fp32")


@pytest.fixture
def tiny_onnx() -> Callable[[Path], Path]:
    from onnx import TensorProto, helper, save

    def write(file: Path) -> Path:
        row: list[str | int | None] = ["batch", 3]
        graph = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, row)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, row)],
        )
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), file)
        return file

    return write


def test_a_call_is_the_median_of_the_blocks() -> None:
    found = instructions_of(Counter(30, 20, 10, 40, 990)(Plan(mode="count", provider="p"), Path("m")))
    assert (found.value, found.low, found.high) == pytest.approx((3e-6, 2e-6, 4e-6))
    found = instructions_of(Counter(30)(Plan(mode="count", provider="p"), Path("m")))
    assert (found.value, found.low, found.high) == pytest.approx((3e-6, 3e-6, 3e-6))


def test_the_companion_counts_for_a_machine_that_is_not_the_target(
    subject: Subject, place: Callable[..., Site]
) -> None:
    target = dataclasses.replace(ARM, session=dataclasses.replace(ARM.session, intra_op_threads=4))
    counter = Counter(30, 20, 10)
    site = dataclasses.replace(
        place(target, HERE, answer=Counter()), companion=place(target, BOARD, answer=counter).device
    )
    (figures,) = measure_speed([subject], site, None, None, EFFORT)
    assert figures.instructions_m.value == pytest.approx(2e-6)
    assert figures.instructions_m.provenance == "emulated"
    assert figures.latency_p50_ms.value is None
    assert [(plan.mode, plan.intra_op_threads) for plan in counter.plans] == [("count", 1)]
    never = dataclasses.replace(EFFORT, instructions="never")
    assert measure_speed([subject], site, None, None, never)[0].instructions_m.provenance == "unknown"


def test_where_time_is_measured_it_is_counted_only_on_demand(subject: Subject, place: Callable[..., Site]) -> None:
    counter = Counter(30, 20, 10)
    board = dataclasses.replace(BOARD, emulator="")
    alone = place(ARM, board, answer=Counter())
    site = dataclasses.replace(alone, companion=place(ARM, BOARD, answer=counter).device)
    assert site.measurable
    assert count_instructions(subject, site, None, None, EFFORT).value == pytest.approx(2e-6)
    assert site.board is site.companion
    assert alone.board is None


def test_what_was_counted_is_kept(subject: Subject, place: Callable[..., Site], tmp_path: Path) -> None:
    counter = Counter(30, 20, 10)
    site = place(ARM, BOARD, answer=counter)
    first = count_instructions(subject, site, None, tmp_path / "records", EFFORT)
    assert count_instructions(subject, site, None, tmp_path / "records", EFFORT) == first
    assert len(counter.plans) == 1


def test_another_core_than_the_targets_is_a_proxy(subject: Subject, place: Callable[..., Site]) -> None:
    figure = count_instructions(
        subject, place(load_target("cpu-arm-dotprod"), BOARD, answer=Counter(30)), None, None, EFFORT
    )
    assert figure.provenance == "proxy"
    assert "0xd08" in figure.why


def test_a_failure_is_the_reason_of_an_unknown_figure(subject: Subject, place: Callable[..., Site]) -> None:
    def fails(plan: Plan, model: Path, *_: Any) -> Record:
        raise ModelError(f"{model}: the plugin told nothing")

    figure = count_instructions(subject, place(ARM, BOARD, answer=fails), None, None, EFFORT)
    assert (figure.value, figure.why) == (None, "the plugin told nothing")


def test_without_a_board_it_is_told_how_to_get_one(
    subject: Subject, place: Callable[..., Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("edgekd.devices.emulated.machine", lambda: HERE)
    site = place(ARM, HERE)
    why = count_instructions(subject, site, None, None, EFFORT).why
    assert why.endswith("`apt-get install qemu-user`, then `edgekd doctor --install qemu-aarch64`")
    with pytest.raises(
        UnavailableError, match=r"^target cpu-arm: budget instructions_m: .*doctor --install qemu-aarch64"
    ):
        require_counting(Budget(instructions_m=1.0), site)
    with pytest.raises(UnavailableError, match=r"there is none for this target"):
        require_counting(Budget(instructions_m=1.0), place(load_target("cpu-x86")))
    require_counting(Budget(), site)
    require_counting(Budget(instructions_m=1.0), place(ARM, BOARD))
