"""The few distributions that verdicts need. They are exact, and do without SciPy, because importing it takes longer
than a verdict."""

import bisect
import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

__all__ = ["CONFIDENCE", "Interval", "exp", "mcnemar", "smallest_significant", "student_t", "wilson"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and its interval, which has a confidence of 95 % unless stated otherwise."""

    value: float
    low: float
    high: float


def exp(x: float) -> float:
    """eˣ, limited to the range of a float, because damaged records can contain absurd times."""
    return math.exp(max(-700.0, min(x, 700.0)))


@cache  # every planned look needs the same few quantiles
def student_t(probability: float, freedom: int) -> float:
    """The quantile of Student's t distribution, by bisection of its distribution function.

    The function is the finite series for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4).
    """
    if probability < 0.5:
        return -student_t(1 - probability, freedom)
    inside = 2 * probability - 1
    low, high = 0.0, math.pi / 2  # of the angle arctan(t / √ν), in which the series is written
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < inside else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    """P(|T| ≤ √ν tan(angle))."""
    cosine = math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def wilson(hits: int, total: int) -> Interval:
    """A share and its 95 % Wilson score interval (Wilson 1927)."""
    z, p = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), hits / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return Interval(p, centre - half, centre + half)


def mcnemar(lost: int, won: int) -> float:
    """The exact two-sided p of McNemar's test (Edwards 1948; exact form: the sign test of Dixon and Mood 1946).

    `lost` is the number of inputs that only the baseline answers correctly, `won` the number that only the other model
    answers correctly. Inputs that both answer correctly, or both wrongly, do not show which model is better.
    """
    n = lost + won
    if n == 0:
        return 1.0
    tail, ways = 0, 1
    for k in range(min(lost, won) + 1):
        tail += ways
        ways = ways * (n - k) // (k + 1)
    return float(min(1.0, 2 * tail / 2**n))


def smallest_significant(discordant: int, level: float = 0.05) -> int:
    """The smallest net number of lost inputs that McNemar's test finds significant if the two models' answers differ on
    `discordant` inputs.

    At the level of 0.05, at least six inputs must differ, and with six, all must be lost.
    """
    n = max(discordant, math.ceil(1 - math.log2(level)))
    nets = range(n % 2, n + 1, 2)
    # p falls as the net grows, and the largest net (all lost) has p = 2 / 2ⁿ.
    return nets[bisect.bisect_left(nets, True, key=lambda net: mcnemar((n + net) // 2, (n - net) // 2) <= level)]
