"""Choosing under the budget: the shape before training, the precision after it."""

import dataclasses
from collections.abc import Callable

import pytest

from edgekd.candidate import Candidate
from edgekd.card import Budget
from edgekd.devices.device import Site
from edgekd.errors import BudgetError
from edgekd.figures import Figure, ModelFigures
from edgekd.judge import effective_budget
from edgekd.machine import Machine
from edgekd.search.choose import choose_network, choose_shape, choose_variant, doubtful, in_doubt
from edgekd.target import Limits, load_target


@pytest.fixture
def site(place: Callable[..., Site]) -> Site:
    """cpu-x86, on a machine that is one."""
    return place(load_target("cpu-x86"))


def candidate(width: int, macs: int, **precisions: tuple[float | None, float]) -> Candidate:
    """A candidate with (latency in ms, size in kB) per precision."""
    return Candidate(
        {"width": width},
        params=width,
        macs=macs,
        precisions={
            name: {"latency_p50_ms": Figure(ms, "measured" if ms else "unknown"), "size_kb": Figure(kb, "exact")}
            for name, (ms, kb) in precisions.items()
        },
    )


SMALL = candidate(8, 100, fp32=(1.0, 40.0), int8=(0.8, 12.0))
LARGE = candidate(16, 400, fp32=(3.0, 160.0), int8=(2.0, 45.0))


def test_the_most_capable_that_fits_is_chosen() -> None:
    assert choose_shape([SMALL, LARGE], Budget()) is LARGE
    assert choose_shape([SMALL, LARGE], Budget(size_kb=50)) is LARGE  # in int8
    assert choose_shape([SMALL, LARGE], Budget(size_kb=44)) is SMALL
    assert choose_shape([SMALL, LARGE], Budget(latency_p50_ms=1.9)) is SMALL


def timed(width: int, macs: int, **spans: tuple[float, float, float]) -> Candidate:
    """A candidate with (latency, its interval) in ms per precision."""
    figures = {name: Figure(ms, "measured", low, high) for name, (ms, low, high) in spans.items()}
    precisions = {name: {"latency_p50_ms": figure} for name, figure in figures.items()}
    return Candidate({"width": width}, params=width, macs=macs, precisions=precisions)


def test_a_limit_inside_the_interval_is_a_doubt() -> None:
    budget = Budget(latency_p50_ms=1.0)
    assert doubtful(timed(8, 100, fp32=(1.1, 0.9, 1.3)), budget)
    assert doubtful(timed(8, 100, fp32=(0.9, 0.8, 1.1)), budget)
    assert not doubtful(timed(8, 100, fp32=(1.2, 1.1, 1.3)), budget)
    assert not doubtful(timed(8, 100, fp32=(0.9, 0.8, 1.0)), budget)
    assert not doubtful(timed(8, 100, fp32=(1.1, 0.9, 1.3), int8=(0.5, 0.4, 0.6)), budget)  # int8 is enough
    large = {"size_kb": Figure(99, "exact")}
    one = timed(8, 100, fp32=(1.1, 0.9, 1.3))
    assert not doubtful(dataclasses.replace(one, precisions={"fp32": one.precisions["fp32"] | large}),
                        Budget(latency_p50_ms=1.0, size_kb=50))  # fmt: skip


def test_only_doubts_that_may_change_the_choice_are_named() -> None:
    budget = Budget(latency_p50_ms=1.0)
    small, fits, large = (timed(8, 100, fp32=(1.1, 0.9, 1.3)), timed(16, 400, fp32=(0.5, 0.4, 0.6)),
                          timed(24, 900, fp32=(1.1, 0.9, 1.3)))  # fmt: skip
    assert in_doubt([small, fits, large], budget) == [large]
    assert in_doubt([small, large], budget) == [large, small]  # none fits
    assert in_doubt([small, fits], budget) == []
    assert in_doubt([small, fits, large], Budget(size_kb=1)) == []
    estimate = {"fp32": {"latency_p50_ms": Figure(1.1, "estimated", 0.5, 2.0)}}  # another measurement tells no more
    assert in_doubt([dataclasses.replace(large, precisions=estimate)], budget) == []
    for known in ({"checked": True}, {"predicted": True}, {"timed_on": "ssh://b"}, {"brought": "b.json"}):
        assert in_doubt([fits, dataclasses.replace(large, **known)], budget) == []


