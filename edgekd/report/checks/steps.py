"""Steps in a series of figures: where the level changed for good, told apart from noise and single outliers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Literal

import numpy as np

from edgekd.imports import require

__all__ = ["Scale", "Step", "find_steps"]

Scale = Literal["ratio", "points"]
"""How differences count: latencies and sizes in percent of the figure, shares in points."""

SHORTEST = 3
"""Figures of the least level. Two of them may be a bad hour of a shared machine."""

PENALTY = 30.0
"""What a further step costs, in variances of the noise.

A step takes the gain of a χ² variable with one degree of freedom, the largest over all places: 18 would do for 60
figures if the noise were known. It is estimated, at times too low by a quarter, hence 30: of series of 6 to 300
figures of white noise fewer than 1 in 100 get a step. A step of five times the noise is found once it has lasted
three figures, one of three times the noise in the middle of a long series.
"""

LEAST = {"ratio": math.log(1.01), "points": 0.2}
"""Nobody acts on less: 1 %, or 0.2 points."""

LEAST_IN_NOISE = 2.0
"""A step is at least so many standard deviations of the noise: machines that wander slowly make smaller ones."""

FAR = 4.0
"""An outlier is so many standard deviations from the median of five figures."""


@dataclass(frozen=True)
class Step:
    """A new level: from figure number `at` (0 is the first) on, with the medians of the level before and of its own."""

    at: int
    before: float
    after: float
    change: float
    """In percent of the level before, or in points."""


def find_steps(figures: Sequence[float], scale: Scale = "ratio") -> list[Step]:
    """The steps in figures in the order of time, all from one machine; positive ones if they are held by ratio.

    The cheapest division into levels (least squares, PELT) after single and double outliers are replaced by the
    median of five figures. UnavailableError without ruptures.
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
        Step(at, before, after, 100 * (after / before - 1) if scale == "ratio" else after - before)
        for at, (before, after) in zip(places, pairwise(levels), strict=True)
    ]


def _noise(values: Sequence[float]) -> float:
    """Standard deviation without steps and outliers: from the median difference of neighbours.

    In longer series also of second and third neighbours: next to each other, figures of one night are too alike.
    """
    lags = (1, 2, 3) if len(values) >= 20 else (1,)
    apart = [median(abs(b - a) for a, b in zip(values, values[lag:], strict=False)) for lag in lags]
    return 1.4826 * max(apart) / math.sqrt(2)


def _without_outliers(values: Sequence[float], far: float) -> list[float]:
    """Hampel's filter: it keeps a level of three, at the ends too, and removes what lasts one or two figures."""
    middle = []
    for place, value in enumerate(values):
        first = min(max(place - 2, 0), len(values) - 5)
        usual = median(values[first : first + 5])
        middle.append(usual if abs(value - usual) > far else value)
    return middle


def _worth_telling(values: Sequence[float], places: list[int], least: float) -> list[int]:
    """Without the smallest step, again and again, until each is large enough."""
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
