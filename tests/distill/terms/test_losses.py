"""Losses against formulas written out in numpy."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edgekd.distill.terms.losses import (
    cross_entropy,
    dist,
    dkd,
    draw_noise,
    grouped,
    kd,
    mse,
    mutual,
    soft_cross_entropy,
    standardized,
)

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


# --- labels ---


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_of_labels(smoothing: float) -> None:
    given = cross_entropy(S, LABELS, smoothing)
    assert given.item() == pytest.approx(ce_by_hand(STUDENT, [2, 1], smoothing), rel=1e-12)
    assert given.item() == pytest.approx(F.cross_entropy(S, LABELS, label_smoothing=smoothing).item(), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_of_a_mix_is_the_mix_of_cross_entropies(smoothing: float) -> None:
    # Three parts of class 0 and one of class 2; then nothing but class 1.
    shares = torch.tensor([[0.75, 0.0, 0.25], [0.0, 1.0, 0.0]], dtype=torch.float64)
    first = 0.75 * ce_by_hand(STUDENT[:1], [0], smoothing) + 0.25 * ce_by_hand(STUDENT[:1], [2], smoothing)
    second = ce_by_hand(STUDENT[1:], [1], smoothing)
    assert cross_entropy(S, shares, smoothing).item() == pytest.approx((first + second) / 2, rel=1e-12)


def test_weights_of_classes() -> None:
    weights = torch.tensor([0.5, 3.0, 2.0], dtype=torch.float64)
    each = [ce_by_hand(STUDENT[row : row + 1], [label], 0.0) for row, label in enumerate((2, 1))]
    given = cross_entropy(S, LABELS, 0.0, weights).item()
    assert given == pytest.approx((2.0 * each[0] + 3.0 * each[1]) / 2, rel=1e-12)
    # torch's own mean is over the weights instead; with the sum both say the same.
    assert 2 * given == pytest.approx(F.cross_entropy(S, LABELS, weights, reduction="sum").item(), rel=1e-12)
    # A mix is the mix of its images' weighted cross-entropies.
    shares = torch.tensor([[0.75, 0.0, 0.25], [0.0, 1.0, 0.0]], dtype=torch.float64)
    first = 0.75 * 0.5 * ce_by_hand(STUDENT[:1], [0], 0.0) + 0.25 * 2.0 * ce_by_hand(STUDENT[:1], [2], 0.0)
    expected = (first + 3.0 * each[1]) / 2
    assert cross_entropy(S, shares, 0.0, weights).item() == pytest.approx(expected, rel=1e-12)


def test_parts_of_a_batch_add_up_with_weights() -> None:
    weights = torch.tensor([0.5, 3.0, 2.0], dtype=torch.float64)
    parts = [cross_entropy(S[row : row + 1], LABELS[row : row + 1], 0.1, weights) for row in range(2)]
    assert cross_entropy(S, LABELS, 0.1, weights).item() == pytest.approx(sum(p.item() for p in parts) / 2, rel=1e-12)


# --- a teacher's answers ---


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


SOFT: dict[str, Callable[[Tensor, Tensor | float], Tensor]] = {
    "kd": lambda student, t: kd(student, T, t),
    "dkd": lambda student, t: dkd(student, T, LABELS, t, 0.5, 3.0),
    "dist": lambda student, t: dist(student, T, t, 1.5, 0.5),
    "standardized kd": lambda student, t: kd(standardized(student), standardized(T), t),
}


@pytest.mark.parametrize("name", SOFT)
def test_gradients_by_finite_differences(name: str) -> None:
    # By the student's logits, and by the temperature, which may be learned.
    temperature = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SOFT[name], (S.clone().requires_grad_(), temperature), atol=1e-6)


def test_soft_cross_entropy_has_the_gradients_of_kd() -> None:
    # That of a learned temperature, too: the teacher's entropy would move it whatever the student does.
    found = []
    for term in (kd, soft_cross_entropy):
        student, t = S.clone().requires_grad_(), torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
        found.append(torch.autograd.grad(term(student, T, t), (student, t)))
    for mine, theirs in zip(*found, strict=True):
        assert mine.numpy() == pytest.approx(theirs.numpy(), rel=1e-12)


def test_noise_of_drawn_labels_by_hand() -> None:
    labels = np.array([[0.2, 0.8, 0.0], [0.0, 0.5, 0.5]])
    p, q = softmax(TEACHER, 3.0), softmax(STUDENT, 3.0)
    t = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    student = S.clone().requires_grad_()
    given = draw_noise(student, torch.from_numpy(p), torch.from_numpy(labels), t)
    assert given.item() == pytest.approx(9 * ((p - labels) * np.log(q)).sum(axis=1).mean(), rel=1e-12)
    assert draw_noise(S, torch.from_numpy(p), torch.from_numpy(p), 3.0).item() == 0
    given.backward()
    assert t.grad is None
    assert student.grad is not None
    # With the exact term's 3 (q − p) / 2 it makes that of a cross-entropy with what was drawn.
    assert student.grad.numpy() == pytest.approx(3 * (p - labels) / 2, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_all_but_the_most_probable_classes_count_as_one(temperature: float) -> None:
    """Against probabilities that are added up in NumPy, class by class."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(5, 9)) * 2, rng.normal(size=(5, 9)) * 3
    total = 0.0
    for mine, theirs in zip(student, teacher, strict=True):
        order = np.argsort(-theirs)
        shares = []
        for logits in (mine, theirs):
            p = np.exp(logits) / np.exp(logits).sum()
            tempered = np.array([*p[order[:3]], p[order[3:]].sum()]) ** (1 / temperature)
            shares.append(tempered / tempered.sum())
        total += (shares[1] * np.log(shares[1] / shares[0])).sum() * temperature**2 / 5
    found = kd(*grouped(torch.tensor(student), torch.tensor(teacher), 3), temperature)
    assert found.item() == pytest.approx(total, rel=1e-9)


def test_few_classes_are_not_grouped() -> None:
    student, teacher = torch.randn(2, 4), torch.randn(2, 4)
    assert grouped(student, teacher, 3) == (student, teacher)
    assert grouped(student, teacher, 2)[0].shape == (2, 3)


def test_mutual_is_the_mean_divergence_from_the_others() -> None:
    third = np.array([[0.0, 1.0, -1.0], [0.5, 0.25, 0.0]])
    expected = (kd_by_hand(STUDENT, TEACHER, 1.0) + kd_by_hand(STUDENT, third, 1.0)) / 2
    others = [T.clone().requires_grad_(), torch.from_numpy(third).requires_grad_()]
    own = S.clone().requires_grad_()
    given = mutual(own, others)
    assert given.item() == pytest.approx(expected, rel=1e-12)
    given.backward()
    assert others[0].grad is None and others[1].grad is None
    assert own.grad is not None
    wanted = (softmax(STUDENT) - (softmax(TEACHER) + softmax(third)) / 2) / 2
    assert own.grad.numpy() == pytest.approx(wanted, abs=1e-12)