def test_instructions_rank_what_cannot_be_timed() -> None:
    """Where no time is known, a limit on instructions decides which candidate is the most capable that fits."""

    def counted(one: Candidate, millions: float) -> Candidate:
        figures = {"instructions_m": Figure(millions, "emulated"), "latency_p50_ms": Figure()}
        return dataclasses.replace(one, precisions={k: v | figures for k, v in one.precisions.items()})

    few, many = counted(SMALL, 0.2), counted(LARGE, 0.9)
    assert choose_shape([few, many], Budget(instructions_m=1.0)) is many
    assert choose_shape([few, many], Budget(instructions_m=0.5)) is few
    assert choose_shape([few, LARGE], Budget(instructions_m=0.5)) is LARGE  # what is unknown excludes nothing
    with pytest.raises(
        BudgetError, match=r"instructions per call ≤ 100 k is missed by 4 of 4.*instructions per call 200"
    ):
        choose_shape([few, many], Budget(instructions_m=0.1))


def test_one_precision_must_meet_all_budgets_together() -> None:
    slow_int8 = candidate(16, 400, fp32=(1.0, 160.0), int8=(3.0, 45.0))
    assert choose_shape([SMALL, slow_int8], Budget(latency_p50_ms=1.5, size_kb=50)) is SMALL


def test_unknown_latency_excludes_nothing() -> None:
    unknown = candidate(16, 400, fp32=(None, 160.0), int8=(None, 45.0))
    assert choose_shape([SMALL, unknown], Budget(latency_p50_ms=0.9, size_kb=50)) is unknown


def test_an_estimate_excludes_only_what_it_is_sure_of() -> None:
    def estimated(low: float, high: float) -> Candidate:
        figures = {"latency_p50_ms": Figure(5.0, "estimated", low, high), "size_kb": Figure(10, "exact")}
        return Candidate({"width": 32}, 32, 900, {"fp32": figures})

    assert choose_shape([SMALL, estimated(0.9, 20)], Budget(latency_p50_ms=1.0)).macs == 900
    assert choose_shape([SMALL, estimated(1.1, 20)], Budget(latency_p50_ms=1.0)) is SMALL


def test_infeasible_names_the_limiting_budget_and_the_nearest() -> None:
    with pytest.raises(BudgetError) as caught:
        choose_shape([SMALL, LARGE], Budget(size_kb=10, latency_p50_ms=2.5))
    message = str(caught.value)
    assert "no candidate fits: file size ≤ 10.0 kB is missed by 4 of 4" in message
    assert message.index("width=8 int8") < message.index("width=8 fp32")  # the nearest first
    assert "nothing was trained" in message
    assert "--budget size_kb=" in message


def variant(precision: str, ms: float | None, kb: float, accuracy: float) -> ModelFigures:
    return ModelFigures(
        name=f"student {precision}",
        file="",
        sha256="",
        size_bytes=round(1000 * kb),
        precision=precision,
        scores={"accuracy": Figure(accuracy, "measured")},
        latency_p50_ms=Figure(ms, "measured", 0.95 * ms, 1.05 * ms) if ms else Figure(),
    )


TEACHER = Figure(0.95, "measured")


@pytest.mark.parametrize(
    ("int8", "budget", "shipped", "why"),
    [
        ((0.5, 30, 0.93), Budget(), "int8", "the fastest"),
        ((1.5, 30, 0.93), Budget(), "fp32", "the fastest"),
        ((0.97, 30, 0.93), Budget(), "fp32", "as fast as any"),  # within the spread of the processes
        ((1.5, 30, 0.93), Budget(size_kb=50), "int8", "file size"),
        ((0.5, 30, 0.85), Budget(min_accuracy=0.9), "fp32", "accuracy"),
        ((0.5, 30, 0.93), Budget(max_accuracy_drop=1.5), "fp32", "accuracy drop"),
        ((0.5, 30, 0.93), Budget(teacher_min_accuracy=0.99), "int8", "the fastest"),
    ],
)
def test_int8_is_shipped_when_faster_or_needed(site, int8, budget, shipped, why) -> None:
    variants = [variant("fp32", 1.0, 100, 0.94), variant("int8", *int8)]
    chosen, reason = choose_variant(variants, TEACHER, budget, site)
    assert chosen.precision == shipped
    assert why in reason


