"""A model against its baseline, from samples made by hand."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from edgekd.bench.records import Record
from edgekd.check.compare import compared_lines, steadiness
from edgekd.check.record import Answers, Checked, Sample
from edgekd.check.tolerance import Tolerance, tolerance_keys
from edgekd.figures import Figure, Placement, Provenance, compared
from edgekd.judge import Line
from edgekd.scores import ACCURACY, ScoreKind

OFF = Tolerance().with_values(dict.fromkeys(tolerance_keys([ACCURACY]), "off"))


def only(**limits: Any) -> Tolerance:
    """A tolerance with these limits and no others."""
    return OFF.with_values(limits)


def lines_of(checked: Checked, tolerance: Tolerance) -> dict[str, Line]:
    lines, _, _ = compared_lines(checked, tolerance)
    return {line.key: line for line in lines}


def one(checked: Checked, **limits: Any) -> Line:
    (line,) = lines_of(checked, only(**limits)).values()
    return line


@pytest.fixture
def old(make: Any) -> Sample:
    return make.sample("old.onnx")  # type: ignore[no-any-return]


def against(old: Sample, make: Any, new: dict[str, Any] | None = None, **values: Any) -> Checked:
    return Checked(sample=make.sample("new.onnx", **new or {}), baseline=old, **values)


def varied(make: Any, ratio: float, count: int, spread: float = 0.002, **more: Any) -> tuple[Record, ...]:
    """Pairs whose ratios lie around one value; the same each time."""
    logs = np.random.default_rng(1).normal(0.0, spread, count)
    logs -= logs.mean() if count else 0.0
    return tuple(make.pair(ratio * float(np.exp(log)), **more) for log in logs)


# --- what is compared ---


@pytest.mark.parametrize(
    ("now", "outcome"),
    [
        (Figure(1.02, "emulated", 1.01, 1.03), "pass"),
        (Figure(1.08, "emulated", 1.07, 1.09), "fail"),
        (Figure(1.06, "emulated", 1.03, 1.09), "inconclusive"),
        (Figure(1.04, "emulated", 1.03, 1.09), "inconclusive"),
        (Figure(why="no emulator"), "inconclusive"),
        (None, "inconclusive"),
    ],
)
def test_instructions_may_grow_to_the_limit(make: Any, now: Figure | None, outcome: str) -> None:
    old = make.sample("old.onnx", instructions=Figure(1.0, "emulated", 0.99, 1.01))
    line = one(against(old, make, {"instructions": now}), max_instruction_growth=0.05)
    assert line.outcome == outcome
    if now and now.value:
        assert line.figure.value == pytest.approx(now.value - 1)
        assert line.figure.provenance == "emulated"
        assert line.figure.low == pytest.approx((now.low or 0) / 1.01 - 1)
    else:
        assert line.reason == ("no emulator" if now else "instructions were not counted of both")


def test_every_tolerance_has_its_line_in_order_and_off_leaves_it_out(old: Sample, make: Any) -> None:
    measured = {
        "memory_bytes": (1_000, 1_000), "answers": make.answers([0, 1], [0, 1]),
        "placement": Placement(nodes={"CPUExecutionProvider": 4}, time_share={}, fused=3, unfused=1),
        "instructions": Figure(1.0, "emulated", 1.0, 1.0),
    }  # fmt: skip
    old = dataclasses.replace(old, **measured)
    checked = against(old, make, measured, pairs=varied(make, 1.0, 6))
    every = dataclasses.replace(Tolerance(), min_same_answers=0.9, max_instruction_growth=0.0)
    assert list(lines_of(checked, every)) == list(compared())
    assert {line.outcome for line in lines_of(checked, every).values()} == {"pass"}
    assert "min_same_answers" not in lines_of(checked, Tolerance())  # off unless asked for
    for key in compared():
        without = lines_of(checked, every.with_values({key: "off"}))
        assert list(without) == [other for other in compared() if other != key]
    assert compared_lines(checked, OFF) == ([], 0, 0)


def test_the_very_same_file_needs_no_measuring(make: Any) -> None:
    twins = Checked(sample=make.sample("old.onnx"), baseline=make.sample("old.onnx"))
    lines, pairs, alone = compared_lines(twins, Tolerance())
    assert [(line.key, line.outcome, line.reason) for line in lines] == [
        ("max_slowdown", "pass", "the very same file (SHA-256)")
    ]
    assert (pairs, alone) == (0, 0)


def test_on_a_machine_that_is_not_the_target_time_is_not_judged(old: Sample, make: Any) -> None:
    checked = against(old, make, {"elsewhere": "this machine is x86_64, the target aarch64", "size_bytes": 110_000})
    lines = lines_of(checked, Tolerance())
    for key in ("max_slowdown", "max_slowdown_p95", "max_load_growth"):
        assert lines[key].outcome == "inconclusive"
        assert lines[key].reason == "time cannot be compared here: this machine is x86_64, the target aarch64"
    assert lines["max_size_growth"].outcome == "fail"
    assert compared_lines(checked, Tolerance())[1:] == (0, 0)  # nothing is to be measured


# --- time, by turns ---


def test_pairs_pass_fail_and_want_more(old: Sample, make: Any) -> None:
    passed = one(against(old, make, pairs=varied(make, 1.0, 6)), max_slowdown=0.025)
    assert (passed.outcome, passed.reason) == ("pass", "")
    assert passed.figure.value == pytest.approx(0.0, abs=1e-9)
    assert passed.confidence == "1.00 ms → 1.00 ms side by side; 95 % over all looks; look 1 of 4, 6 process pairs"

    slow = against(old, make, pairs=varied(make, 1.05, 12))
    failed = one(slow, max_slowdown=0.025)
    assert (failed.outcome, failed.reason) == ("fail", "confirmed on fresh samples")
    assert failed.figure.value == pytest.approx(0.05)
    assert failed.confidence == "1.00 ms → 1.05 ms side by side; 95 % over all looks; look 1 of 4, 12 process pairs"
    assert one(slow, max_slowdown=0.06).outcome == "pass"

    few = against(old, make, pairs=slow.pairs[:7])
    lines, pairs, alone = compared_lines(few, only(max_slowdown=0.025))
    assert (pairs, alone) == (12, 0)
    assert (lines[0].outcome, lines[0].reason) == ("inconclusive", "6 processes are too few; the next look needs 12")


def test_ratios_are_told_with_the_interval_of_their_look(old: Sample, make: Any) -> None:
    ratios = [1.001, 0.998, 1.004, 1.0, 1.003, 0.997]
    line = one(against(old, make, pairs=tuple(map(make.pair, ratios))), max_slowdown=0.025)
    expected = stats.ttest_1samp(np.log(ratios), 0.0).confidence_interval(0.9875)
    assert [line.figure.low, line.figure.high] == pytest.approx(np.expm1([expected.low, expected.high]))


def test_a_faster_model_is_told_so(old: Sample, make: Any) -> None:
    line = one(against(old, make, pairs=varied(make, 0.8, 6)), max_slowdown=0.025)
    assert (line.outcome, line.reason) == ("pass", "faster: it takes 80.0 % of the baseline's time")


def test_a_slowdown_that_is_not_confirmed_is_told(old: Sample, make: Any) -> None:
    pairs = (*varied(make, 1.05, 6), *varied(make, 1.0, 6), *varied(make, 1.02, 12, 0.05))
    line = one(against(old, make, pairs=pairs), max_slowdown=0.025)
    assert line.outcome == "inconclusive"
    assert line.reason == "1 × above the limit, not confirmed on fresh samples; too close to tell"


@pytest.mark.parametrize("count", [0, 1])
def test_without_pairs_there_is_no_figure(old: Sample, make: Any, count: int) -> None:
    line = one(against(old, make, pairs=varied(make, 1.0, count)), max_slowdown=0.025)
    assert line.outcome == "inconclusive"
    assert (line.figure.value, line.figure.low, line.figure.high) == (None, None, None)
    assert line.text == (
        f"p50 slowdown unknown ≤ +2.5 %: inconclusive ({count} processes are too few; the next look needs 6)"
    )


def test_p95_and_loading_have_limits_of_their_own(old: Sample, make: Any) -> None:
    pairs = varied(make, 1.0, 12, p95=1.3, load=1.1)
    lines = lines_of(against(old, make, pairs=pairs), Tolerance())
    assert {key: lines[key].outcome for key in ("max_slowdown", "max_slowdown_p95", "max_load_growth")} == {
        "max_slowdown": "pass", "max_slowdown_p95": "fail", "max_load_growth": "pass",
    }  # fmt: skip
    assert lines["max_slowdown_p95"].figure.value == pytest.approx(0.3)
    assert lines["max_load_growth"].figure.value == pytest.approx(0.1)
    assert one(against(old, make, pairs=pairs), max_load_growth=0.05).outcome == "fail"


def test_p95_is_not_judged_with_too_few_calls(old: Sample, make: Any) -> None:
    pairs = (*varied(make, 1.0, 11), make.pair(calls=10))
    line = one(against(old, make, pairs=pairs), max_slowdown_p95=0.1)
    assert (line.outcome, line.reason) == ("not judged", "too few calls in a process for p95")


# --- the baseline against itself ---


def test_a_slowdown_within_the_noise_of_the_machine_is_no_finding(old: Sample, make: Any) -> None:
    slow = varied(make, 1.05, 12)
    quiet = against(old, make, pairs=slow, same=varied(make, 1.0, 6))
    assert one(quiet, max_slowdown=0.025).outcome == "fail"
    unsteady = against(old, make, pairs=slow, same=varied(make, 1.0, 6, 0.1))
    line = one(unsteady, max_slowdown=0.025)
    assert line.outcome == "inconclusive"
    assert line.reason == "this machine is too unsteady: the baseline against itself gave +0.0 %"
    assert compared_lines(unsteady, only(max_slowdown=0.025))[1] == 0  # more would not help


def test_a_machine_that_finds_the_baseline_slower_than_itself_finds_nothing(old: Sample, make: Any) -> None:
    slow = varied(make, 1.08, 12)
    biased = against(old, make, pairs=slow, same=varied(make, 1.04, 6))
    line = one(biased, max_slowdown=0.025)
    assert (line.outcome, line.reason.partition(": ")[2]) == (
        "inconclusive", "the baseline against itself gave +4.0 %",
    )  # fmt: skip
    assert one(against(old, make, pairs=slow, same=varied(make, 1.02, 6)), max_slowdown=0.025).outcome == "fail"
    # A pass is one, whatever the machine does.
    fine = against(old, make, pairs=varied(make, 1.0, 6), same=biased.same)
    assert one(fine, max_slowdown=0.025).outcome == "pass"


def test_the_steadiness_of_the_machine_is_a_note(old: Sample, make: Any) -> None:
    (note,) = steadiness(against(old, make, same=varied(make, 1.01, 6)), Tolerance())
    assert note.startswith("this machine, now: the baseline against itself +1.0 % (A/A, 6 process pairs); can detect ≥")
    notes = steadiness(against(old, make, same=varied(make, 1.0, 6, 0.05)), Tolerance())
    (noisy,) = notes[1:]
    assert noisy.startswith("noisy machine: what is slower by less may end inconclusive")
    assert len(steadiness(against(old, make, same=varied(make, 1.0, 6, 0.002)), Tolerance())) == 1
    assert steadiness(against(old, make, same=varied(make, 1.0, 1)), Tolerance()) == []


def test_other_inputs_and_an_old_record_are_notes(old: Sample, make: Any) -> None:
    other = against(old, make, {"signature": "float [N,3]"})
    assert steadiness(other, Tolerance()) == [
        "the baseline takes uint8 [N,3], this model float [N,3]: are they for the same task?"
    ]
    assert steadiness(against(old, make, {"signature": "uint8 [1,3]"}), Tolerance()) == []  # only the batch is fixed
    assert steadiness(against(old, make, {"signature": ""}), Tolerance()) == []
    assert steadiness(against(old, make, stored=True), Tolerance()) == [
        "the baseline was measured on 2026-11-02T14:05:09+00:00; a machine's pace drifts between days"
    ]


# --- time, against a record ---


def stored(make: Any, ratio: float, count: int, spread: float = 0.005, **more: Any) -> Checked:
    """A record of eight processes, and the model now, each around its own time."""

    def around(value: float, n: int, seed: int) -> tuple[Record, ...]:
        logs = np.random.default_rng(seed).normal(0.0, spread, n)
        return tuple(make.alone(value * float(np.exp(log)), **more) for log in logs - logs.mean())

    old = make.sample("old.onnx", latency=around(1e-3, 8, 1))
    new = make.sample("new.onnx", latency=around(1e-3 * ratio, count, 2))
    return Checked(sample=new, baseline=old, stored=True)


def test_a_record_is_compared_with_the_wider_limit(make: Any) -> None:
    line = one(stored(make, 1.08, 8), max_slowdown=0.025, max_slowdown_stored=0.1)
    assert (line.key, line.limit, line.outcome) == ("max_slowdown", 0.1, "pass")
    assert line.figure.value == pytest.approx(0.08)
    assert line.confidence == "95 % over all looks; look 1 of 4, 8 processes, unpaired"
    assert one(stored(make, 1.08, 8), max_slowdown=0.2, max_slowdown_stored=0.1).limit == 0.1  # no other counts
    slow = stored(make, 1.2, 14)
    assert one(slow, max_slowdown=0.025, max_slowdown_stored=0.1).outcome == "fail"
    assert lines_of(slow, only(max_slowdown=0.025)) == {}  # max_slowdown_stored is off
    assert lines_of(slow, only(max_slowdown_stored=0.1)) == {}
    both = lines_of(slow, only(max_slowdown=0.025, max_slowdown_p95=0.1, max_slowdown_stored=0.1))
    assert {key: line.outcome for key, line in both.items()} == {"max_slowdown": "fail", "max_slowdown_p95": "fail"}


def test_a_record_wants_more_processes_of_the_model_alone(make: Any) -> None:
    limits = only(max_slowdown=0.025, max_slowdown_stored=0.1)
    assert compared_lines(stored(make, 1.0, 5), limits)[1:] == (0, 8)
    lines, pairs, alone = compared_lines(stored(make, 1.2, 8), limits)
    assert (lines[0].outcome, pairs, alone) == ("inconclusive", 0, 14)  # six fresh ones must confirm it


def test_loading_is_compared_with_its_own_limit(make: Any) -> None:
    checked = stored(make, 1.0, 8, load_s=0.02)
    assert checked.baseline is not None
    before = tuple(dataclasses.replace(record, load_s=0.01) for record in checked.baseline.latency)
    slower = dataclasses.replace(checked, baseline=dataclasses.replace(checked.baseline, latency=before))
    assert one(checked, max_load_growth=0.25).outcome == "pass"
    line = one(slower, max_load_growth=0.25)
    assert (line.limit, line.outcome) == (0.25, "inconclusive")  # clear, but not yet confirmed
    assert line.figure.value == pytest.approx(1.0)


def test_what_a_record_does_not_hold_is_told(make: Any) -> None:
    whole = stored(make, 1.0, 8)
    assert whole.baseline is not None
    short = dataclasses.replace(whole, baseline=dataclasses.replace(whole.baseline, latency=()))
    line = one(short, max_slowdown=0.025, max_slowdown_stored=0.1)
    assert (line.outcome, line.reason) == ("inconclusive", "its record holds too few processes")
    unmeasured = dataclasses.replace(whole, sample=dataclasses.replace(whole.sample, latency=()))
    line = one(unmeasured, max_slowdown=0.025, max_slowdown_stored=0.1)
    assert (line.outcome, line.reason) == ("inconclusive", "not measured")


def test_p95_of_a_slow_model_is_not_judged_rather_than_never_passed(make: Any) -> None:
    lines = lines_of(stored(make, 1.0, 8, calls=29), Tolerance())
    assert lines["max_slowdown"].outcome == "pass"
    line = lines["max_slowdown_p95"]
    assert (line.outcome, line.reason) == ("not judged", "too few calls in a process for p95")


# --- size and memory ---


@pytest.mark.parametrize(
    ("size", "outcome"), [(90_000, "pass"), (100_000, "pass"), (101_000, "pass"), (101_001, "fail"), (130_000, "fail")]
)
def test_size_may_grow_to_the_limit_itself(old: Sample, make: Any, size: int, outcome: str) -> None:
    line = one(against(old, make, {"size_bytes": size}), max_size_growth=0.01)
    assert line.outcome == outcome
    assert line.figure.value == pytest.approx(size / 100_000 - 1)
    assert (line.figure.provenance, line.confidence) == ("exact", "exact")


def test_a_limit_of_zero_lets_nothing_grow(old: Sample, make: Any) -> None:
    assert one(against(old, make), max_size_growth=0.0).outcome == "pass"
    assert one(against(old, make, {"size_bytes": 100_001}), max_size_growth=0.0).outcome == "fail"


@pytest.mark.parametrize(
    ("peaks", "outcome"),
    [((100, 101, 102), "pass"), ((112, 113, 114), "fail"), ((104, 104, 105), "inconclusive"), ((), "not judged")],
)
def test_memory_is_a_range_of_processes(old: Sample, make: Any, peaks: Sequence[int], outcome: str) -> None:
    old = dataclasses.replace(old, memory_bytes=(100, 100, 101))
    line = one(against(old, make, {"memory_bytes": tuple(peaks)}), max_memory_growth=0.05)
    assert line.outcome == outcome
    if peaks:
        assert line.figure.value == pytest.approx(sorted(peaks)[1] / 100 - 1)
        assert [line.figure.low, line.figure.high] == pytest.approx([peaks[0] / 101 - 1, peaks[-1] / 100 - 1])
        assert line.confidence == "range of 3 processes each"


# --- placement ---


def placed(here: int, elsewhere: int = 0, fused: int | None = None, unfused: int | None = None) -> dict[str, Placement]:
    nodes = {"CPUExecutionProvider": here, "Other": elsewhere}
    return {"placement": Placement(nodes=nodes, time_share={}, fused=fused, unfused=unfused)}


def test_nodes_that_left_the_provider(old: Sample, make: Any) -> None:
    old = dataclasses.replace(old, **placed(10))  # type: ignore[arg-type]
    line = one(against(old, make, placed(9, 1)), max_coverage_loss=0.0)
    assert (line.outcome, line.figure.value) == ("fail", 0.1)
    assert one(against(old, make, placed(9, 1)), max_coverage_loss=0.1).outcome == "pass"
    assert one(against(old, make, placed(20)), max_coverage_loss=0.0).outcome == "pass"


def test_an_int8_model_that_became_float(old: Sample, make: Any) -> None:
    old = dataclasses.replace(old, **placed(10, fused=9, unfused=1))  # type: ignore[arg-type]
    line = one(against(old, make, placed(10, fused=0, unfused=0)), max_fused_loss=0.0)
    assert (line.outcome, line.figure.value) == ("fail", 0.9)
    assert one(against(old, make, placed(10, fused=8, unfused=2)), max_fused_loss=0.0).outcome == "fail"
    assert one(against(old, make, placed(10, fused=8, unfused=2)), max_fused_loss=0.1).outcome == "pass"
    assert one(against(old, make, placed(5, fused=5, unfused=0)), max_fused_loss=0.0).outcome == "pass"
    float_before = dataclasses.replace(old, **placed(10, fused=0, unfused=0))  # type: ignore[arg-type]
    assert lines_of(against(float_before, make, placed(10, fused=0, unfused=0)), only(max_fused_loss=0.0)) == {}


def test_placement_that_was_not_measured_of_both_is_not_judged(old: Sample, make: Any) -> None:
    checked = against(old, make, placed(10))
    for key in ("max_coverage_loss", "max_fused_loss"):
        assert one(checked, **{key: 0.0}).outcome == "not judged"
    assert lines_of(checked, OFF) == {}
    nobody = dataclasses.replace(old, **placed(0))  # type: ignore[arg-type]
    assert one(against(nobody, make, placed(10)), max_coverage_loss=0.0).outcome == "not judged"


# --- answers ---

RIGHT = [0] * 200


def losing(count: int, of: int = 200) -> list[int]:
    """Answers of which the first so many are wrong."""
    return [1] * count + [0] * (of - count)


def answering(old: Sample, make: Any, was: list[int], now: list[int], **more: Any) -> Checked:
    old = dataclasses.replace(old, answers=make.answers(was, [0] * len(was)))
    return against(old, make, {"answers": make.answers(now, [0] * len(now), **more)})


def test_a_loss_beyond_the_limit_that_chance_does_not_explain_fails(old: Sample, make: Any) -> None:
    line = one(answering(old, make, RIGHT, losing(6)), max_accuracy_loss=0.5)
    p = stats.binomtest(6, 6).pvalue
    assert (line.outcome, line.reason, line.figure.value) == ("fail", "", 3.0)
    assert line.confidence == (
        f"McNemar, exact: b = 6 lost, c = 0 won, n = 200, p = {p:.2g}; this set can show a loss of 3.00 points"
    )
    assert "p = 0.031" in line.confidence


def test_a_loss_beyond_the_limit_that_may_be_chance_is_inconclusive(old: Sample, make: Any) -> None:
    line = one(answering(old, make, RIGHT, losing(5)), max_accuracy_loss=0.5)
    assert (line.outcome, line.reason, line.figure.value) == ("inconclusive", "the loss may be chance", 2.5)
    assert "b = 5 lost, c = 0 won, n = 200, p = 0.062; this set can show a loss of 3.00 points" in line.confidence
    # Six lost and one won: seven differ, of which the net must be seven.
    line = one(answering(old, make, [1, *RIGHT[1:]], [0, *losing(6, 199)]), max_accuracy_loss=0.5)
    assert line.outcome == "inconclusive"
    assert f"b = 6 lost, c = 1 won, n = 200, p = {stats.binomtest(6, 7).pvalue:.2g}" in line.confidence
    assert line.confidence.endswith("this set can show a loss of 3.50 points")


def test_within_the_limit_even_a_significant_loss_passes(old: Sample, make: Any) -> None:
    assert one(answering(old, make, RIGHT, losing(6)), max_accuracy_loss=3.0).outcome == "pass"
    assert one(answering(old, make, RIGHT, losing(1)), max_accuracy_loss=0.5).outcome == "pass"  # exactly half a point
    assert one(answering(old, make, losing(50), RIGHT), max_accuracy_loss=0.0).outcome == "pass"
    line = one(answering(old, make, RIGHT, losing(80)), max_accuracy_loss=0.5)
    assert (line.outcome, "p = < 0.0001" in line.confidence) == ("fail", False)
    assert "p < 0.0001;" in line.confidence


def test_answers_that_are_both_wrong_may_still_differ(old: Sample, make: Any) -> None:
    checked = answering(old, make, losing(20), [2] * 20 + [0] * 180)
    assert one(checked, max_accuracy_loss=0.5).figure.value == 0
    line = one(checked, min_same_answers=0.95)
    assert (line.outcome, line.figure.value, line.sign) == ("fail", 0.9, "≥")
    assert one(checked, min_same_answers=0.9).outcome == "pass"


def test_without_data_answers_are_not_judged(old: Sample, make: Any) -> None:
    old = dataclasses.replace(old, answers=make.answers(RIGHT, RIGHT))
    line = one(against(old, make), max_accuracy_loss=0.5)
    assert (line.outcome, line.reason) == ("not judged", "no data given")
    lines = lines_of(against(old, make), only(max_accuracy_loss=0.5, min_same_answers=0.9))
    assert {line.outcome for line in lines.values()} == {"inconclusive"}  # nobody asks for the same answers by default


def test_answers_to_other_data_are_inconclusive(old: Sample, make: Any) -> None:
    for checked in (
        answering(old, make, RIGHT, RIGHT, data="e" * 64),
        answering(old, make, RIGHT, RIGHT[1:]),  # a record somebody edited
        against(old, make, {"answers": make.answers(RIGHT, RIGHT)}),
    ):
        line = one(checked, max_accuracy_loss=0.5)
        assert (line.outcome, line.reason) == ("inconclusive", "the baseline has no answers for these data")


def test_on_another_machine_what_stands_in_is_told(old: Sample, make: Any) -> None:
    here = placed(9, 1, fused=8, unfused=2)["placement"]
    old = dataclasses.replace(old, placement=here, answers=make.answers(RIGHT, RIGHT))
    tolerance = only(max_coverage_loss=0.0, max_fused_loss=0.0, min_same_answers=0.5, max_accuracy_loss=0.5)
    ways: list[tuple[str, Provenance]] = [("", "measured"), ("no board", "proxy")]
    for elsewhere, provenance in ways:
        found = {"placement": dataclasses.replace(here, provenance=provenance), "elsewhere": elsewhere}
        lines = lines_of(against(old, make, {**found, "answers": make.answers(RIGHT, RIGHT)}), tolerance)
        assert {line.figure.provenance for line in lines.values()} == {provenance}
        assert len(lines) == 4


def test_an_accuracy_tolerance_of_the_users_own_wants_data(old: Sample, make: Any) -> None:
    assert one(against(old, make), max_accuracy_loss=0.5).outcome == "not judged"
    assert one(against(old, make), max_accuracy_loss=0.4).outcome == "inconclusive"


# --- what is no finding ---


def test_a_load_that_takes_a_few_milliseconds_longer_is_no_regression(old: Sample, make: Any) -> None:
    slower = [make.pair(load=2.0) for _ in range(12)]
    assert one(against(old, make, pairs=tuple(slower)), max_load_growth=0.25).outcome == "fail"
    brief = [
        dataclasses.replace(pair, load_s=0.012, baseline=pair.baseline | {"load_s": 0.006})  # twice, but 6 ms
        for pair in slower
    ]
    line = one(against(old, make, pairs=tuple(brief)), max_load_growth=0.25)
    assert (line.outcome, line.reason) == ("pass", "under 10 ms longer")
    assert line.figure.value == pytest.approx(1.0)


@pytest.mark.parametrize("waited", [0.0, 0.5])
@pytest.mark.parametrize(("longer_s", "outcome"), [(0.009, "pass"), (0.011, "fail")])
def test_nor_is_it_one_against_a_record(make: Any, waited: float, longer_s: float, outcome: str) -> None:
    """Also where the processes waited for a CPU, which would leave it open."""
    checked = stored(make, 1.0, 24, load_s=0.006)
    changed: dict[str, Any] = {"load_s": 0.006 + longer_s, "disturbance": {"waited": waited}}
    late = tuple(dataclasses.replace(record, **changed) for record in checked.sample.latency)
    checked = dataclasses.replace(checked, sample=dataclasses.replace(checked.sample, latency=late))
    line = one(checked, max_load_growth=0.25)
    assert line.outcome == (outcome if outcome == "pass" or not waited else "inconclusive")
    assert (line.reason == "under 10 ms longer") == (outcome == "pass")
    assert compared_lines(checked, only(max_load_growth=0.25))[1:] == (0, 0)


def test_p95_of_a_machine_that_sees_no_p95_is_no_finding(old: Sample, make: Any) -> None:
    slow = varied(make, 1.0, 12, p95=1.3)
    quiet = against(old, make, pairs=slow, same=varied(make, 1.0, 6))
    assert one(quiet, max_slowdown_p95=0.1).outcome == "fail"
    shaky = tuple(make.pair(1.0, p95=p95) for p95 in (0.5, 2.0, 0.6, 1.8, 0.5, 2.2))
    assert one(against(old, make, pairs=slow, same=shaky), max_slowdown_p95=0.1).outcome == "inconclusive"


@pytest.mark.parametrize(("waited", "outcome"), [(0.02, "fail"), (0.5, "inconclusive"), (None, "fail")])
def test_against_a_record_a_machine_that_lets_processes_wait_finds_nothing(
    make: Any, waited: float | None, outcome: str
) -> None:
    slower = stored(make, 1.5, 24)
    records = [dataclasses.replace(r, disturbance={"waited": waited}) for r in slower.sample.latency]
    busy = dataclasses.replace(slower, sample=dataclasses.replace(slower.sample, latency=tuple(records)))
    line = one(busy, max_slowdown=0.025, max_slowdown_stored=0.1)
    assert line.outcome == outcome
    if waited == 0.5:
        assert line.reason == "the machine was too busy: waiting for a CPU took 50 % of the time"


# --- scores that are no share of examples ---

MAE = ScoreKind(name="mae", words="mean absolute error", better="lower", unit="mm", tolerance=2.0)


def missing(make: Any, errors: Any, name: str) -> Sample:
    """A sample with these absolute errors."""
    each = tuple(map(float, errors))
    answers = Answers(data="d" * 64, about="set.npz", score=sum(each) / len(each), each=each, paired="bootstrap")
    return make.sample(name, kind=MAE, answers=answers)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("shift", "spread", "outcome", "reason"),
    [
        (1.9, 0.1, "pass", ""),
        (3.0, 0.5, "fail", ""),  # every example is worse by about 3 mm
        (3.0, 60.0, "inconclusive", "the increase may be chance"),
        (-5.0, 0.5, "pass", ""),
    ],
)
def test_errors_are_compared_by_the_paired_bootstrap(
    make: Any, shift: float, spread: float, outcome: str, reason: str
) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, 100)
    old = rng.gamma(2, 20, 100)
    new = old + shift + spread * (noise - noise.mean())
    checked = Checked(sample=missing(make, new, "new.onnx"), baseline=missing(make, old, "old.onnx"))
    (line,) = lines_of(checked, OFF.with_values({"max_accuracy_loss": "off", "max_mae_increase": 2.0})).values()
    assert (line.key, line.outcome, line.reason) == ("max_mae_increase", outcome, reason)
    assert line.figure.value == pytest.approx(shift, abs=1e-6)
    test = stats.bootstrap((new - old,), np.mean, method="percentile", rng=np.random.default_rng(1))
    assert line.figure.low == pytest.approx(test.confidence_interval.low, abs=0.05 * spread)
    assert line.text.startswith(f"mean absolute error increase {MAE.show_change(line.figure.value or 0.0)} ≤ 2 mm: ")


def test_another_score_than_that_of_the_baseline_is_not_compared(old: Sample, make: Any) -> None:
    old = dataclasses.replace(old, answers=make.answers([0] * 100, [0] * 100))
    checked = Checked(sample=missing(make, [1.0] * 100, "new.onnx"), baseline=old)
    (line,) = lines_of(checked, OFF.with_values({"max_mae_increase": 2.0})).values()
    assert (line.outcome, line.figure.value) == ("inconclusive", None)


def test_numbers_are_never_the_same_answers(make: Any) -> None:
    both = [missing(make, [1.0] * 10, name) for name in ("new.onnx", "old.onnx")]
    tolerance = OFF.with_values({"max_mae_increase": "off", "min_same_answers": 0.5})
    (line,) = lines_of(Checked(sample=both[0], baseline=both[1]), tolerance).values()
    assert (line.key, line.outcome) == ("min_same_answers", "inconclusive")
