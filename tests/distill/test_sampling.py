"""Means within four standard errors, variances against closed forms or numerical integrals."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from edgekd.distill.sampling import generator_for, sample

KINDS = ["gaussian", "gamma", "poisson", "points"]
DRAWS = 200_000
SHAPES = {
    "even": [0.25, 0.25, 0.25, 0.25],
    "skewed": [0.7, 0.2, 0.09, 0.01],
    "certain": [0.9998, 1e-4, 9.9e-5, 1e-6],
    "with a zero": [0.6, 0.4, 0.0, 0.0],
}


def draws(p: list[float], kind: str, strength: float, seed: int = 0) -> Tensor:
    rows = torch.tensor(p, dtype=torch.float64).expand(DRAWS, -1)
    return sample(rows, kind, strength, generator_for(seed, 0))


def variance_error(values: Tensor) -> Tensor:
    """Standard error of the sample variance of each column."""
    centred = values - values.mean(dim=0)
    fourth, second = (centred**4).mean(dim=0), (centred**2).mean(dim=0)
    return ((fourth - second**2) / len(values)).sqrt()


@pytest.mark.parametrize("p", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("strength", [0.4, 3.0, 25.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_is_p_and_every_draw_a_distribution(kind: str, strength: float, p: list[float]) -> None:
    drawn = draws(p, kind, strength)
    assert drawn.min() >= 0 and torch.allclose(drawn.sum(dim=1), torch.ones(DRAWS, dtype=torch.float64))
    error = drawn.std(dim=0) / math.sqrt(DRAWS)
    # Where next to no draw differs, the largest possible variance, p (1 − p), is taken: the sampled one is too small.
    largest = [q * (1 - q) / DRAWS for q in p]
    rare = torch.tensor([v**0.5 if v * DRAWS**2 < 100 else 0.0 for v in largest], dtype=torch.float64)
    off = (drawn.mean(dim=0) - torch.tensor(p, dtype=torch.float64)).abs()
    assert bool((off <= 4 * torch.maximum(error, rare)).all()), (off / error).tolist()
    assert drawn.std(dim=0).max() > 0


def test_a_naive_softmax_of_noisy_logits_would_be_caught() -> None:
    p = torch.tensor([0.7, 0.2, 0.09, 0.01], dtype=torch.float64)
    noise = torch.randn(DRAWS, 4, dtype=torch.float64, generator=generator_for(0, 0))
    naive = torch.softmax(p.log() + noise, dim=1)
    off = (naive.mean(dim=0) - p).abs() / (naive.std(dim=0) / math.sqrt(DRAWS))
    assert off.max() > 50


@pytest.mark.parametrize("p", [SHAPES["even"], SHAPES["skewed"]], ids=["even", "skewed"])
@pytest.mark.parametrize(
    ("kind", "strength", "factor"),
    [("gamma", 0.4, 1 / 1.4), ("gamma", 25.0, 1 / 26), ("points", 3.0, 1 / 3), ("points", 25.4, 1 / 25)],
)
def test_the_variance_is_the_closed_form(kind: str, strength: float, factor: float, p: list[float]) -> None:
    drawn = draws(p, kind, strength)
    expected = torch.tensor([q * (1 - q) * factor for q in p], dtype=torch.float64)
    assert bool(((drawn.var(dim=0) - expected).abs() <= 4 * variance_error(drawn)).all())


@pytest.mark.parametrize("rate", [0.4, 3.0, 25.0])
def test_poissons_variance_is_that_of_its_random_number_of_points(rate: float) -> None:
    p = SHAPES["skewed"]
    drawn = draws(p, "poisson", rate)
    # E[1/N | N > 0], N ~ Poisson(n), by its series.
    terms = [math.exp(-rate + m * math.log(rate) - math.lgamma(m + 1)) / m for m in range(1, 200)]
    factor = sum(terms) / -math.expm1(-rate)
    expected = torch.tensor([q * (1 - q) * factor for q in p], dtype=torch.float64)
    assert bool(((drawn.var(dim=0) - expected).abs() <= 4 * variance_error(drawn)).all())


@pytest.mark.parametrize("strength", [0.5, 2.0, 10.0])
def test_the_gaussian_of_two_classes_has_the_moments_of_its_integral(strength: float) -> None:
    drawn = draws([0.8, 0.2], "gaussian", strength)[:, 0]
    # The difference of both logits' noise is N(± σ², 2 σ²), + where J is the first class.
    deviation = 1 / strength
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    moment = 0.0
    for probability, sign in ((0.8, 1), (0.2, -1)):
        logit = math.log(4) + sign * deviation**2 + math.sqrt(2) * deviation * nodes
        moment += probability * float((weights / (1 + np.exp(-logit)) ** 2).sum() / weights.sum())
    expected = moment - 0.8**2
    values = drawn[:, None]
    assert abs(values.var(dim=0).item() - expected) <= 4 * variance_error(values).item()


def test_a_small_deviation_moves_the_logits_by_it() -> None:
    drawn = draws(SHAPES["skewed"], "gaussian", 100.0)
    moved = drawn.log() - torch.tensor(SHAPES["skewed"], dtype=torch.float64).log()
    between = moved[:, 0] - moved[:, 1]  # the normaliser falls out
    assert between.std().item() == pytest.approx(math.sqrt(2) / 100, rel=0.01)


def test_one_point_is_a_hard_label() -> None:
    drawn = draws(SHAPES["skewed"], "points", 0.3)
    assert torch.equal(drawn.sort(dim=1).values[0], torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}


def test_rows_are_drawn_each_by_its_own_probabilities() -> None:
    p = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    for kind in KINDS:
        given = sample(p, kind, 2.0, generator_for(0, 0))
        assert given.dtype == torch.float32 and torch.equal(given, p)


def test_none_is_p_itself() -> None:
    p = torch.tensor([[0.5, 0.5]])
    assert sample(p, "none", 1.0, generator_for(0, 0)) is p


def test_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="sampling 'gausian'; did you mean 'gaussian'"):
        sample(torch.ones(1, 1), "gausian", 1.0, generator_for(0, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_gives_the_same_draws_again_and_another_one_does_not(kind: str) -> None:
    p = torch.tensor(SHAPES["skewed"]).expand(64, -1)
    first = sample(p, kind, 3.0, generator_for(7, 11))
    torch.manual_seed(5)  # whatever else is drawn
    assert torch.equal(first, sample(p, kind, 3.0, generator_for(7, 11)))
    for seed, step in ((7, 12), (8, 11), (11, 7)):
        assert not torch.equal(first, sample(p, kind, 3.0, generator_for(seed, step)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [1e-3, 1e5])
def test_extreme_strengths_stay_distributions(kind: str, strength: float) -> None:
    p = torch.softmax(torch.tensor([[40.0, 0.0, -80.0], [1.0, 2.0, 3.0]]), dim=1)
    drawn = sample(p.repeat(200, 1), kind, strength, generator_for(0, 0))
    assert bool(torch.isfinite(drawn).all())
    assert torch.allclose(drawn.sum(dim=1), torch.ones(400))
    if strength > 1:
        assert torch.allclose(drawn, p.repeat(200, 1), atol=0.02)
