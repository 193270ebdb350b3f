"""From samples made by hand to a verdict."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from edgekd.bench.statistics import between, latency_of
from edgekd.card import Budget
from edgekd.check.asked import Criteria
from edgekd.check.record import Checked
from edgekd.check.tolerance import Tolerance, tolerance_keys
from edgekd.check.verdict import NextLook, figures_of, judge_record, judge_samples
from edgekd.figures import Figure, Placement
from edgekd.judge import Line, Verdict
from edgekd.scores import ACCURACY
from edgekd.target import load_target

TARGET = load_target("cpu-x86")


def judged(checked: Checked, **limits: float) -> tuple[Verdict, NextLook]:
    verdict, wanted, _ = judge_samples(checked, Budget(**limits), Tolerance())
    return verdict, wanted


def one(checked: Checked, **limits: float) -> Line:
    (line,) = judged(checked, **limits)[0].lines
    return line


def timed(make: Any, count: int, p50_ms: float = 1.0, spread: float = 0.005, **more: Any) -> Checked:
    """A model alone, in so many processes around one median."""
    factors = np.exp(np.random.default_rng(3).normal(0.0, spread, count))
    records = tuple(make.alone(p50_ms / 1e3 * float(factor), **more) for factor in factors)
    return Checked(sample=make.sample(latency=records))


# --- budgets of time ---


def test_a_latency_budget_is_judged_at_planned_looks(make: Any) -> None:
    line = one(timed(make, 8), latency_p50_ms=1.1)
    assert (line.outcome, line.reason) == ("pass", "")
    assert line.confidence == "95 % over all looks; look 1 of 4, 8 processes"
    assert one(timed(make, 8), latency_p50_ms=0.9).outcome == "fail"
    assert one(timed(make, 24), latency_p50_ms=1.0).outcome == "inconclusive"
    assert judged(timed(make, 24), latency_p50_ms=1.0)[1] == NextLook()


def test_the_figure_is_that_of_the_look(make: Any) -> None:
    checked = timed(make, 20)
    line = one(checked, latency_p50_ms=1.1)
    first = latency_of([record.latency_s for record in checked.sample.latency[:8]], 0.9875).p50
    assert line.figure == Figure(1e3 * first.value, "measured", 1e3 * first.low, 1e3 * first.high)
    loading = [record.load_s for record in checked.sample.latency[:8]]
    load = between(loading, 0.9875)
    assert one(checked, load_ms=100).figure.value == pytest.approx(1e3 * load.value)


@pytest.mark.parametrize(("count", "wanted"), [(1, 8), (2, 8), (7, 8), (8, 12), (11, 12), (12, 16), (16, 24)])
def test_between_looks_nothing_is_said(make: Any, count: int, wanted: int) -> None:
    verdict, more = judged(timed(make, count, spread=0.02), latency_p50_ms=1.0)
    assert verdict.outcome == "inconclusive"
    assert (more, bool(more)) == (NextLook(latency=wanted), True)
    rest = max((look for look in (8, 12, 16) if look <= count), default=count)
    assert verdict.lines[0].reason == f"{rest} processes are too few; the next look needs {wanted}"
    assert all(math.isfinite(value or 0.0) for value in dataclasses.astuple(verdict.lines[0].figure)[2:4])
    assert verdict.lines[0].figure.value == pytest.approx(1.0, rel=0.05)


def test_one_more_budget_wants_what_the_most_demanding_does(make: Any) -> None:
    checked = timed(make, 8)
    assert judged(checked, latency_p50_ms=1.0, load_ms=100)[1] == NextLook(latency=12)
    verdict, more = judged(checked, latency_p50_ms=2.0, load_ms=100)
    assert (verdict.outcome, more) == ("pass", NextLook())


def test_p95_of_too_few_calls_is_inconclusive(make: Any) -> None:
    line = one(timed(make, 24, calls=3), latency_p95_ms=10.0)
    assert (line.outcome, line.figure.value) == ("inconclusive", None)
    assert line.reason == "72 calls are too few for p95, which needs 90"
    assert one(timed(make, 8, calls=12), latency_p95_ms=10.0).outcome == "pass"
    # At the first look there were too few, at the second enough.
    line = one(timed(make, 12, calls=10), latency_p95_ms=10.0)
    assert (line.outcome, line.confidence) == ("pass", "95 % over all looks; look 2 of 4, 12 processes")


def test_p99_is_told_and_never_fails(make: Any) -> None:
    verdict, more = judged(timed(make, 8), latency_p99_ms=0.5)
    (line,) = verdict.lines
    assert (line.outcome, line.advisory, verdict.outcome, more) == ("fail", True, "pass", NextLook())
    assert (line.confidence, "fail, advisory" in line.text) == ("95 %, 8 processes", True)
    few = judged(timed(make, 8, calls=12), latency_p99_ms=0.5)[0]
    assert (few.lines[0].outcome, few.outcome) == ("inconclusive", "pass")


def test_without_processes_time_is_unknown(make: Any) -> None:
    line = one(Checked(sample=make.sample()), latency_p50_ms=1.0)
    assert (line.outcome, line.reason) == ("inconclusive", "not measured")
    elsewhere = Checked(sample=make.sample(elsewhere="this machine is no board"))
    line = one(elsewhere, latency_p50_ms=1.0)
    assert (line.outcome, line.reason) == ("inconclusive", "this machine is no board")


def test_an_estimate_counts_where_it_is_allowed(make: Any) -> None:
    estimate = Figure(0.5, "estimated", 0.4, 0.6, "from resnet18")
    checked = Checked(sample=make.sample(elsewhere="no board", estimate=estimate))
    budget = Budget(latency_p50_ms=1.0, latency_p95_ms=2.0)
    assert judge_samples(checked, budget, Tolerance())[0].outcome == "inconclusive"
    allowed = judge_samples(checked, budget, Tolerance(), allow_estimated=True)[0]
    assert [line.outcome for line in allowed.lines] == ["pass", "inconclusive"]  # p95 is never estimated
    assert allowed.lines[0].confidence == ""  # a guess is not exact


# --- other budgets ---


def test_the_size_is_exact(make: Any) -> None:
    checked = Checked(sample=make.sample(size_bytes=27_750))
    assert [one(checked, size_kb=limit).outcome for limit in (27.75, 27.749, 60)] == ["pass", "fail", "pass"]
    assert one(checked, size_kb=60).confidence == "exact"


def test_memory_is_the_range_of_its_processes(make: Any) -> None:
    checked = Checked(sample=make.sample(memory_bytes=(50_000_000, 52_000_000, 60_000_000)))
    line = one(checked, peak_memory_mb=60)
    assert (line.outcome, line.confidence) == ("pass", "range of 3 processes")
    assert (line.figure.value, line.figure.low, line.figure.high) == (52.0, 50.0, 60.0)
    assert one(checked, peak_memory_mb=55).outcome == "inconclusive"
    assert one(checked, peak_memory_mb=49).outcome == "fail"
    elsewhere = dataclasses.replace(checked.sample, elsewhere="no board")
    assert one(Checked(sample=elsewhere), peak_memory_mb=60).figure.provenance == "proxy"
    assert one(Checked(sample=make.sample()), peak_memory_mb=60).outcome == "inconclusive"


def test_accuracy_with_the_interval_of_other_data(make: Any) -> None:
    checked = Checked(sample=make.sample(answers=make.answers([0] * 300, [0] * 270 + [1] * 30)))
    line = one(checked, min_accuracy=0.9)
    assert (line.outcome, line.figure.value) == ("pass", 0.9)
    wilson = stats.binomtest(270, 300).proportion_ci(0.95, method="wilson")
    told = f"exact on these 300; of others 95 %: {100 * wilson.low:.2f} … {100 * wilson.high:.2f} %"
    assert line.confidence == told
    assert (line.figure.low, line.figure.high) == pytest.approx((wilson.low, wilson.high))
    assert one(checked, min_accuracy=0.91).outcome == "fail"
    few = Checked(sample=make.sample(answers=make.answers([0] * 299, [0] * 270 + [1] * 29)))
    assert [one(few, min_accuracy=limit).outcome for limit in (0.9, 0.91, 0.86, 0.94)] == [
        "inconclusive", "inconclusive", "pass", "fail",
    ]  # fmt: skip
    line = one(Checked(sample=make.sample()), min_accuracy=0.9)
    assert (line.outcome, line.reason) == (
        "inconclusive", "no data: --data FILE.npz brings inputs and labels",
    )  # fmt: skip


def test_drop_and_agreement_need_a_teacher(make: Any) -> None:
    answers = make.answers([0, 0, 1, 1], [0, 0, 0, 0], teacher=(0, 0, 0, 2))
    checked = Checked(sample=make.sample(answers=answers))
    assert one(checked, max_accuracy_drop=25).outcome == "pass"
    assert one(checked, max_accuracy_drop=24.9).outcome == "fail"
    assert (one(checked, min_agreement=0.5).outcome, one(checked, min_agreement=0.51).outcome) == ("pass", "fail")
    alone = Checked(sample=make.sample(answers=dataclasses.replace(answers, teacher_score=None, agreement=None)))
    assert one(alone, max_accuracy_drop=100).outcome == "inconclusive"
    assert one(alone, min_agreement=0.0).outcome == "inconclusive"


def placed(**values: Any) -> Placement:
    return Placement(nodes={"CPUExecutionProvider": 9, "Other": 1}, time_share={}, fell_back={"Pad": 1}, **values)


def test_coverage_and_the_share_in_int8(make: Any) -> None:
    checked = Checked(sample=make.sample(placement=placed(fused=6, unfused=2)))
    assert (one(checked, min_coverage=0.9).outcome, one(checked, min_coverage=0.91).outcome) == ("pass", "fail")
    assert (one(checked, min_fused_share=0.75).outcome, one(checked, min_fused_share=0.76).outcome) == ("pass", "fail")
    assert one(Checked(sample=make.sample()), min_coverage=0.0).outcome == "inconclusive"


def test_why_no_share_in_int8_is_known(make: Any) -> None:
    floats = Checked(sample=make.sample(placement=placed(fused=0, unfused=0)))
    line = one(floats, min_fused_share=0.1)
    assert (line.outcome, line.reason) == ("inconclusive", "nothing in it computes in int8")
    compiled = Checked(sample=make.sample(placement=placed()))
    assert one(compiled, min_fused_share=0.1).reason == "the provider compiles the graph itself"


# --- the whole verdict ---


def test_budgets_and_the_baseline_are_one_verdict(make: Any) -> None:
    old = make.sample("old.onnx")
    pairs = tuple(make.pair(1.0) for _ in range(6))
    new = dataclasses.replace(timed(make, 8).sample, size_bytes=110_000)
    verdict, wanted, notes = judge_samples(
        Checked(sample=new, baseline=old, pairs=pairs),
        Budget(latency_p50_ms=1.1, size_kb=120),
        Tolerance(max_slowdown_p95="off", max_load_growth="off", max_memory_growth="off", max_coverage_loss="off",
                  max_fused_loss="off", scores={"max_accuracy_loss": "off"}),
    )  # fmt: skip
    assert [(line.key, line.outcome) for line in verdict.lines] == [
        ("latency_p50_ms", "pass"), ("size_kb", "pass"), ("max_slowdown", "pass"), ("max_size_growth", "fail"),
    ]  # fmt: skip
    assert (verdict.outcome, wanted, notes) == ("fail", NextLook(), [])


def test_pairs_and_processes_alone_are_wanted_each_for_itself(make: Any) -> None:
    old = make.sample("old.onnx")
    slower = tuple(make.pair(1.05) for _ in range(6))
    checked = Checked(sample=timed(make, 8).sample, baseline=old, pairs=slower)
    assert judged(checked, latency_p50_ms=1.0)[1] == NextLook(latency=12, pairs=12)
    assert judged(checked, latency_p50_ms=2.0)[1] == NextLook(latency=0, pairs=12)
    stored = Checked(sample=timed(make, 8).sample, baseline=timed(make, 8, 0.5).sample, stored=True)
    assert judged(stored)[1] == NextLook(latency=14)


def test_the_same_samples_give_the_same_verdict(make: Any) -> None:
    checked = Checked(sample=timed(make, 9).sample, baseline=make.sample("old.onnx"), pairs=(make.pair(1.01),) * 7)
    assert judge_samples(checked, Budget(latency_p50_ms=1.0), Tolerance()) == judge_samples(
        checked, Budget(latency_p50_ms=1.0), Tolerance()
    )


OFF: dict[str, Any] = dict.fromkeys(tolerance_keys([ACCURACY]), "off")


@pytest.mark.parametrize(
    "tolerance",
    [
        {"max_memory_growth": 0.05},  # not measured
        {"max_slowdown_stored": 0.1},  # the baseline is no record
        {"max_fused_loss": 0.0},  # nothing in either computes in int8
    ],
)
def test_where_nothing_is_judged_that_is_no_pass(make: Any, tolerance: dict[str, float]) -> None:
    floats = make.sample(placement=placed(fused=0, unfused=0))
    checked = Checked(sample=floats, baseline=dataclasses.replace(floats, name="old.onnx", sha256="o" * 64))
    verdict, wanted, _ = judge_samples(checked, Budget(), Tolerance().with_values(OFF | tolerance))
    assert ([line.outcome for line in verdict.lines], verdict.outcome, wanted) == (
        ["inconclusive"], "inconclusive", NextLook(),
    )  # fmt: skip
    assert judge_samples(checked, Budget(size_kb=200), Tolerance().with_values(OFF | tolerance))[0].outcome == "pass"


# --- records ---


def test_a_record_is_judged_by_what_it_holds(make: Any) -> None:
    checked = timed(make, 8)
    found = judge_record(checked, Criteria(budget=Budget(latency_p50_ms=1.1, peak_memory_mb=60)), TARGET)
    assert found.verdict is not None
    assert [line.outcome for line in found.verdict.lines] == ["pass", "inconclusive"]
    assert found.notes[0] == "from a record of 2026-11-02T14:05:09+00:00; nothing was measured now"
    assert (found.name, found.target, found.machine) == ("new.onnx", "cpu-x86", "a CPU, onnxruntime 1.24.1")
    assert found.figures["latency_p50_ms"].value == pytest.approx(1.0, rel=0.05)
    assert "peak_memory_mb" not in found.figures
    assert found.baseline == ""


def test_a_record_of_a_comparison_says_what_it_was_held_against(make: Any) -> None:
    checked = Checked(sample=make.sample(), baseline=make.sample("old.onnx"), pairs=(make.pair(1.0),) * 6)
    found = judge_record(checked, Criteria(budget=Budget()), TARGET)
    assert found.baseline == f"old.onnx ({'o' * 12}, measured by turns)"
    assert "latency_p50_ms" not in found.figures  # beside its baseline a model is not as it is alone
    stored = judge_record(dataclasses.replace(checked, stored=True, pairs=()), Criteria(budget=Budget()), TARGET)
    assert stored.baseline == f"old.onnx ({'o' * 12}, record of 2026-11-02T14:05:09+00:00)"


def test_figures_are_in_the_units_of_budgets(make: Any) -> None:
    figures = figures_of(timed(make, 8, 2.0, spread=0.0, p95_s=3e-3, load_s=0.02).sample)
    assert figures["latency_p50_ms"].value == pytest.approx(2.0)
    assert figures["latency_p95_ms"].value == pytest.approx(3.0)
    assert figures["load_ms"].value == pytest.approx(20.0)
    assert figures["size_kb"].value == 100.0
    assert figures["min_accuracy"].value is None
