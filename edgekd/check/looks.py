"""Planned looks at samples that come in one after the other: when to stop, and what may be said then.

Who looks after every sample and stops when the answer is clear is wrong far more often than each look would be. So the
looks are few and planned, and share the error between them (Bonferroni; the group-sequential designs of Pocock 1977
and O'Brien and Fleming 1979 share it less wastefully, and need more of a table).
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
"""Two-sided error of a verdict, over all looks together."""
PAIR_LOOKS = (6, 12, 18, 24)
"""Processes in which a model and its baseline took turns, at each look."""
BUDGET_LOOKS = (8, 12, 16, 24)
"""Processes of the model alone, at each look."""
CONFIRMATION = 6
"""Fresh processes that must find a slowdown again before it counts."""
PER_LOOK = 1 - ERROR / len(PAIR_LOOKS)
"""Confidence of the interval at one look."""
T = TypeVar("T")


@dataclass(frozen=True)
class Decision:
    """What the samples say so far."""

    outcome: Literal["pass", "fail", "inconclusive", "more"]
    bounds: Interval
    samples: int
    """How many the bounds rest on."""
    look: int
    """From 1."""
    wanted: int = 0
    """`more`: this many samples in all decide the next step."""
    unconfirmed: int = 0
    """Slowdowns that fresh samples did not confirm."""


Estimator = Callable[[Sequence[T], float], Interval]


def below_limit(samples: Sequence[T], estimate: Estimator[T], limit: float) -> Decision:
    """Whether a figure is at most `limit`: pass once its upper bound is, fail once its lower bound is above.

    `estimate(samples, confidence)` gives the bounds. Every planned look that the samples allow is taken in order, so
    that the verdict depends on the samples alone and not on who asks when.
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
    """Whether the ratio to the baseline is at most 1 + `limit`.

    pass: the upper bound is. fail: the ratio is above 1 (the lower bound is) and its estimate above 1 + `limit`, and
    CONFIRMATION fresh samples, taken alone, say both again. What is not confirmed goes on to the next look.
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
    """More samples are wanted; until then the bounds are those of what there is."""
    nothing = Interval(math.nan, 0.0, math.inf)
    if before is not None:
        return Decision("more", before.bounds, before.samples, look, wanted, unconfirmed)
    bounds = estimate(samples, PER_LOOK) if len(samples) > 1 else nothing
    return Decision("more", bounds, len(samples), look, wanted, unconfirmed)


def _slower(bounds: Interval, limit: float) -> bool:
    return bounds.low > 1 and bounds.value > 1 + limit


def mean_of(ratios: Sequence[float], confidence: float) -> Interval:
    """The geometric mean of ratios, each of one process, with Student's t interval on the logarithms."""
    logs = [math.log(ratio) for ratio in ratios]
    half = student_t((1 + confidence) / 2, len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    centre = fmean(logs)
    return Interval(exp(centre), exp(centre - half), exp(centre + half))


def difference_between(old: Sequence[float]) -> Callable[[Sequence[float], float], Interval]:
    """An estimate for new figures against `old` ones of another time: the ratio of geometric means, Welch's interval.

    The degrees of freedom are Welch and Satterthwaite's (Welch 1947), rounded down.
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
    """How far from 1 the mean of `count` ratios may lie by chance at one look, by the spread of an A/A measurement.

    `same` are the ratios of a model to itself, one a process.
    """
    spread = stdev([math.log(ratio) for ratio in same]) / math.sqrt(count)
    return math.expm1(student_t((1 + PER_LOOK) / 2, count - 1) * spread)


def resolution(same: Sequence[float], limit: float) -> float:
    """The smallest slowdown that fails with 95 % probability: at the last look, and again on the fresh samples.

    Either must lie above chance and above `limit`, and does with 97.5 %. The power of the t test is that of the
    noncentral t distribution, in Johnson and Welch's approximation (1940); `same` tells the spread no better than they
    are many.
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
