"""Relations between samples against the formulas, one pair and one triple at a time."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.distill.terms.relations import rkd_angle, rkd_distance
from edgekd.errors import ConfigError

Term = Callable[[Tensor, Tensor], Tensor]

STUDENT = np.array([[1.0, -0.5, 0.25], [0.0, 2.0, -1.0], [0.5, 0.5, 3.0], [-2.0, 0.0, 1.0]])
TEACHER = np.array([[0.5, 0.5, -2.0, 1.0], [-1.0, 3.0, 0.0, 0.0], [1.0, 0.0, 9.0, 2.0], [0.0, 0.5, -1.0, 0.0]])
S, T = torch.from_numpy(STUDENT), torch.from_numpy(TEACHER)


def huber(x: float) -> float:
    return 0.5 * x**2 if abs(x) <= 1 else abs(x) - 0.5


def distance_by_hand(student: NDArray[np.float64], teacher: NDArray[np.float64]) -> float:
    tables = []
    for points in (student, teacher):
        table = [[math.dist(a, b) for b in points] for a in points]
        others = [d for row in table for d in row if d > 0]
        tables.append([[d / (sum(others) / len(others)) for d in row] for row in table])
    pairs = product(range(len(student)), repeat=2)
    return float(np.mean([huber(tables[0][i][j] - tables[1][i][j]) for i, j in pairs]))


def cosine(a: NDArray[np.float64], corner: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    lengths = math.dist(a, corner) * math.dist(b, corner)
    return float(np.dot(a - corner, b - corner)) / lengths if lengths else 0.0


def angle_by_hand(student: NDArray[np.float64], teacher: NDArray[np.float64]) -> float:
    triples = product(range(len(student)), repeat=3)
    differences = [
        cosine(student[i], student[j], student[k]) - cosine(teacher[i], teacher[j], teacher[k]) for i, j, k in triples
    ]
    return float(np.mean([huber(x) for x in differences]))


def test_distance_by_hand() -> None:
    expected = distance_by_hand(STUDENT, TEACHER)
    assert rkd_distance(S, T).item() == pytest.approx(expected, rel=1e-12)
    assert expected > 1e-2


def test_distance_beyond_the_bend_of_huber() -> None:
    # One far point: its relative distance to the others is much more than 1 beyond the student's.
    far = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [100.0]])
    near = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [0.5]])
    expected = distance_by_hand(near, far)
    assert rkd_distance(torch.from_numpy(near), torch.from_numpy(far)).item() == pytest.approx(expected, rel=1e-12)


def test_distance_of_two_samples_is_always_zero() -> None:
    # With one pair the mean is the distance itself, so that there is nothing to learn.
    assert rkd_distance(S[:2], T[:2]).item() == 0


def test_distance_by_pencil() -> None:
    # Student at 0, 1, 2: distances 1, 1, 2, mean 4/3. Teacher an equilateral triangle: all 1.
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]], dtype=torch.float64)
    line = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    # Differences 3/4 - 1 twice and 3/2 - 1 once, in both orders, over nine pairs.
    assert rkd_distance(line, triangle).item() == pytest.approx((4 * 0.5 * 0.0625 + 2 * 0.5 * 0.25) / 9, rel=1e-12)


def test_angle_by_hand() -> None:
    expected = angle_by_hand(STUDENT, TEACHER)
    assert rkd_angle(S, T).item() == pytest.approx(expected, rel=1e-12)
    assert expected > 1e-2


def test_angle_by_pencil() -> None:
    # A line 0, 1, 2 has cosines 1, -1, 1 at its points; the equilateral triangle 1/2 at each.
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]], dtype=torch.float64)
    line = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    # Each angle counts twice of 27 triples; those that name a point twice have equal cosines, 0 or 1, on both sides.
    assert rkd_angle(line, triangle).item() == pytest.approx(2 * (2 * 0.5 * 0.25 + (1.5 - 0.5)) / 27, rel=1e-12)


@pytest.mark.parametrize("term", [rkd_distance, rkd_angle])
def test_scale_translation_and_rotation_cost_nothing(term: Term) -> None:
    turn = torch.linalg.qr(torch.from_numpy(np.random.default_rng(0).normal(size=(4, 4)))).Q
    assert term(T, T).item() == 0
    for other in (0.01 * T, T + 5, T @ turn, -3 * T - 1):
        assert term(other, T).item() == pytest.approx(0, abs=1e-25)
    given = term(S, T).item()
    assert term(100 * S + 7, 0.1 * T).item() == pytest.approx(given, rel=1e-9)


@pytest.mark.parametrize("term", [rkd_distance, rkd_angle])
def test_equal_samples_have_a_finite_gradient(term: Term) -> None:
    by_hand = distance_by_hand if term is rkd_distance else angle_by_hand
    doubled = STUDENT[[0, 0, 1, 2]]
    student = torch.from_numpy(doubled).requires_grad_()
    value = term(student, T)
    value.backward()
    assert value.item() == pytest.approx(by_hand(doubled, TEACHER), rel=1e-12)
    assert student.grad is not None and student.grad.isfinite().all()
    assert 0 < student.grad.abs().max() < 10
    collapsed = torch.ones(4, 3, requires_grad=True)
    term(collapsed, T.float()).backward()
    assert collapsed.grad is not None and collapsed.grad.isfinite().all()


@pytest.mark.parametrize("term", [rkd_distance, rkd_angle])
def test_gradients_by_finite_differences(term: Term) -> None:
    assert torch.autograd.gradcheck(lambda s: term(s, T), S.clone().requires_grad_(), atol=1e-7)


@pytest.mark.parametrize("term", [rkd_distance, rkd_angle])
def test_maps_are_averaged_first(term: Term) -> None:
    found = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, 2, 2)))
    assert term(found, T).item() == pytest.approx(term(found.mean(dim=(2, 3)), T).item(), rel=1e-12)


@pytest.mark.parametrize("term", [rkd_distance, rkd_angle])
def test_batches_must_be_equal(term: Term) -> None:
    with pytest.raises(ConfigError, match=r"\(4, 3\).*\(3, 4\)"):
        term(S, T[:3])


@pytest.mark.parametrize("term", [rkd_distance, rkd_angle])
def test_a_student_finds_the_teachers_relations(term: Term) -> None:
    student = torch.from_numpy(np.random.default_rng(1).normal(size=(4, 3))).requires_grad_()
    optimizer = torch.optim.Adam([student], 0.03)
    first = term(student, T).item()
    for _ in range(1_000):
        optimizer.zero_grad()
        term(student, T).backward()
        optimizer.step()
    assert first > 1e-2
    # Four points always fit into three dimensions: nothing but the scale, the place and the rotation may differ.
    assert term(student, T).item() < 1e-6
