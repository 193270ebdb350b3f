"""Planned looks: what is said at which of them, and how often it is wrong."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from edgekd.check.looks import (
    BUDGET_LOOKS,
    CONFIRMATION,
    ERROR,
    PAIR_LOOKS,
    PER_LOOK,
    Decision,
    below_limit,
    difference_between,
    mean_of,
    not_slower,
    resolution,
)
from edgekd.check.looks import (
    noise as noise_of,
)
from edgekd.distributions import Interval

LIMIT = 0.025
SLOWER = Interval(1.04, 1.02, 1.06)
NOT_SURE = Interval(1.04, 0.99, 1.09)
"""Above the limit, but not significant."""
SLIGHT = Interval(1.02, 1.01, 1.03)
"""Significant, but not above the limit."""
FINE = Interval(1.0, 0.99, 1.02)


class Scripted:
    """Bounds by what is looked at: (first sample, how many); whoever looks at anything else is refused."""

    def __init__(self, bounds: dict[tuple[int, int], Interval]) -> None:
        self.bounds = bounds
        self.asked: list[tuple[int, int, float]] = []

    def __call__(self, samples: Sequence[int], confidence: float) -> Interval:
        self.asked.append((samples[0], len(samples), round(confidence, 6)))
        return self.bounds[samples[0], len(samples)]


def slower(bounds: dict[tuple[int, int], Interval], count: int) -> Decision:
    return not_slower(range(count), Scripted(bounds), LIMIT)


# --- against a baseline ---


def test_the_error_is_shared_between_the_looks() -> None:
    assert len(PAIR_LOOKS) == len(BUDGET_LOOKS) == 4
    assert pytest.approx(0.9875) == PER_LOOK
    assert (ERROR, CONFIRMATION) == (0.05, 6)


def test_no_slower_passes_at_the_first_look() -> None:
    found = slower({(0, 6): FINE}, 6)
    assert found == Decision("pass", FINE, 6, 1)
    assert slower({(0, 6): Interval(1.0, 0.9, 1.025)}, 6).outcome == "pass"  # the limit itself is within it
    assert slower({(0, 6): Interval(0.8, 0.79, 0.81)}, 6).outcome == "pass"


@pytest.mark.parametrize("count", [0, 1])
def test_without_samples_there_are_no_bounds(count: int) -> None:
    found = slower({}, count)
    assert (found.outcome, found.samples, found.look, found.wanted) == ("more", count, 1, 6)
    assert math.isnan(found.bounds.value)
    assert (found.bounds.low, found.bounds.high) == (0.0, math.inf)


def test_too_few_samples_want_more_whatever_they_show() -> None:
    assert slower({(0, 5): SLOWER}, 5) == Decision("more", SLOWER, 5, 1, 6)
    assert slower({(0, 5): FINE}, 5) == Decision("more", FINE, 5, 1, 6)
    # After a look the bounds are still that look's: another one now was not planned.
    assert slower({(0, 6): NOT_SURE}, 11) == Decision("more", NOT_SURE, 6, 2, 12)


@pytest.mark.parametrize("bounds", [NOT_SURE, SLIGHT])
def test_a_slowdown_needs_both_significance_and_size(bounds: Interval) -> None:
    script = Scripted({(0, look): bounds for look in PAIR_LOOKS})  # nothing is there to be confirmed
    assert not_slower(range(30), script, LIMIT) == Decision("inconclusive", bounds, 24, 4)
    assert script.asked == [(0, look, 0.9875) for look in PAIR_LOOKS]


def test_a_slowdown_counts_once_fresh_samples_find_it_again() -> None:
    bounds = {(0, 6): SLOWER, (6, 6): SLOWER, (0, 12): Interval(1.05, 1.03, 1.07)}
    for count in range(6, 12):
        assert slower(bounds, count) == Decision("more", SLOWER, 6, 1, 12)
    script = Scripted(bounds)
    assert not_slower(range(12), script, LIMIT) == Decision("fail", bounds[0, 12], 12, 1)
    assert script.asked == [(0, 6, 0.9875), (6, 6, 0.95), (0, 12, 0.9875)]


@pytest.mark.parametrize("fresh", [NOT_SURE, SLIGHT, FINE, Interval(0.9, 0.8, 0.95)])
def test_what_fresh_samples_do_not_confirm_goes_on_to_the_next_look(fresh: Interval) -> None:
    bounds = {(0, 6): SLOWER, (6, 6): fresh, (0, 12): FINE}
    assert slower(bounds, 12) == Decision("pass", FINE, 12, 2, unconfirmed=1)
    later = {(0, 6): SLOWER, (6, 6): fresh, (0, 12): SLOWER, (12, 6): SLOWER, (0, 18): SLOWER}
    assert slower(later, 12) == Decision("more", SLOWER, 12, 2, 18, unconfirmed=1)
    assert slower(later, 18) == Decision("fail", SLOWER, 18, 2, unconfirmed=1)


def test_never_confirmed_is_inconclusive() -> None:
    bounds = {(0, look): SLOWER for look in PAIR_LOOKS} | {(look, 6): FINE for look in PAIR_LOOKS}
    assert slower(bounds, 29) == Decision("more", SLOWER, 24, 4, 30, unconfirmed=3)
    assert slower(bounds, 30) == Decision("inconclusive", SLOWER, 24, 4, unconfirmed=4)


def decided(series: Sequence[float], count: int) -> Decision:
    return not_slower(series[:count], mean_of, LIMIT)


@pytest.mark.parametrize(("ratio", "spread"), [(1.0, 0.005), (1.05, 0.005), (1.03, 0.02), (1.02, 0.02), (1.0, 0.1)])
def test_the_verdict_depends_on_the_samples_alone(ratio: float, spread: float) -> None:
    for seed in range(20):
        series = list(ratio * np.random.default_rng(seed).lognormal(0.0, spread, 40))
        whole = decided(series, 40)
        # Whoever asks after each sample hears «more», until he hears what the whole series says.
        heard = [decided(series, count) for count in range(41)]
        first = next(count for count, found in enumerate(heard) if found.outcome != "more")
        assert all(found == whole for found in heard[first:])
        # Each «more» but the last of its kind named a number of samples not yet there.
        assert all(found.wanted > count for count, found in enumerate(heard[:first]))
        assert first == heard[first - 1].wanted


# --- against a budget ---


def test_a_budget_is_judged_at_the_planned_looks_alone() -> None:
    below, above, around = Interval(0.9, 0.8, 1.0), Interval(1.2, 1.1, 1.3), Interval(1.0, 0.9, 1.1)
    assert below_limit(range(8), Scripted({(0, 8): below}), 1.0) == Decision("pass", below, 8, 1)
    assert below_limit(range(8), Scripted({(0, 8): above}), 1.0) == Decision("fail", above, 8, 1)
    assert below_limit(range(8), Scripted({(0, 8): Interval(1.1, 1.0, 1.2)}), 1.0).outcome == "more"
    assert below_limit(range(30), Scripted({(0, 8): below}), 1.0) == Decision("pass", below, 8, 1)
    assert below_limit(range(7), Scripted({(0, 7): below}), 1.0) == Decision("more", below, 7, 1, 8)
    later = {(0, 8): around, (0, 12): around, (0, 16): above}
    assert below_limit(range(11), Scripted(later), 1.0) == Decision("more", around, 8, 2, 12)
    assert below_limit(range(12), Scripted(later), 1.0) == Decision("more", around, 12, 3, 16)
    assert below_limit(range(30), Scripted(later), 1.0) == Decision("fail", above, 16, 3)
    never = Scripted({(0, look): around for look in BUDGET_LOOKS})
    assert below_limit(range(50), never, 1.0) == Decision("inconclusive", around, 24, 4)
    assert never.asked == [(0, look, 0.9875) for look in BUDGET_LOOKS]


# --- intervals ---


def test_the_interval_of_ratios_is_scipys_on_logarithms() -> None:
    ratios = [1.02, 0.99, 1.05, 1.01, 0.97, 1.2]
    for confidence in (0.95, PER_LOOK):
        found = mean_of(ratios, confidence)
        expected = stats.ttest_1samp(np.log(ratios), 0.0).confidence_interval(confidence)
        assert found.value == pytest.approx(stats.gmean(ratios))
        assert [found.low, found.high] == pytest.approx(np.exp([expected.low, expected.high]), rel=1e-9)
    turned = mean_of([1 / ratio for ratio in ratios], 0.95)
    assert [1 / turned.high, 1 / turned.low] == pytest.approx([mean_of(ratios, 0.95).low, mean_of(ratios, 0.95).high])


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_of_a_difference_is_welchs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    old, new = rng.lognormal(0.0, 0.01, 8), rng.lognormal(0.05, 0.04 * (seed + 1), 12)
    found = difference_between(list(old))(list(new), PER_LOOK)
    test = stats.ttest_ind(np.log(new), np.log(old), equal_var=False)
    scipys = test.confidence_interval(PER_LOOK)
    assert found.value == pytest.approx(stats.gmean(new) / stats.gmean(old))
    assert found.low <= math.exp(scipys.low) < math.exp(scipys.high) <= found.high
    # It is wider by the degrees of freedom that were rounded down, and by nothing else.
    wider = stats.t.ppf((1 + PER_LOOK) / 2, math.floor(test.df)) / stats.t.ppf((1 + PER_LOOK) / 2, test.df)
    assert math.log(found.high / found.low) == pytest.approx(wider * (scipys.high - scipys.low), rel=1e-9)


def test_equal_figures_and_zeros_are_no_error() -> None:
    same = difference_between([2.0] * 8)([2.0] * 8, PER_LOOK)
    assert [same.value, same.low, same.high] == pytest.approx([1.0] * 3)
    assert difference_between([0.0, 0.0])([1.0, 1.0], PER_LOOK).low > 1
    assert mean_of([1.0] * 6, PER_LOOK) == Interval(1.0, 1.0, 1.0)


# --- how often it is wrong ---

SERIES, LONGEST = 2_000, PAIR_LOOKS[-1] + CONFIRMATION


def noise(kind: str, spread: float) -> NDArray[np.float64]:
    """Logarithms (series, process) of that standard deviation."""
    rng = np.random.default_rng(7)
    if kind == "normal":
        return rng.normal(0.0, spread, (SERIES, LONGEST))
    return spread / math.sqrt(3) * rng.standard_t(3, (SERIES, LONGEST))


def outcomes(ratio: float, logs: NDArray[np.float64]) -> list[str]:
    return [decided(list(series), LONGEST).outcome for series in ratio * np.exp(logs)]


@pytest.mark.parametrize("kind", ["normal", "heavy tails"])
def test_false_alarms_are_rare_where_peeking_alarms_often(kind: str) -> None:
    logs = noise(kind, 0.06)  # so much that the limit lies within the noise
    counts = np.arange(3, PAIR_LOOKS[-1] + 1)
    means = np.cumsum(logs, axis=1)[:, counts - 1] / counts
    squares = np.cumsum(logs**2, axis=1)[:, counts - 1] / counts
    errors = np.sqrt((squares - means**2) / (counts - 1))
    clear = (means > np.log1p(LIMIT)) & (means - stats.t.ppf(0.975, counts - 1) * errors > 0)
    peeking = np.mean(clear.any(axis=1))  # a 95 % interval after every process, until one says «slower»
    planned = np.mean([outcome == "fail" for outcome in outcomes(1.0, logs)])
    assert peeking > 0.05
    assert planned <= 0.01


@pytest.mark.parametrize("kind", ["normal", "heavy tails"])
def test_a_quiet_machine_neither_alarms_nor_overlooks(kind: str) -> None:
    logs = noise(kind, 0.005)[:500]
    assert outcomes(1.0, logs).count("pass") >= 0.99 * len(logs)
    assert outcomes(1.05, logs).count("fail") >= 0.95 * len(logs)


@pytest.mark.parametrize("limit", [0.0, 0.025])
def test_what_the_resolution_promises_is_found(limit: float) -> None:
    rng = np.random.default_rng(0)
    same = list(rng.lognormal(0.0, 0.02, 4_000))
    least = resolution(same, limit)
    ratios = rng.lognormal(math.log1p(least), 0.02, (400, PAIR_LOOKS[-1] + CONFIRMATION))
    found = np.mean([not_slower(list(row), mean_of, limit).outcome == "fail" for row in ratios])
    assert found >= 0.93
    less = ratios / (1 + least) * (1 + limit + (least - limit) / 8)
    assert np.mean([not_slower(list(row), mean_of, limit).outcome == "fail" for row in less]) < 0.75
    assert resolution(same[:6], limit) > limit  # and few say little of the spread


def test_noise_is_what_chance_gives_at_one_look() -> None:
    rng = np.random.default_rng(1)
    same = list(rng.lognormal(0.0, 0.01, 4_000))
    beyond = np.mean(rng.normal(0.0, 0.01, (20_000, 24)).mean(axis=1) > math.log1p(noise_of(same, 24)))
    assert 0.001 < beyond < (1 - PER_LOOK) / 2  # below it, for the t of few processes is wider than the normal
    assert noise_of(same, 24) < noise_of(same, 6)
