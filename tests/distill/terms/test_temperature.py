"""Schedules at positions worked out by hand; learned temperatures by their gradients; the limit T → 0 in fp64."""

import math

import pytest
import torch
from torch import Tensor

from edgekd.card import Recipe
from edgekd.distill.terms.losses import kd
from edgekd.distill.terms.temperature import LearnedTemperature, scheduled
from edgekd.errors import ConfigError

TEACHER = torch.tensor([[3.0, 1.0, -2.0, 0.5]], dtype=torch.float64)  # answers 0
STUDENT = torch.tensor([[0.5, 2.0, 1.25, -1.0]], dtype=torch.float64)  # answers 1
AGREEING = torch.tensor([[2.5, 2.0, 1.25, -1.0]], dtype=torch.float64)


def recipe(schedule: str, **more: float) -> Recipe:
    return Recipe(epochs=8, temperature_schedule=schedule, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("schedule", "at_quarter", "at_half"),
    [
        ("fixed", 8.0, 8.0),
        ("linear", 6.125, 4.25),
        ("cosine", 0.5 + 7.5 * (2 + math.sqrt(2)) / 4, 4.25),
        ("exponential", 4.0, 2.0),  # a sixteenth in all, a half each quarter
    ],
)
def test_a_schedule_leads_from_one_end_to_the_other(schedule: str, at_quarter: float, at_half: float) -> None:
    chosen = recipe(schedule, temperature=8.0, temperature_end=0.5)
    assert scheduled(chosen, 0.0, 12) == pytest.approx(8.0, rel=1e-12)
    assert scheduled(chosen, 3.0, 12) == pytest.approx(at_quarter, rel=1e-12)
    assert scheduled(chosen, 6.0, 12) == pytest.approx(at_half, rel=1e-12)
    end = 8.0 if schedule == "fixed" else 0.5
    assert scheduled(chosen, 12.0, 12) == scheduled(chosen, 13.0, 12) == pytest.approx(end, rel=1e-12)


def test_the_sigmoid_rises_from_half_the_temperature_to_it() -> None:
    chosen = recipe("sigmoid", temperature=6.0, temperature_rate=math.log(3))
    given = [scheduled(chosen, epoch, 12) for epoch in (0.0, 1.0, 2.0, 0.5, 1000.0)]
    assert given == pytest.approx([3.0, 6 * 3 / 4, 6 * 9 / 10, 6 * 3 / (3 + math.sqrt(3)), 6.0], rel=1e-12)


def test_a_learned_temperature_is_no_function_of_the_position() -> None:
    with pytest.raises(ValueError, match="adversarial temperature is a LearnedTemperature"):
        scheduled(recipe("adversarial"), 1.0, 8)


@pytest.mark.parametrize("schedule", ["learned", "adversarial"])
def test_it_begins_at_the_recipes_temperature(schedule: str) -> None:
    module = LearnedTemperature(recipe(schedule, temperature=4.0, temperature_min=1.0, temperature_max=21.0))
    assert module(0.0).item() == pytest.approx(4.0, rel=1e-6)
    assert [tuple(parameter.shape) for parameter in module.parameters()] == [()]
    # T = 1 + 20 σ(θ)
    assert module.theta.item() == pytest.approx(math.log(0.15 / 0.85), rel=1e-5)


@pytest.mark.parametrize(("temperature", "begins"), [(2.0, 2.1), (12.0, 11.9)])
def test_at_a_bound_it_begins_a_hundredth_inside(temperature: float, begins: float) -> None:
    module = LearnedTemperature(recipe("learned", temperature=temperature, temperature_min=2.0, temperature_max=12.0))
    assert module(0.0).item() == pytest.approx(begins, rel=1e-6)


