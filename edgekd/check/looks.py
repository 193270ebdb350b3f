"""Planned looks at samples that arrive one after the other: when to stop, and what may be concluded then.

A test that looks after every sample and stops as soon as the answer is clear is wrong far more often than the error of
each look. Therefore there are few looks, planned in advance, which share the error (Bonferroni; the group-sequential
designs of Pocock 1977 and O'Brien and Fleming 1979 share it more efficiently, but need larger tables).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal, TypeVar

from edgekd.distributions import Interval, exp, student_t

__all__ = [
    "BUDGET_LOOKS",
    "CONFIRMATION",
    "ERROR",
    "PAIR_LOOKS",
    "PER_LOOK",
    "Decision",
    "below_limit",
    "difference_between",
    "mean_of",
    "noise",
    "not_slower",
    "resolution",
]

ERROR = 0.05
"""Two-sided error of a verdict, for all looks together."""
PAIR_LOOKS = (6, 12, 18, 24)
"""Number of processes in which a model and its baseline took turns, at each look."""
BUDGET_LOOKS = (8, 12, 16, 24)
"""Number of processes of the model alone, at each look."""
CONFIRMATION = 6
"""Number of fresh processes that must confirm a slowdown before it counts."""
PER_LOOK = 1 - ERROR / len(PAIR_LOOKS)
"""Confidence of the interval at one look."""
T = TypeVar("T")


@dataclass(frozen=True)
class Decision:
    """The conclusion from the samples so far."""

    outcome: Literal["pass", "fail", "inconclusive", "more"]
    bounds: Interval
    samples: int
    """Number of samples from which the bounds are computed."""
    look: int
    """Number of the look, counted from 1."""
    wanted: int = 0
    """For the outcome `more`: the total number of samples that the next step needs."""
    unconfirmed: int = 0
    """Number of slowdowns that fresh samples did not confirm."""


Estimator = Callable[[Sequence[T], float], Interval]


def below_limit(samples: Sequence[T], estimate: Estimator[T], limit: float) -> Decision:
    """Test whether a figure is at most `limit`: pass if its upper bound is, fail if its lower bound is above it.

    `estimate(samples, confidence)` returns the bounds. Every planned look that the samples allow is taken in order, so
    that the verdict depends only on the samples and not on when the function is called.
    """
    decision = None
    for look, count in enumerate(BUDGET_LOOKS, start=1):
        if len(samples) < count:
            return _more(decision, samples, estimate, look, count)
        bounds = estimate(samples[:count], PER_LOOK)
        outcome: Literal["pass", "fail", "inconclusive"] = "inconclusive"
        if bounds.high <= limit or bounds.low > limit:
            outcome = "pass" if bounds.high <= limit else "fail"
        decision = Decision(outcome, bounds, count, look)
        if outcome != "inconclusive":
            return decision
    assert decision is not None
    return decision


def not_slower(
    samples: Sequence[T], estimate: Estimator[T], limit: float, looks: Sequence[int] = PAIR_LOOKS
) -> Decision:
    """Test whether the ratio to the baseline is at most 1 + `limit`.

    pass: the upper bound is at most 1 + `limit`. fail: the lower bound is above 1 and the estimate is above 1 +
    `limit`, and the same holds for CONFIRMATION fresh samples alone. An unconfirmed slowdown continues with the next
    look.
    """
    decision, unconfirmed = None, 0
    for look, count in enumerate(looks, start=1):
        if len(samples) < count:
            return _more(decision, samples, estimate, look, count, unconfirmed)
        bounds = estimate(samples[:count], PER_LOOK)
        decision = Decision("inconclusive", bounds, count, look, unconfirmed=unconfirmed)
        if bounds.high <= 1 + limit:
            return Decision("pass", bounds, count, look, unconfirmed=unconfirmed)
        if not _slower(bounds, limit):
            continue
        both = count + CONFIRMATION
        if len(samples) < both:
            return Decision("more", bounds, count, look, both, unconfirmed)
        if _slower(estimate(samples[count:both], 1 - ERROR), limit):
            return Decision("fail", estimate(samples[:both], PER_LOOK), both, look, unconfirmed=unconfirmed)
        unconfirmed += 1
        decision = Decision("inconclusive", bounds, count, look, unconfirmed=unconfirmed)
    assert decision is not None
    return decision


def _more(
    before: Decision | None, samples: Sequence[T], estimate: Estimator[T], look: int, wanted: int, unconfirmed: int = 0
) -> Decision:
    """Return that more samples are needed, with the bounds from the samples so far."""
    nothing = Interval(math.nan, 0.0, math.inf)
    if before is not None:
        return Decision("more", before.bounds, before.samples, look, wanted, unconfirmed)
    bounds = estimate(samples, PER_LOOK) if len(samples) > 1 else nothing
    return Decision("more", bounds, len(samples), look, wanted, unconfirmed)


def _slower(bounds: Interval, limit: float) -> bool:
    return bounds.low > 1 and bounds.value > 1 + limit


def mean_of(ratios: Sequence[float], confidence: float) -> Interval:
    """Return the geometric mean of ratios, each from one process, with Student's t interval on the logarithms."""
    logs = [math.log(ratio) for ratio in ratios]
    half = student_t((1 + confidence) / 2, len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    centre = fmean(logs)
    return Interval(exp(centre), exp(centre - half), exp(centre + half))


def difference_between(old: Sequence[float]) -> Callable[[Sequence[float], float], Interval]:
    """Return an estimator of the ratio of geometric means between new figures and `old` ones, with Welch's interval.

    The old figures were measured at another time. The degrees of freedom are Welch and Satterthwaite's (Welch 1947),
    rounded down.
    """
    before = [math.log(max(value, 1e-12)) for value in old]

    def ratio(new: Sequence[float], confidence: float) -> Interval:
        now = [math.log(max(value, 1e-12)) for value in new]
        shares = [max(stdev(logs), 1e-9) ** 2 / len(logs) for logs in (now, before)]
        freedom = sum(shares) ** 2 / sum(s**2 / (len(logs) - 1) for s, logs in zip(shares, (now, before), strict=True))
        half = student_t((1 + confidence) / 2, max(1, int(freedom))) * math.sqrt(sum(shares))
        centre = fmean(now) - fmean(before)
        return Interval(exp(centre), exp(centre - half), exp(centre + half))

    return ratio


def noise(same: Sequence[float], count: int) -> float:
    """Return how far the mean of `count` ratios may differ from 1 by chance at one look, from an A/A measurement.

    `same` are the ratios of a model to itself, one per process.
    """
    spread = stdev([math.log(ratio) for ratio in same]) / math.sqrt(count)
    return math.expm1(student_t((1 + PER_LOOK) / 2, count - 1) * spread)


def resolution(same: Sequence[float], limit: float) -> float:
    """Return the smallest slowdown that fails with 95 % probability, at the last look and again on the fresh samples.

    At each of these two steps, the slowdown must be above chance and above `limit`, which happens with 97.5 %
    probability. The power of the t test is that of the noncentral t distribution, in Johnson and Welch's approximation
    (1940). The spread is estimated from `same`, so its precision depends on their number.
    """
    spread = stdev([math.log(ratio) for ratio in same])
    power = student_t(0.975, len(same) - 1)
    least = 0.0
    for count, confidence in ((PAIR_LOOKS[-1], PER_LOOK), (CONFIRMATION, 1 - ERROR)):
        freedom, error = count - 1, spread / math.sqrt(count)
        bound = student_t((1 + confidence) / 2, freedom)
        chance = (bound * (1 - 1 / (4 * freedom)) + power * math.sqrt(1 + bound**2 / (2 * freedom))) * error
        least = max(least, chance, math.log1p(limit) + power * error)
    return math.expm1(least)
