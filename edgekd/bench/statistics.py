"""Statistics of recorded samples, computed on reading."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekd.distributions import CONFIDENCE, Interval, exp, student_t, wilson

__all__ = [
    "Interval",
    "Latency",
    "Ratios",
    "between",
    "latency_of",
    "min_calls_for",
    "order_statistics",
    "ratios_of",
    "wilson",
]

RATIO_CALLS = 30
"""Calls of a process below which no ratio of p95 is given."""


def min_calls_for(percentile: float) -> int:
    """Calls below which a percentile is not given.

    The largest of n calls lies above the percentile q with probability 1 − qⁿ; at least 99 % is asked:
    90 calls for p95, 459 for p99 (the order-statistic bound of a one-sided 99 % tolerance limit).
    """
    q = percentile / 100
    return math.ceil(math.log(0.01) / math.log(q))


@dataclass(frozen=True)
class Latency:
    """Percentiles over all processes (seconds), each with the wider of two intervals; p99 is advisory."""

    calls: int
    processes: int
    p50: Interval
    p95: Interval | None
    p99: Interval | None


def latency_of(processes: Sequence[Sequence[float]], confidence: float = CONFIDENCE) -> Latency:
    """Percentiles of the pooled calls of several processes; None where there are too few calls.

    Every process has the same weight: of those that managed more calls in their time the first ones count, for a fast
    process would otherwise outvote a slow one.

    The interval joins two: the order-statistic bound of the pooled calls, and the interval over the processes' own
    percentiles, for the calls of one process say little about the next.
    """
    shortest = min(map(len, processes))
    samples = [np.asarray(process[:shortest], dtype=np.float64) for process in processes]
    calls = np.sort(np.concatenate(samples))

    def percentile(q: float) -> Interval | None:
        if q != 50 and len(calls) < min_calls_for(q):
            return None
        value = float(np.percentile(calls, q))
        inside = order_statistics(calls, q / 100, confidence)
        over = between([float(np.percentile(process, q)) for process in samples], confidence)
        return Interval(value, min(value, inside[0], over.low), max(value, inside[1], over.high))

    median = percentile(50)
    assert median is not None
    return Latency(len(calls), len(samples), median, percentile(95), percentile(99))


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """Model over baseline, as one process saw both: above 1 where the model takes longer."""

    p50: float
    p95: float | None
    """None for fewer than RATIO_CALLS calls."""
    load: float


def ratios_of(
    latency_s: Sequence[float], baseline_s: Sequence[float], block_calls: int, load_s: float, baseline_load_s: float
) -> Ratios:
    """The ratios of a model and a baseline that took turns in one process, in blocks of `block_calls` calls.

    p50: the median over neighbouring blocks of the ratio of their medians, so that what slows down both for longer
    than a block cancels out. p95: of all calls; where they are few it lies too high or too low, for both alike.
    """
    model, baseline = np.asarray(latency_s, dtype=np.float64), np.asarray(baseline_s, dtype=np.float64)
    blocks = [np.median(calls.reshape(-1, block_calls), axis=1) for calls in (model, baseline)]
    enough = len(model) >= RATIO_CALLS
    return Ratios(
        p50=float(np.median(blocks[0] / blocks[1])),
        p95=float(np.percentile(model, 95) / np.percentile(baseline, 95)) if enough else None,
        load=load_s / baseline_load_s,
    )


def order_statistics(ordered: NDArray[np.float64], q: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The distribution-free interval of the quantile q from sorted samples (n,).

    The number of samples below the quantile is binomial (n, q); the interval lies between the order statistics
    that leave (1 − confidence) / 2 on either side (David and Nagaraja, Order Statistics, 2003, section 7.1), or at
    the smallest and largest sample where n is too small for that.
    """
    n = len(ordered)
    k = np.arange(1, n + 1)
    steps = np.log((n - k + 1) / k) + math.log(q / (1 - q))
    below = np.cumsum(np.exp(np.concatenate([[0.0], np.cumsum(steps)]) + n * math.log(1 - q)))  # P(count ≤ k)
    tail = (1 - confidence) / 2
    low = int(np.searchsorted(below, tail))  # the largest l with P(count < l) ≤ tail
    high = int(np.searchsorted(below, 1 - tail))  # the smallest u with P(count ≤ u) ≥ 1 − tail
    return float(ordered[max(low - 1, 0)]), float(ordered[min(high, n - 1)])


def between(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The geometric mean of one positive value per process, with Student's t interval on the logarithms.

    Logarithms, for disturbances multiply, and a time is never negative. One process gives no interval.
    """
    logs = np.log(np.maximum(values, 1e-12))
    centre = float(logs.mean())
    if len(logs) < 2:
        return Interval(math.exp(centre), math.exp(centre), math.exp(centre))
    half = student_t((1 + confidence) / 2, len(logs) - 1) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return Interval(exp(centre), exp(centre - half), exp(centre + half))