@pytest.mark.parametrize(
    ("qat", "shipped"),
    [
        ((0.5, 31, 0.935), "int8-qat"),
        ((0.5, 31, 0.925), "int8"),
        ((0.5, 31, 0.93), "int8"),  # as accurate: the one before it
        ((0.9, 31, 0.935), "int8"),  # surely slower
    ],
)
def test_int8_that_was_trained_competes_with_int8(site: Site, qat: tuple[float, float, float], shipped: str) -> None:
    trained = dataclasses.replace(variant("int8", *qat), name="student int8-qat")
    variants = [variant("fp32", 1.0, 100, 0.94), variant("int8", 0.5, 30, 0.93), trained]
    chosen, why = choose_variant(variants, TEACHER, Budget(), site)
    assert chosen.name.removeprefix("student ") == shipped
    assert why.startswith(f"{shipped} is the fastest")


def test_the_more_accurate_network_is_shipped(site: Site) -> None:
    students = [variant("fp32", 1.0, 100, 0.94), variant("int8", 0.5, 30, 0.93)]
    pruned = [dataclasses.replace(one, name=one.name.replace("student", "pruned")) for one in students]
    better = [dataclasses.replace(one, scores={"accuracy": Figure(0.945, "measured")}) for one in pruned]
    chosen, why = choose_network([*students, *better], TEACHER, Budget(), site)
    assert chosen.name == "pruned int8"
    assert why.startswith("pruned int8 has 94.50 % on validation data (student int8 93.00 %); int8 is the fastest")
    slow = [dataclasses.replace(one, latency_p50_ms=Figure(2.0, "measured")) for one in better]
    assert choose_network([*students, *slow], TEACHER, Budget(latency_p50_ms=1), site)[0].name == "student int8"
    assert choose_network(students, TEACHER, Budget(), site) == choose_variant(students, TEACHER, Budget(), site)


def test_where_time_is_not_measured_the_declared_order_decides(place: Callable[..., Site]) -> None:
    elsewhere = place(load_target("cpu-x86"), Machine("x86_64", "an old PC", frozenset(), ""))
    variants = [variant("fp32", None, 100, 0.94), variant("int8", None, 30, 0.93)]
    assert choose_variant(variants, TEACHER, Budget(), elsewhere)[0].precision == "int8"
    assert choose_variant(variants, TEACHER, Budget(min_accuracy=0.935), elsewhere)[0].precision == "fp32"
    turned = dataclasses.replace(elsewhere, target=dataclasses.replace(elsewhere.target, precisions=("fp32", "int8")))
    assert choose_variant(variants, TEACHER, Budget(), turned)[0].precision == "fp32"


def test_the_device_tightens_the_budget() -> None:
    limited = dataclasses.replace(load_target("cpu-x86"), limits=Limits(size_kb=100, peak_memory_mb=200))
    budget = effective_budget(Budget(size_kb=50), limited)
    assert budget.limits() == {"size_kb": 50, "peak_memory_mb": 200}
    assert effective_budget(Budget(size_kb=500), limited).limit("size_kb") == 100


def test_a_teacher_that_may_know_the_images_is_no_measure(site: Site) -> None:
    variants = [variant("fp32", 1.0, 100, 0.94), variant("int8", 0.5, 30, 0.93)]
    learnt = Figure(0.999, "measured")
    assert choose_variant(variants, None, Budget(max_accuracy_drop=3), site)[0].precision == "int8"
    chosen, why = choose_variant(variants, learnt, Budget(max_accuracy_drop=3), site)
    assert "of those that miss least" in why
    assert chosen.precision == "int8"


def test_only_what_the_chosen_one_meets_is_its_reason(site: Site) -> None:
    variants = [variant("fp32", 1.0, 100, 0.85), variant("int8", 0.5, 30, 0.84)]
    chosen, why = choose_variant(variants, TEACHER, Budget(size_kb=50, min_accuracy=0.9), site)
    assert chosen.precision == "int8"
    assert "(file size" in why
    assert why.endswith("), though not accuracy")


def test_an_impossible_p95_is_seen_before_training() -> None:
    with pytest.raises(BudgetError, match=r"latency p50 ≤ 0\.100 ms"):
        choose_shape([SMALL, LARGE], Budget(latency_p95_ms=0.1))
