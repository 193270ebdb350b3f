"""The distributions of the verdicts, against SciPy and against counting."""

import pytest
from scipy import stats

from edgekd.distributions import mcnemar, smallest_significant, student_t


@pytest.mark.parametrize("probability", [0.01, 0.2, 0.5, 0.7, 0.9, 0.95, 0.975, 0.99375, 0.995, 0.9999])
def test_quantiles_of_students_t_are_scipys(probability: float) -> None:
    freedoms = range(1, 101)
    expected = stats.t.ppf(probability, freedoms)
    assert [student_t(probability, freedom) for freedom in freedoms] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_p_of_mcnemar_is_that_of_the_sign_test() -> None:
    pairs = [(lost, won) for lost in range(13) for won in range(13) if lost + won]
    for lost, won in [*pairs, (30, 11), (60, 61), (1_000, 1_100), (4_000, 3_700), (3_000, 0)]:
        assert mcnemar(lost, won) == pytest.approx(stats.binomtest(lost, lost + won).pvalue, rel=1e-9), (lost, won)
    assert mcnemar(0, 0) == 1.0


def least_by_counting(discordant: int, level: float) -> int:
    """Nets of the same parity, one after the other."""
    nets = range(discordant % 2, discordant + 1, 2)
    return next(net for net in nets if stats.binomtest((discordant + net) // 2, discordant).pvalue <= level)


@pytest.mark.parametrize(("level", "least"), [(0.05, 6), (0.01, 8), (0.5, 2)])
def test_the_smallest_loss_that_can_be_shown(level: float, least: int) -> None:
    for discordant in range(least):  # even all of them lost would show nothing
        assert smallest_significant(discordant, level) == least
    for discordant in [*range(least, 40), 101, 400]:
        assert smallest_significant(discordant, level) == least_by_counting(discordant, level), discordant


def test_the_smallest_loss_of_a_large_set_takes_no_time_to_speak_of() -> None:
    net = smallest_significant(5_000)
    assert mcnemar(2_500 + net // 2, 2_500 - net // 2) <= 0.05 < mcnemar(2_499 + net // 2, 2_501 - net // 2)
