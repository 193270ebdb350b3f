"""Steps: found where they are, and not where there are none; rates on simulated series with fixed seeds."""

import sys
from collections.abc import Callable

import numpy as np
import pytest
from numpy.random import Generator
from numpy.typing import NDArray

from edgekd.errors import UnavailableError
from edgekd.report.checks.steps import LevelStep, find_steps

pytest.importorskip("ruptures", reason="ruptures is not installed")

Series = NDArray[np.float64]
SERIES, POINTS, NOISE = 200, 60, 0.01


def white(random: Generator, points: int = POINTS) -> Series:
    """Latencies around 0.2 ms with 1 % noise."""
    return np.asarray(0.2 * np.exp(NOISE * random.standard_normal(points)))


def with_outliers(random: Generator) -> Series:
    """One in twenty is 5 to 30 % slower."""
    hit = random.random(POINTS) < 0.05
    return white(random) * np.where(hit, 1 + random.uniform(0.05, 0.3, POINTS), 1)


def wandering(random: Generator) -> Series:
    """Each deviation is half the one before and half its own."""
    own = random.standard_normal(POINTS + 50) * np.sqrt(0.75)
    for place in range(1, len(own)):
        own[place] += 0.5 * own[place - 1]
    return np.asarray(0.2 * np.exp(NOISE * own[50:]))


def heavy_tailed(random: Generator) -> Series:
    return np.asarray(0.2 * np.exp(NOISE * random.standard_t(3, POINTS)))


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (white, 0.02),
        (lambda random: white(random, 6), 0.02),
        (lambda random: white(random, 12), 0.02),
        (lambda random: white(random, 300), 0.02),
        (heavy_tailed, 0.02),
        (wandering, 0.04),
        (with_outliers, 0.04),
    ],
    ids=["white", "6 points", "12 points", "300 points", "heavy tails", "wandering", "5 % outliers"],
)
def test_noise_alone_has_no_steps(make: Callable[[Generator], Series], most: float) -> None:
    random = np.random.default_rng(0)
    assert sum(bool(find_steps(make(random).tolist())) for _ in range(SERIES)) <= most * SERIES


@pytest.mark.parametrize("size", [0.05, -0.05])
def test_a_step_of_5_percent_is_found_where_it_is(size) -> None:
    random = np.random.default_rng(1)
    found = 0
    for _ in range(SERIES):
        at = int(random.integers(5, POINTS - 5))
        series = white(random)
        series[at:] *= 1 + size
        steps = find_steps(series.tolist())
        found += len(steps) == 1 and abs(steps[0].at - at) <= 2 and abs(steps[0].change - 100 * size) < 2
    assert found >= 0.95 * SERIES


def test_a_step_is_found_once_it_has_lasted_three_figures() -> None:
    random = np.random.default_rng(2)
    series = white(random, 40)
    assert [find_steps([*series, *[0.23] * length]) for length in (1, 2)] == [[], []]
    (step,) = find_steps([*series, *[0.23] * 3])
    assert (step.at, step.after) == (40, 0.23)


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("at", [0, 1, 2, 20, 37, 38])
@pytest.mark.parametrize("factor", [0.5, 1.1, 3.0])
def test_one_or_two_outliers_are_no_step(length, at, factor) -> None:
    series = white(np.random.default_rng(3), 40)
    series[at : at + length] *= factor
    assert find_steps(series.tolist()) == []


def test_several_steps_with_the_medians_of_the_levels() -> None:
    up, down = find_steps([100.0] * 5 + [110.0] * 4 + [99.0] * 3)
    assert (up, down) == (LevelStep(5, 100.0, 110.0, up.change), LevelStep(9, 110.0, 99.0, down.change))
    assert [up.change, down.change] == pytest.approx([10, -10])


def test_exact_figures_count_from_one_percent_on() -> None:
    assert find_steps([30_000.0] * 5 + [30_200.0] * 5) == []
    (step,) = find_steps([30_000.0] * 5 + [30_400.0] * 5)
    assert [step.at, step.before, step.after, step.change] == pytest.approx([5, 30_000, 30_400, 4 / 3])


def test_shares_are_held_by_points() -> None:
    assert find_steps([92.0] * 5 + [91.9] * 5, "points") == []
    (step,) = find_steps([0.0] * 5 + [-1.5] * 5, "points")
    assert (step.at, step.change) == (5, -1.5)


def test_a_series_too_short_for_two_levels_has_no_steps() -> None:
    assert [find_steps([1.0, 1.0, 1.0, 2.0, 2.0][:length]) for length in range(6)] == [[]] * 6


def test_without_ruptures_it_is_one_line_with_the_command(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ruptures", None)
    with pytest.raises(
        UnavailableError, match=r'^the history of checks needs ruptures; pip install "edgekd\[report\]"$'
    ):
        find_steps([1.0] * 6)
