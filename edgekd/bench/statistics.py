"""Statistics of recorded samples; they are computed when records are read."""

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
    "bootstrap",
    "latency_of",
    "min_calls_for",
    "order_statistics",
    "ratios_of",
    "wilson",
]

DRAWS = 4_000
"""Number of bootstrap samples."""
RATIO_CALLS = 30
"""Minimum number of calls per process for a ratio of p95."""


def min_calls_for(percentile: float) -> int:
    """Return the minimum number of calls for which a percentile is given.

    The largest of n calls lies above the percentile q with probability 1 − qⁿ, which must be at least 99 %: 90 calls
    for p95, 459 for p99 (the order-statistic bound of a one-sided 99 % tolerance limit).
    """
    q = percentile / 100
    return math.ceil(math.log(0.01) / math.log(q))


@dataclass(frozen=True)
class Latency:
    """Percentiles over all processes in seconds, each with the wider of two intervals; p99 is advisory."""

    calls: int
    processes: int
    p50: Interval
    p95: Interval | None
    p99: Interval | None


def latency_of(processes: Sequence[Sequence[float]], confidence: float = CONFIDENCE) -> Latency:
    """Return percentiles of the pooled calls of several processes; None where there are too few calls.

    Every process has the same weight: only the first calls of each are used, as many as the slowest process made.
    Otherwise fast processes would outweigh slow ones.

    The interval is the union of two: the order-statistic bound of the pooled calls, and the interval over the
    processes' own percentiles, because calls of one process tell little about the next process.
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
    """Ratios of model to baseline within one process; a ratio above 1 means that the model takes longer."""

    p50: float
    p95: float | None
    """None if there are fewer than RATIO_CALLS calls."""
    load: float


def ratios_of(
    latency_s: Sequence[float], baseline_s: Sequence[float], block_calls: int, load_s: float, baseline_load_s: float
) -> Ratios:
    """Return the ratios of a model and a baseline that took turns in one process, in blocks of `block_calls` calls.

    p50 is the median, over neighbouring blocks, of the ratio of their medians, so that a disturbance of both that lasts
    longer than a block cancels out. p95 is the ratio of the percentiles of all calls; with few calls both percentiles
    are biased in the same direction.
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
    """Return the distribution-free interval of the quantile q from sorted samples (n,).

    The number of samples below the quantile is binomial (n, q). The interval lies between the order statistics that
    leave (1 − confidence) / 2 on either side (David and Nagaraja, Order Statistics, 2003, section 7.1), or at the
    smallest and largest sample if n is too small for that.
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
    """Return the geometric mean of one positive value per process, with Student's t interval on the logarithms.

    Logarithms are used because disturbances multiply and times are never negative. For one process, the interval has no
    width.
    """
    logs = np.log(np.maximum(values, 1e-12))
    centre = float(logs.mean())
    if len(logs) < 2:
        return Interval(math.exp(centre), math.exp(centre), math.exp(centre))
    half = student_t((1 + confidence) / 2, len(logs) - 1) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return Interval(exp(centre), exp(centre - half), exp(centre + half))


def bootstrap(
    each: Sequence[float] | NDArray[np.float64], value: float | None = None, confidence: float = CONFIDENCE
) -> Interval:
    """Return `value` (by default the mean of `each`) with the bootstrap interval of the mean of `each` (n,) around it.

    This is the percentile interval (Efron 1979) over DRAWS samples of n examples, which are drawn from a fixed seed, so
    equal figures give equal intervals. It is moved by the difference of `value` and the mean, for scores that are not a
    mean over examples.
    """
    figures = np.asarray(each, dtype=np.float64)
    generator, count = np.random.default_rng(0), len(figures)
    means = np.array([figures[generator.integers(count, size=count)].mean() for _ in range(DRAWS)])
    centre = float(figures.mean())
    middle = centre if value is None else value
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(middle, middle + float(low) - centre, middle + float(high) - centre)
