"""Losses against formulas written out in numpy."""

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgekd.card import Recipe, Training
from edgekd.distill.losses import cross_entropy, dist, distillation, dkd, kd, mse, soft_cross_entropy, standardized
from edgekd.errors import ConfigError
from edgekd.spec import build

STUDENT = np.array([[1.0, -0.5, 0.25], [0.0, 2.0, -1.0]])
TEACHER = np.array([[0.5, 0.5, -2.0], [-1.0, 3.0, 0.0]])
S, T = torch.from_numpy(STUDENT), torch.from_numpy(TEACHER)
LABELS = torch.tensor([2, 1])


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
    terms = distillation(recipe)(torch.from_numpy(STUDENT), torch.from_numpy(TEACHER), torch.tensor(labels))
    given = sum(term.item() for term in terms.values())
    expected = alpha * kd_by_hand(STUDENT, TEACHER, 2.0) + (1 - alpha) * ce_by_hand(STUDENT, labels, smoothing)
    assert given == pytest.approx(expected, rel=1e-12)


def test_cross_entropy_needs_no_teacher() -> None:
    training = Training(epochs=1, label_smoothing=0.2)
    for one in (training, dataclasses.replace(training, label_smoothing=0.0)):
        (given,) = (term.item() for term in cross_entropy(one)(S, None, torch.tensor([0, 1])).values())
        assert given == pytest.approx(ce_by_hand(STUDENT, [0, 1], one.label_smoothing), rel=1e-12)


def kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    return float((p * (np.log(p) - np.log(q))).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_cross_entropy_is_kd_and_the_teachers_entropy(temperature: float) -> None:
    p = softmax(TEACHER, temperature)
    entropy = temperature**2 * float(-(p * np.log(p)).sum(axis=1).mean())
    given = soft_cross_entropy(S, T, temperature).item()
    assert given == pytest.approx(kd_by_hand(STUDENT, TEACHER, temperature) + entropy, rel=1e-12)
    slopes = []
    for term in (kd, soft_cross_entropy):
        student = S.clone().requires_grad_()
        term(student, T, temperature).backward()
        slopes.append(student.grad)
    torch.testing.assert_close(slopes[0], slopes[1])


def test_mse_by_hand() -> None:
    assert mse(S, T).item() == pytest.approx(((STUDENT - TEACHER) ** 2).mean(), rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_by_hand(temperature: float) -> None:
    p, q = softmax(TEACHER, temperature), softmax(STUDENT, temperature)
    target, others = [], []
    for row, label in enumerate(LABELS.tolist()):
        rest = [c for c in range(3) if c != label]
        target.append(kl(*(np.array([x[row, label], x[row, rest].sum()]) for x in (p, q))))
        others.append(kl(*(x[row, rest] / x[row, rest].sum() for x in (p, q))))
    expected = temperature**2 * (0.5 * np.mean(target) + 3.0 * np.mean(others))
    assert dkd(S, T, LABELS, temperature, 0.5, 3.0).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_dkd_with_the_teachers_own_beta(temperature: float) -> None:
    # Zhao et al. 2022, equation 5; β differs from sample to sample, so each row is taken alone.
    p = softmax(TEACHER, temperature)
    rows = []
    for row, label in enumerate(LABELS.tolist()):
        one = slice(row, row + 1)
        rows.append(dkd(S[one], T[one], LABELS[one], temperature, 1.0, 1 - p[row, label]).item())
    assert np.mean(rows) == pytest.approx(kd_by_hand(STUDENT, TEACHER, temperature), rel=1e-12)


def test_dist_by_numpys_correlation() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 5, 4))
    p, q = softmax(teacher, 2.0), softmax(student, 2.0)
    rows = np.mean([np.corrcoef(p[b], q[b])[0, 1] for b in range(5)])
    columns = np.mean([np.corrcoef(p[:, c], q[:, c])[0, 1] for c in range(4)])
    given = dist(torch.from_numpy(student), torch.from_numpy(teacher), 2.0, 1.5, 0.5).item()
    assert given == pytest.approx(4 * (1.5 * (1 - rows) + 0.5 * (1 - columns)), rel=1e-9)


def test_standardized_rows() -> None:
    given = standardized(3.0 * S + 7.0).numpy()
    assert given.mean(axis=1) == pytest.approx([0, 0], abs=1e-12)
    assert given.std(axis=1, ddof=1) == pytest.approx([1, 1], rel=1e-6)
    assert kd(standardized(3.0 * T + 7.0), standardized(T), 2.0).item() == pytest.approx(0, abs=1e-9)


def test_equal_logits_cost_nothing() -> None:
    found = {
        "kd": kd(T, T, 4.0),
        "mse": mse(T, T),
        "dkd": dkd(T, T, LABELS, 4.0, 1.0, 8.0),
        "dist": dist(T, T, 1.0, 1.0, 1.0),
    }
    assert {name: value.item() for name, value in found.items()} == pytest.approx(dict.fromkeys(found, 0), abs=1e-7)


@pytest.mark.parametrize("name", ["kd", "soft_ce", "mse", "dkd", "dist"])
@pytest.mark.parametrize("standardize", [False, True])
def test_gradients_by_finite_differences(name: str, standardize: bool) -> None:
    recipe = build(Recipe, {"epochs": 1, "losses": {name: 0.7, "ce": 0.2}, "standardize": standardize}, "card")
    loss = distillation(recipe)

    def total(student: torch.Tensor) -> torch.Tensor:
        return torch.stack(list(loss(student, T, LABELS).values())).sum()

    assert torch.autograd.gradcheck(total, S.clone().requires_grad_(), atol=1e-6)


def test_terms_come_apart_with_their_weights() -> None:
    recipe = build(Recipe, {"epochs": 1, "temperature": 2.0, "losses": {"kd": 0.5, "mse": 2.0}}, "card")
    terms = distillation(recipe)(S, T, LABELS)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"kd": 0.5 * kd_by_hand(STUDENT, TEACHER, 2.0), "mse": 2.0 * float(((STUDENT - TEACHER) ** 2).mean())}
    )


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ({"kd": 1.0, "soft_ce": 1.0}, "not both"),
        ({"kdd": 1.0}, "losses"),
        ({"kd": 0.0}, "greater than 0"),
        ({"kd": -1.0}, "greater than 0"),
    ],
)
def test_bad_weights(losses: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(Recipe, {"epochs": 1, "losses": losses}, "card.toml: recipe")
