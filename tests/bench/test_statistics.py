"""Statistics of recorded calls, against numpy and the bound of order statistics."""

import numpy as np
import pytest

from edgekd.bench.statistics import latency_of, min_calls_for


@pytest.mark.parametrize(("percentile", "calls"), [(95, 90), (99, 459), (50, 7)])
def test_calls_a_percentile_needs(percentile: float, calls: int) -> None:
    assert min_calls_for(percentile) == calls
    # The largest of that many calls lies above the percentile with 99 %; of one fewer it does not.
    q = percentile / 100
    assert 1 - q**calls >= 0.99 > 1 - q ** (calls - 1)


def test_percentiles_are_numpys_over_all_calls() -> None:
    rng = np.random.default_rng(0)
    processes = [list(rng.gamma(2.0, 1e-4, size)) for size in (300, 200, 500)]
    stats = latency_of(processes)
    everything = np.concatenate(processes)
    assert (stats.calls, stats.processes) == (1_000, 3)
    assert stats.p50_s == pytest.approx(np.percentile(everything, 50), rel=1e-12)
    assert stats.p95_s == pytest.approx(np.percentile(everything, 95), rel=1e-12)
    assert stats.p99_s == pytest.approx(np.percentile(everything, 99), rel=1e-12)
    medians = [np.median(process) for process in processes]
    assert (stats.p50_low_s, stats.p50_high_s) == (min(medians), max(medians))


@pytest.mark.parametrize(
    ("calls", "p95", "p99"),
    [(1, False, False), (89, False, False), (90, True, False), (458, True, False), (459, True, True)],
)
def test_too_few_calls_give_no_percentile(calls: int, p95: bool, p99: bool) -> None:
    stats = latency_of([[1.0] * calls])
    assert stats.p50_s == 1.0
    assert stats.p95_s == (1.0 if p95 else None)
    assert stats.p99_s == (1.0 if p99 else None)


def test_calls_of_all_processes_count_together() -> None:
    assert latency_of([[1.0] * 30] * 3).p95_s == 1.0
    assert latency_of([[1.0] * 30, [1.0] * 59]).p95_s is None


def test_spread_is_the_range_of_the_medians() -> None:
    stats = latency_of([[1.0, 2.0, 3.0], [2.0, 2.0, 2.0], [2.5, 2.5, 2.5]])
    assert stats.p50_s == 2.0
    assert (stats.p50_high_s - stats.p50_low_s) / stats.p50_s == pytest.approx(0.25)
