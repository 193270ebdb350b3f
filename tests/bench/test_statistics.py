"""Statistics of recorded calls, against scipy and numpy, and by hand."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from edgekd.bench.statistics import (
    between,
    bootstrap,
    latency_of,
    min_calls_for,
    order_statistics,
    ratios_of,
    wilson,
)
from edgekd.distributions import student_t


@pytest.mark.parametrize(("percentile", "calls"), [(95, 90), (99, 459), (50, 7)])
def test_calls_a_percentile_needs(percentile: float, calls: int) -> None:
    assert min_calls_for(percentile) == calls
    # The largest of that many calls lies above the percentile with 99 %; of one fewer it does not.
    q = percentile / 100
    assert 1 - q**calls >= 0.99 > 1 - q ** (calls - 1)


# --- inside the pooled calls ---


@pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("n", [10, 90, 459, 1_000, 40_000])
def test_the_bound_of_order_statistics_is_the_binomials(n: int, q: float) -> None:
    ordered = np.arange(1.0, n + 1)  # the value of each sample is its rank
    low, high = order_statistics(ordered, q)
    count = scipy_stats.binom(n, q)  # samples below the quantile
    # P(quantile < x_low) = P(count < low), P(quantile > x_high) = P(count ≥ high): at most 2.5 % each, and no
    # narrower pair of ranks keeps that, unless the samples end there.
    assert count.cdf(low - 1) <= 0.025 or low == 1
    assert count.cdf(low) > 0.025
    assert count.sf(high - 1) <= 0.025 or high == n
    assert count.sf(high - 2) > 0.025


def test_ranks_of_a_hundred_calls_are_those_of_the_tables() -> None:
    assert order_statistics(np.arange(1.0, 101), 0.5) == (40.0, 61.0)
    # The largest of a hundred lies above p99 with 63 % only: the bound ends where the samples do.
    assert order_statistics(np.arange(1.0, 101), 0.99)[1] == 100.0
    assert order_statistics(np.array([7.0]), 0.5) == (7.0, 7.0)


@pytest.mark.parametrize(("q", "n"), [(0.5, 25), (0.95, 200)])
def test_the_bound_holds_the_quantile_as_often_as_it_says(q: float, n: int) -> None:
    rng = np.random.default_rng(0)
    truth = scipy_stats.lognorm(0.7).ppf(q)
    bounds = [order_statistics(np.sort(rng.lognormal(0.0, 0.7, n)), q) for _ in range(2_000)]
    covered = np.mean([low <= truth <= high for low, high in bounds])
    assert 0.94 < covered < 0.99


# --- between processes ---


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30])
def test_quantiles_of_students_t(freedom: int) -> None:
    assert student_t(0.975, freedom) == pytest.approx(scipy_stats.t(freedom).ppf(0.975), rel=1e-9)


def test_the_interval_over_processes_by_hand() -> None:
    # Logarithms 0, 1, 2: mean 1, standard deviation 1; t of two degrees of freedom is 4.302653.
    found = between([1.0, math.e, math.e**2])
    half = 4.302653 / math.sqrt(3)
    assert found.value == pytest.approx(math.e)
    assert [math.log(found.low), math.log(found.high)] == pytest.approx([1 - half, 1 + half], rel=1e-6)


def test_the_interval_over_processes_is_scipys_on_logarithms() -> None:
    values = [0.011, 0.012, 0.0105, 0.013, 0.0118, 0.0111, 0.0123, 0.0119]
    logs = np.log(values)
    low, high = scipy_stats.t.interval(0.95, len(logs) - 1, logs.mean(), scipy_stats.sem(logs))
    found = between(values)
    assert found.value == pytest.approx(scipy_stats.gmean(values))
    assert [found.low, found.high] == pytest.approx([math.exp(low), math.exp(high)], rel=1e-4)


def test_one_process_gives_no_interval_and_zero_no_error() -> None:
    for values in ([2.0], [2.0, 2.0, 2.0]):
        found = between(values)
        assert [found.value, found.low, found.high] == pytest.approx([2.0] * 3)
    assert between([0.0, 0.0]).value == pytest.approx(0.0, abs=1e-9)


# --- latency ---


def test_percentiles_are_numpys_over_all_calls() -> None:
    rng = np.random.default_rng(0)
    processes = [list(rng.gamma(2.0, 1e-4, 300)) for _ in range(3)]
    stats = latency_of(processes)
    everything = np.concatenate(processes)
    assert (stats.calls, stats.processes) == (900, 3)
    for q, given in ((50, stats.p50), (95, stats.p95), (99, stats.p99)):
        assert given is not None
        assert given.value == pytest.approx(np.percentile(everything, q), rel=1e-12)
        assert given.low <= given.value <= given.high
        # The worse of two intervals on each side: that of the calls, and that of the processes' own percentiles.
        inside = order_statistics(np.sort(everything), q / 100)
        over = between([float(np.percentile(process, q)) for process in processes])
        assert given.low == min(inside[0], over.low)
        assert given.high == max(inside[1], over.high)


def test_a_fast_process_does_not_outvote_a_slow_one() -> None:
    stats = latency_of([[1.0] * 800, [2.0] * 400])
    assert (stats.calls, stats.p50.value) == (800, 1.5)


def test_processes_that_differ_make_the_interval_wide() -> None:
    # A thousand equal calls in each process: the calls alone know the median to the last digit.
    alike = latency_of([[2.0] * 1_000] * 4).p50
    apart = latency_of([[1.9] * 1_000, [2.0] * 1_000, [2.0] * 1_000, [2.1] * 1_000]).p50
    assert [alike.low, alike.high] == pytest.approx([2.0, 2.0])
    assert apart.low < 1.9
    assert apart.high > 2.1


def test_one_process_leaves_the_bound_of_its_calls() -> None:
    calls = [float(n) for n in range(1, 101)]
    p50 = latency_of([calls]).p50
    assert (p50.value, p50.low, p50.high) == (50.5, 40.0, 61.0)


@pytest.mark.parametrize(
    ("calls", "p95", "p99"),
    [(1, False, False), (89, False, False), (90, True, False), (458, True, False), (459, True, True)],
)
def test_too_few_calls_give_no_percentile(calls: int, p95: bool, p99: bool) -> None:
    stats = latency_of([[1.0] * calls])
    assert stats.p50.value == 1.0
    assert (stats.p95 is not None, stats.p99 is not None) == (p95, p99)


def test_calls_of_all_processes_count_together() -> None:
    assert latency_of([[1.0] * 30] * 3).p95 is not None
    assert latency_of([[1.0] * 30, [1.0] * 59]).p95 is None


# --- a model and its baseline by turns ---


def test_ratios_by_hand() -> None:
    # Medians of the blocks: 4, 6 and 5 over 2, 4 and 1: ratios of 2, 1.5 and 5. Those of all calls would give 2.5.
    model = [4.0, 2.0, 9.0, 6.0, 6.0, 7.0, 5.0, 1.0, 5.0]
    baseline = [2.0, 2.0, 30.0, 5.0, 4.0, 1.0, 1.0, 1.0, 1.0]
    ratios = ratios_of(model, baseline, 3, load_s=0.3, baseline_load_s=0.2)
    assert (ratios.p50, ratios.p95) == (2.0, None)
    assert ratios.load == pytest.approx(1.5)
    turned = ratios_of(baseline, model, 3, load_s=0.2, baseline_load_s=0.3)
    assert (turned.p50, turned.p95) == (0.5, None)
    assert turned.load == pytest.approx(2 / 3)
    # An even number of blocks: the mean of the two in the middle.
    assert ratios_of(model[:6], baseline[:6], 3, 1.0, 1.0).p50 == 1.75
    assert ratios_of(model[:3], baseline[:3], 1, 1.0, 1.0).p50 == 1.0  # each call a block: 2, 1 and 0.3


def test_the_ratio_of_p95s_is_that_of_all_calls() -> None:
    calls = [float(n) for n in range(1, 102)]  # their p95 is 96, whatever the blocks
    for block_calls in (1, 101):
        assert ratios_of(calls, [12.0] * 101, block_calls, 1.0, 1.0).p95 == pytest.approx(8.0)
    assert ratios_of([1.0] * 29, [1.0] * 29, 29, 1.0, 1.0).p95 is None
    assert ratios_of([1.0] * 90, [1.0] * 90, 90, 1.0, 1.0).p95 == 1.0


def test_drift_common_to_both_cancels_out() -> None:
    rng = np.random.default_rng(0)
    drift = np.repeat(np.geomspace(1.0, 3.0, 15), 4)  # a machine that becomes slower from block to block
    baseline = drift * rng.uniform(0.99, 1.01, 60)
    model = 1.1 * drift * rng.uniform(0.99, 1.01, 60)
    model[:16] *= 5.0  # what hits a minority of one's blocks is no drift, and does not count either
    assert ratios_of(list(model), list(baseline), 4, 1.0, 1.0).p50 == pytest.approx(1.1, rel=0.01)
    assert not np.median(model) / np.median(baseline) == pytest.approx(1.1, rel=0.1)


# --- shares ---


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (10, 10), (7, 10), (9_173, 10_000), (1, 1)])
def test_the_interval_of_a_share_is_scipys(hits: int, total: int) -> None:
    expected = scipy_stats.binomtest(hits, total).proportion_ci(0.95, method="wilson")
    found = wilson(hits, total)
    assert found.value == hits / total
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high], abs=1e-12)


def test_the_bootstrap_interval_is_that_of_scipy() -> None:
    each = np.random.default_rng(3).gamma(2.0, 20.0, 150)
    found = bootstrap(each)
    scipy = scipy_stats.bootstrap(
        (each,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    )
    assert found.value == pytest.approx(each.mean())
    assert found.low == pytest.approx(scipy.confidence_interval.low, rel=0.01)
    assert found.high == pytest.approx(scipy.confidence_interval.high, rel=0.01)
    assert bootstrap(each) == found  # equal figures give equal intervals
    moved = bootstrap(each, 100.0)  # a score that is not the mean
    assert moved.high - moved.low == pytest.approx(found.high - found.low)
    assert moved.value == 100.0
