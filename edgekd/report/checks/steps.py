"""Find steps in a series of figures: permanent changes of the level, as opposed to noise and single outliers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Literal

import numpy as np

from edgekd.imports import require

__all__ = ["LevelStep", "Scale", "find_steps"]

Scale = Literal["ratio", "points"]
"""The scale of differences: percent of the figure for latencies and sizes, percentage points for shares."""

SHORTEST = 3
"""Smallest number of figures in a level. One or two slow figures may come from a short load on a shared machine."""

PENALTY = 30.0
"""The penalty for each step, in variances of the noise.

In pure noise, the gain from one more step is a χ² variable with one degree of freedom, maximised over all positions. A
penalty of 18 would be enough for 60 figures if the noise were known. The noise is estimated, and sometimes a quarter
too low, so the penalty is 30: among series of 6 to 300 figures of white noise, fewer than 1 in 100 get a step. A step
of five times the noise is found after three figures. A step of three times the noise is found in the middle of a long
series.
"""

LEAST = {"ratio": math.log(1.01), "points": 0.2}
"""The smallest relevant step: 1 %, or 0.2 points."""

LEAST_IN_NOISE = 2.0
"""The smallest step in standard deviations of the noise. Machines whose speed drifts slowly cause smaller steps."""

FAR = 4.0
"""A figure is an outlier if it is this many standard deviations away from the median of five figures."""


@dataclass(frozen=True)
class LevelStep:
    """A new level, which begins at the figure with index `at` (from 0), and the medians of the old and the new
    level."""

    at: int
    before: float
    after: float
    change: float
    """The change in percent of the old level, or in points."""


def find_steps(figures: Sequence[float], scale: Scale = "ratio") -> list[LevelStep]:
    """Find the steps in figures of one machine, which are in chronological order. With the scale `ratio`, all figures
    must be positive.

    First, single and double outliers are replaced by the median of five figures. Then the division into levels with the
    lowest cost is computed (least squares, PELT). Raises UnavailableError without ruptures.
    """
    if len(figures) < 2 * SHORTEST:
        return []
    ruptures = require("ruptures", "report", "the history of checks")
    values = [math.log(figure) for figure in figures] if scale == "ratio" else list(figures)
    noise = max(_noise(values), LEAST[scale] / 10)
    calm = [[value / noise] for value in _without_outliers(values, FAR * noise)]
    search = ruptures.KernelCPD(kernel="linear", min_size=SHORTEST).fit(np.array(calm))
    places = [int(end) for end in search.predict(pen=PENALTY)][:-1]
    places = _worth_telling(values, places, max(LEAST[scale], LEAST_IN_NOISE * noise))
    levels = _levels(figures, places)
    return [
        LevelStep(at, before, after, 100 * (after / before - 1) if scale == "ratio" else after - before)
        for at, (before, after) in zip(places, pairwise(levels), strict=True)
    ]


def _noise(values: Sequence[float]) -> float:
    """The standard deviation of the noise, from the median difference of neighbouring figures, so that steps and
    outliers have little influence.

    In longer series, second and third neighbours are used as well, because neighbouring figures that were measured in
    the same night are too similar.
    """
    lags = (1, 2, 3) if len(values) >= 20 else (1,)
    apart = [median(abs(b - a) for a, b in zip(values, values[lag:], strict=False)) for lag in lags]
    return 1.4826 * max(apart) / math.sqrt(2)


def _without_outliers(values: Sequence[float], far: float) -> list[float]:
    """Hampel's filter. It keeps levels of three figures, also at the ends, and removes outliers of one or two
    figures."""
    middle = []
    for place, value in enumerate(values):
        first = min(max(place - 2, 0), len(values) - 5)
        usual = median(values[first : first + 5])
        middle.append(usual if abs(value - usual) > far else value)
    return middle


def _worth_telling(values: Sequence[float], places: list[int], least: float) -> list[int]:
    """Remove the smallest step repeatedly, until every step is large enough."""
    while places:
        levels = _levels(values, places)
        sizes = [abs(after - before) for before, after in pairwise(levels)]
        smallest = min(range(len(sizes)), key=sizes.__getitem__)
        if sizes[smallest] >= least:
            break
        places = places[:smallest] + places[smallest + 1 :]
    return places


def _levels(values: Sequence[float], places: Sequence[int]) -> list[float]:
    ends = [0, *places, len(values)]
    return [median(values[first:last]) for first, last in pairwise(ends)]