@pytest.mark.parametrize(("temperature", "nearest"), [(0.5, "1"), (25.0, "20")])
def test_a_temperature_outside_the_bounds_is_refused(temperature: float, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LearnedTemperature(recipe("learned", temperature=temperature))
    assert str(caught.value) == (
        f'recipe.temperature: got {temperature:g}; with temperature_schedule = "learned" it should be from '
        f"temperature_min (1) to temperature_max (20), such as {nearest}"
    )


def gradient(module: LearnedTemperature, progress: float) -> float:
    """By θ, of (T − 3)²."""
    module.zero_grad()
    ((module(progress) - 3.0) ** 2).backward()
    assert module.theta.grad is not None
    return float(module.theta.grad)


def test_the_gradient_is_the_chain_rules() -> None:
    module = LearnedTemperature(recipe("learned", temperature=6.0, temperature_max=21.0))
    by_hand = 2 * (6.0 - 3.0) * 20 * 0.25 * 0.75  # dT/dθ = range × σ (1 − σ), σ = (6 − 1) / 20
    assert gradient(module, 0.0) == pytest.approx(by_hand, rel=1e-5)
    assert gradient(module, 30.0) == gradient(module, 0.0)


@pytest.mark.parametrize(
    ("epoch", "factor"), [(0.0, 0.0), (2.5, 0.5 - math.sqrt(2) / 4), (5.0, 0.5), (10.0, 1.0), (99.0, 1.0)]
)
def test_the_adversarys_gradient_is_reversed_along_a_cosine(epoch: float, factor: float) -> None:
    plain = LearnedTemperature(recipe("learned"))
    reversed_ = LearnedTemperature(recipe("adversarial"))
    assert reversed_(epoch).item() == plain(epoch).item()
    assert gradient(reversed_, epoch) == pytest.approx(-factor * gradient(plain, epoch), rel=1e-6)


@pytest.mark.parametrize(("schedule", "end"), [("learned", 1.0), ("adversarial", 20.0)])
def test_without_a_student_the_loss_alone_drives_the_temperature_to_a_bound(schedule: str, end: float) -> None:
    module = LearnedTemperature(recipe(schedule, temperature=4.0))
    optimizer = torch.optim.SGD(module.parameters(), lr=5.0)
    for _ in range(400):
        optimizer.zero_grad()
        temperature = module(10.0)
        kd(STUDENT, TEACHER, temperature).backward()
        optimizer.step()
    assert module(10.0).item() == pytest.approx(end, rel=0.05)


def soft_term(student: Tensor, temperature: float) -> tuple[float, Tensor]:
    """Value and gradient by the student's logits."""
    given = student.clone().requires_grad_()
    value = kd(given, TEACHER, temperature)
    value.backward()
    assert given.grad is not None
    return value.item(), given.grad


@pytest.mark.parametrize("temperature", [0.2, 0.1, 0.05, 0.02])
def test_cold_kd_is_the_temperature_times_the_perceptrons_loss(temperature: float) -> None:
    value, slope = soft_term(STUDENT, temperature)
    missed_by = 2.0 - 0.5  # the student's answer above the teacher's
    gap = 0.75  # the smaller one of both networks' first and second logits
    error = 20 * math.exp(-gap / temperature)
    assert value / temperature == pytest.approx(missed_by, abs=error)
    expected = torch.tensor([[-1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(slope / temperature, expected, rtol=0, atol=error)
    # The same limit as that of cross-entropy with the teacher's answer as hard label.
    hard = torch.nn.functional.cross_entropy(STUDENT / temperature, torch.tensor([0])).item() * temperature**2
    assert hard == pytest.approx(value, abs=error)


def test_cold_kd_says_nothing_to_a_student_that_agrees() -> None:
    warm, cold = soft_term(AGREEING, 0.1), soft_term(AGREEING, 0.02)
    assert 0 < warm[0] < 1e-4 and warm[1].abs().sum() < 2 * 0.1 * math.exp(-0.5 / 0.1) * 2
    assert 0 <= cold[0] < 1e-12 and cold[1].abs().sum() < 1e-11


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 4.0])
def test_the_gradients_size_is_bound_by_the_temperature(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits = 10 * torch.randn(1, 4, dtype=torch.float64, generator=generator)
        _, slope = soft_term(logits, temperature)
        p, q = torch.softmax(TEACHER / temperature, 1), torch.softmax(logits / temperature, 1)
        assert torch.allclose(slope, temperature * (q - p), atol=1e-12)
        assert slope.abs().sum() <= 2 * temperature + 1e-12
