"""Losses against formulas written out in numpy."""

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgekd.card import Recipe, Training
from edgekd.distill.losses import cross_entropy, distillation, kd

STUDENT = np.array([[1.0, -0.5, 0.25], [0.0, 2.0, -1.0]])
TEACHER = np.array([[0.5, 0.5, -2.0], [-1.0, 3.0, 0.0]])


def softmax(logits: NDArray[np.float64], temperature: float = 1.0) -> NDArray[np.float64]:
    e = np.exp(logits / temperature)
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def kd_by_hand(student: NDArray[np.float64], teacher: NDArray[np.float64], temperature: float) -> float:
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return float(temperature**2 * np.mean([sum(p[b] * (np.log(p[b]) - np.log(q[b]))) for b in range(len(p))]))


def ce_by_hand(student: NDArray[np.float64], labels: list[int], smoothing: float) -> float:
    q = softmax(student)
    classes = q.shape[1]
    wanted = np.full_like(q, smoothing / classes)
    wanted[np.arange(len(q)), labels] += 1 - smoothing
    return float(-(wanted * np.log(q)).sum(axis=1).mean())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kd_is_the_formula(temperature: float) -> None:
    given = kd(torch.from_numpy(STUDENT), torch.from_numpy(TEACHER), temperature).item()
    assert given == pytest.approx(kd_by_hand(STUDENT, TEACHER, temperature), rel=1e-12)
    assert given > 0.1


def test_kd_by_pencil() -> None:
    # Teacher (ln 3, 0), student (0, 0), T = 1: KL((3/4, 1/4) ‖ (1/2, 1/2)) = ln 2 − H(3/4, 1/4).
    expected = np.log(2) - (0.75 * np.log(4 / 3) + 0.25 * np.log(4))
    given = kd(torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[np.log(3), 0.0]], dtype=torch.float64), 1.0)
    assert given.item() == pytest.approx(expected, rel=1e-12)
    # Both logits and T doubled: the same distributions, four times the value.
    given = kd(torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[2 * np.log(3), 0.0]], dtype=torch.float64), 2.0)
    assert given.item() == pytest.approx(4 * expected, rel=1e-12)


def test_kd_of_equal_distributions_is_zero() -> None:
    teacher = torch.from_numpy(TEACHER)
    assert kd(teacher, teacher, 4.0).item() == 0
    assert kd(teacher + 7.0, teacher, 4.0).item() == pytest.approx(0, abs=1e-12)


def test_kd_is_not_symmetric() -> None:
    given = kd(torch.from_numpy(TEACHER), torch.from_numpy(STUDENT), 2.0).item()
    assert given == pytest.approx(kd_by_hand(TEACHER, STUDENT, 2.0), rel=1e-12)
    assert abs(given - kd_by_hand(STUDENT, TEACHER, 2.0)) > 0.01


def test_kds_gradient_by_finite_differences() -> None:
    student = torch.from_numpy(STUDENT).requires_grad_()
    kd(student, torch.from_numpy(TEACHER), 3.0).backward()
    assert student.grad is not None
    step = 1e-6
    for place in np.ndindex(*STUDENT.shape):
        shift = np.zeros_like(STUDENT)
        shift[place] = step
        slope = (kd_by_hand(STUDENT + shift, TEACHER, 3.0) - kd_by_hand(STUDENT - shift, TEACHER, 3.0)) / (2 * step)
        assert student.grad[place].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_kd_at_a_high_temperature_compares_centred_logits() -> None:
    # Hinton et al. 2015, section 2.1: T² KL tends to ‖Δ centred logits‖² / (2 C).
    difference = (TEACHER - TEACHER.mean(1, keepdims=True)) - (STUDENT - STUDENT.mean(1, keepdims=True))
    limit = (difference**2).sum(axis=1).mean() / (2 * 3)
    given = [kd(torch.from_numpy(STUDENT), torch.from_numpy(TEACHER), t).item() for t in (10.0, 100.0, 1_000.0)]
    errors = [abs(value - limit) for value in given]
    assert errors[0] > errors[1] > errors[2]
    assert given[2] == pytest.approx(limit, rel=2e-3)


def test_kd_of_extreme_logits_is_finite() -> None:
    given = kd(torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]]), 1.0)
    assert given.item() == pytest.approx(2e4)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_distillation_mixes_both_losses(alpha: float, smoothing: float) -> None:
    recipe = Recipe(epochs=1, temperature=2.0, alpha=alpha, label_smoothing=smoothing)
    labels = [2, 1]
    given = distillation(recipe)(torch.from_numpy(STUDENT), torch.from_numpy(TEACHER), torch.tensor(labels))
    expected = alpha * kd_by_hand(STUDENT, TEACHER, 2.0) + (1 - alpha) * ce_by_hand(STUDENT, labels, smoothing)
    assert given.item() == pytest.approx(expected, rel=1e-12)


def test_cross_entropy_needs_no_teacher() -> None:
    training = Training(epochs=1, label_smoothing=0.2)
    for one in (training, dataclasses.replace(training, label_smoothing=0.0)):
        given = cross_entropy(one)(torch.from_numpy(STUDENT), None, torch.tensor([0, 1])).item()
        assert given == pytest.approx(ce_by_hand(STUDENT, [0, 1], one.label_smoothing), rel=1e-12)
