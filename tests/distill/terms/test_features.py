"""Terms on features against formulas written out in numpy, and trainings small enough to know where they end."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.distill.terms.features import (
    Regressor,
    Vid,
    attention,
    attention_map,
    channel,
    hint,
    match,
    pooled,
    similarity,
    vid,
)
from edgekd.errors import ConfigError

STUDENT = np.array([[1.0, -0.5, 0.25], [0.0, 2.0, -1.0]])
TEACHER = np.array([[0.5, 0.5, -2.0], [-1.0, 3.0, 0.0]])
S, T = torch.from_numpy(STUDENT), torch.from_numpy(TEACHER)


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def block_mean(array: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """(B, H, W) -> (B, height, width) where these divide H and W."""
    b, h, w = array.shape
    return np.asarray(array.reshape(b, height, h // height, width, w // width).mean(axis=(2, 4)))


def test_pooled() -> None:
    found = maps(2, 3, 4, 5)
    np.testing.assert_allclose(pooled(found), np.einsum("bchw->bc", found.numpy()) / 20)
    tokens = maps(2, 7, 3)
    np.testing.assert_allclose(pooled(tokens), np.einsum("blc->bc", tokens.numpy()) / 7)
    assert pooled(S) is S
    assert pooled(found.to(torch.bfloat16)).dtype == torch.float32
    with pytest.raises(ConfigError, match=r"\(2,\)"):
        pooled(S[:, 0])


def test_match_by_pencil() -> None:
    # Differences (0.5, -1, 2.25) and (1, -1, -1): (0.25 + 1 + 5.0625 + 3) / 6.
    assert match(S, T).item() == pytest.approx(9.3125 / 6, rel=1e-12)
    assert match(T, T).item() == 0
    assert match(S.to(torch.bfloat16), T.to(torch.float16)).item() == pytest.approx(9.3125 / 6, rel=1e-6)
    with pytest.raises(ConfigError, match=r"match: .*\(2, 3\).*\(2, 2\).* use hint"):
        match(S, T[:, :2])


def test_hint_of_vectors() -> None:
    regressor = Regressor((3,), (2,)).double()
    weight, bias = (one.detach().numpy() for one in regressor.parameters())
    predicted = np.array([[sum(weight[o] * row) + bias[o] for o in range(2)] for row in STUDENT])
    expected = sum((predicted[i, j] - TEACHER[i, j]) ** 2 for i in range(2) for j in range(2)) / 4
    assert hint(regressor, S, T[:, :2]).item() == pytest.approx(expected, rel=1e-12)
    assert hint(regressor, S, regressor(S)).item() == 0


@pytest.mark.parametrize(("student_size", "teacher_size"), [((4, 4), (4, 4)), ((8, 4), (4, 4)), ((4, 4), (8, 12))])
def test_hint_of_maps_pools_the_larger(student_size: tuple[int, int], teacher_size: tuple[int, int]) -> None:
    student, teacher = maps(2, 3, *student_size), maps(2, 5, *teacher_size, seed=1)
    regressor = Regressor(student.shape[1:], teacher.shape[1:]).double()
    weight, bias = (one.detach().numpy() for one in regressor.parameters())
    mapped = np.einsum("oc,bchw->bohw", weight[:, :, 0, 0], student.numpy()) + bias[:, None, None]
    small = [block_mean(one.reshape(10, *one.shape[2:]), 4, 4) for one in (mapped, teacher.numpy())]
    assert hint(regressor, student, teacher).item() == pytest.approx(np.square(small[0] - small[1]).mean(), rel=1e-12)


def test_hint_of_tokens() -> None:
    student, teacher = maps(2, 7, 3), maps(2, 7, 4, seed=1)
    regressor = Regressor((7, 3), (7, 4)).double()
    weight, bias = (one.detach().numpy() for one in regressor.parameters())
    expected = np.square(np.einsum("oc,blc->blo", weight, student.numpy()) + bias - teacher.numpy()).mean()
    assert hint(regressor, student, teacher).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        ((3, 4, 4), (3,), r"\(3, 4, 4\) and teacher \(3,\) .*one kind"),
        ((7, 3), (8, 3), r"\(7, 3\) and teacher \(8, 3\) .*tokens"),
        ((), (), r"\(\) and teacher \(\)"),
    ],
)
def test_regressors_of_shapes_that_do_not_fit(student: tuple[int, ...], teacher: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Regressor(student, teacher)


def test_hint_refuses_another_teacher() -> None:
    with pytest.raises(ConfigError, match=r"hint: .*\(2, 2\).*\(2, 3\)"):
        hint(Regressor((3,), (2,)).double(), S, T)


def test_hint_learns_the_teachers_map() -> None:
    # The teacher is linear in the student, so a perfect regressor exists.
    student = maps(64, 3)
    teacher = student @ maps(3, 5, seed=1) + 0.3
    torch.manual_seed(0)
    regressor = Regressor((3,), (5,)).double()
    optimizer = torch.optim.Adam(regressor.parameters(), 0.05)
    first = hint(regressor, student, teacher).item()
    for _ in range(400):
        optimizer.zero_grad()
        hint(regressor, student, teacher).backward()
        optimizer.step()
    assert first > 0.5
    assert hint(regressor, student, teacher).item() < 1e-6


def test_hint_teaches_the_student() -> None:
    # The gradient goes through the regressor to the student's features, here free parameters.
    student, teacher = maps(8, 3).requires_grad_(), maps(8, 3, seed=1)
    torch.manual_seed(0)
    regressor = Regressor((3,), (3,)).double()
    optimizer = torch.optim.Adam([student], 0.1)
    for _ in range(500):
        optimizer.zero_grad()
        hint(regressor, student, teacher).backward()
        optimizer.step()
    np.testing.assert_allclose(regressor(student).detach(), teacher, atol=0.02)


def attention_by_hand(student: NDArray[np.float64], teacher: NDArray[np.float64]) -> float:
    """Of features (B, C, H, W) of one size, place by place."""
    squares = []
    for s, t in zip(student, teacher, strict=True):
        rows = [np.array([sum(c**2) for c in one.reshape(len(one), -1).T]) for one in (s, t)]
        rows = [row / math.sqrt(row @ row) for row in rows]
        squares.extend((rows[0] - rows[1]) ** 2)
    return float(np.mean(squares))


def test_attention_by_hand() -> None:
    student, teacher = maps(2, 3, 4, 5), maps(2, 6, 4, 5, seed=1)
    expected = attention_by_hand(student.numpy(), teacher.numpy())
    assert attention(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    assert expected > 1e-3


def test_attention_by_pencil() -> None:
    # Maps (3, 4) and (1, 0), as features of one channel: (9, 16) / sqrt(337) and (1, 0).
    student, teacher = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
    root = math.sqrt(337)
    assert attention(student, teacher).item() == pytest.approx(((9 / root - 1) ** 2 + (16 / root) ** 2) / 2, rel=1e-6)


def test_attention_takes_maps_kept_earlier() -> None:
    student, teacher = maps(2, 3, 4, 4), maps(2, 6, 4, 4, seed=1)
    np.testing.assert_allclose(attention_map(teacher), np.square(teacher.numpy()).sum(axis=1) / 6)
    expected = attention(student, teacher).item()
    assert attention(student, attention_map(teacher)).item() == pytest.approx(expected, rel=1e-12)
    assert attention(attention_map(student), teacher).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("swap", [False, True])
def test_attention_pools_the_larger_map(swap: bool) -> None:
    small, large = maps(2, 3, 4, 4), maps(2, 6, 8, 12, seed=1)
    pooled_map = torch.from_numpy(block_mean(np.square(large.numpy()).mean(axis=1), 4, 4))
    pair = (large, small) if swap else (small, large)
    assert attention(*pair).item() == pytest.approx(attention(small, pooled_map).item(), rel=1e-12)


def test_attention_knows_no_scale_and_no_sign() -> None:
    student, teacher = maps(2, 3, 4, 4), maps(2, 6, 4, 4, seed=1)
    assert attention(-3 * student, 0.1 * teacher).item() == pytest.approx(attention(student, teacher).item(), rel=1e-12)
    assert attention(5 * teacher, teacher).item() == pytest.approx(0, abs=1e-30)


def test_attention_of_a_dead_layer_is_finite() -> None:
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    value = attention(student, maps(2, 3, 4, 4).float())
    value.backward()
    assert student.grad is not None and student.grad.isfinite().all()
    assert value.item() == pytest.approx(1 / 16, rel=1e-5)  # the teacher's unit vectors, over 16 places


def test_attention_needs_maps() -> None:
    with pytest.raises(ConfigError, match=r"attention: .*\(2, 3\).*\(2, 4, 4\)"):
        attention(S, maps(2, 4, 4))
    with pytest.raises(ConfigError, match=r"\(3, 4, 4\).*\(2, 4, 4\)"):
        attention(maps(3, 4, 4), maps(2, 4, 4))
    with pytest.raises(ConfigError, match=r"\(2, 4, 4\)"):
        attention_map(maps(2, 4, 4))


def test_similarity_by_hand() -> None:
    def gram(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        products = np.array([[np.sum(a * b) for b in rows] for a in rows])
        return np.array([row / math.sqrt(sum(row**2)) for row in products])

    expected = np.sum((gram(TEACHER) - gram(STUDENT)) ** 2) / 2**2
    assert similarity(S, T).item() == pytest.approx(expected, rel=1e-12)
    student, teacher = maps(5, 2, 3, 3), maps(5, 7, seed=1)
    expected = np.sum((gram(teacher.numpy()) - gram(student.numpy().reshape(5, 18))) ** 2) / 5**2
    assert similarity(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_similarity_by_pencil() -> None:
    # Orthogonal samples have the identity; equal ones have rows (1, 1) / sqrt 2.
    root = 1 / math.sqrt(2)
    value = similarity(torch.eye(2), torch.ones(2, 5)).item()
    assert value == pytest.approx((2 * (1 - root) ** 2 + 2 * root**2) / 4, rel=1e-6)


def test_similarity_knows_no_scale_and_no_rotation() -> None:
    turned = T @ torch.linalg.qr(maps(3, 3)).Q
    assert similarity(3 * T, 0.2 * T).item() == pytest.approx(0, abs=1e-30)
    assert similarity(turned, T).item() == pytest.approx(0, abs=1e-30)
    assert similarity(S, T).item() == pytest.approx(similarity(7 * S, 0.1 * T).item(), rel=1e-12)
    with pytest.raises(ConfigError, match=r"\(2, 3\).*\(1, 3\)"):
        similarity(S, T[:1])


def test_vid_by_hand() -> None:
    module = Vid((3,), (2,)).double()
    with torch.no_grad():
        module.alpha.copy_(torch.tensor([-1.0, 2.0]))
    weight, bias = (one.detach().numpy() for one in module.mean.parameters())
    values = []
    for s, t in zip(STUDENT, TEACHER, strict=True):
        for c, alpha in enumerate([-1.0, 2.0]):
            variance = math.log(1 + math.exp(alpha)) + 1e-5
            values.append(math.log(math.sqrt(variance)) + (t[c] - s @ weight[c] - bias[c]) ** 2 / (2 * variance))
    assert vid(module, S, T[:, :2]).item() == pytest.approx(np.mean(values), rel=1e-12)


def test_vid_of_maps_has_a_variance_for_each_channel() -> None:
    student, teacher = maps(2, 3, 4, 4), maps(2, 5, 8, 8, seed=1)
    module = Vid(student.shape[1:], teacher.shape[1:]).double()
    with torch.no_grad():
        module.alpha.copy_(maps(5, seed=2))
    mean = module.mean(student).detach().numpy()
    error = block_mean(teacher.numpy().reshape(10, 8, 8), 4, 4).reshape(2, 5, 4, 4) - mean
    variance = module.variance().detach().numpy()
    expected = np.mean([np.log(variance[c]) / 2 + np.mean(error[:, c] ** 2) / (2 * variance[c]) for c in range(5)])
    assert vid(module, student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_vid_begins_with_a_variance_of_five() -> None:
    np.testing.assert_allclose(Vid((3, 2, 2), (4, 2, 2)).variance().detach(), np.full(4, 5), rtol=1e-6)
    assert Vid((7, 3), (7, 4)).variance().shape == (4,)
    with pytest.raises(ConfigError, match=r"\(3,\).*\(4, 2, 2\)"):
        Vid((3,), (4, 2, 2))


def test_vid_finds_mean_and_variance() -> None:
    # Teacher = 2 student + noise of deviation 0.1 and 0.5; the least value is ½ (1 + log variance) on average.
    student = maps(512, 2)
    teacher = 2 * student + maps(512, 2, seed=1) * torch.tensor([0.1, 0.5])
    torch.manual_seed(0)
    module = Vid((2,), (2,)).double()
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    first = vid(module, student, teacher).item()
    for _ in range(600):
        optimizer.zero_grad()
        vid(module, student, teacher).backward()
        optimizer.step()
    found = module.variance().detach().numpy()
    residuals = teacher.numpy() - student.numpy() @ np.linalg.lstsq(student.numpy(), teacher.numpy(), rcond=None)[0]
    residuals = residuals - residuals.mean(axis=0)
    np.testing.assert_allclose(found, residuals.var(axis=0), rtol=0.05)
    last = vid(module, student, teacher).item()
    assert last == pytest.approx(np.mean(0.5 * (1 + np.log(residuals.var(axis=0)))), abs=0.02)
    assert first > 0.5 > 0 > last


@pytest.mark.parametrize("name", ["match", "hint", "attention", "attention smaller", "similarity", "vid"])
def test_gradients_by_finite_differences(name: str) -> None:
    torch.manual_seed(0)
    student, teacher = maps(2, 3, 4, 4), maps(2, 3, 4, 4, seed=1)
    regressor, module = Regressor((3, 4, 4), (3, 4, 4)).double(), Vid((3, 4, 4), (3, 4, 4)).double()
    term = {
        "match": lambda s: match(s, teacher),
        "hint": lambda s: hint(regressor, s, teacher),
        "attention": lambda s: attention(s, teacher),
        "attention smaller": lambda s: attention(s, teacher[:, :, :2, :2]),
        "similarity": lambda s: similarity(s, teacher),
        "vid": lambda s: vid(module, s, teacher),
    }[name]
    assert torch.autograd.gradcheck(term, student.requires_grad_(), atol=1e-7)


# --- weighted places ---


def weights_of(*shape: int) -> NDArray[np.float64]:
    """Weights of which a half is 0."""
    rng = np.random.default_rng(5)
    return np.asarray(rng.random(shape) * (rng.random(shape) < 0.5))


def test_differences_at_weighted_places_against_a_plain_loop() -> None:
    mine, theirs, weights = maps(2, 3, 4, 5), maps(2, 3, 4, 5, seed=1), weights_of(2, 4, 5)
    total = sum(
        weights[b, y, x] * ((mine[b, :, y, x] - theirs[b, :, y, x]).numpy() ** 2).mean()
        for b, y, x in np.ndindex(2, 4, 5)
    )
    given = torch.from_numpy(weights)
    assert match(mine, theirs, given).item() == pytest.approx(total / weights.sum(), rel=1e-9)
    assert match(mine, theirs, torch.ones(2, 4, 5)).item() == pytest.approx(match(mine, theirs).item(), rel=1e-9)
    assert match(mine, theirs, torch.zeros(2, 4, 5)).item() == 0
    regressor = Regressor((3, 8, 10), (3, 4, 5)).double()  # the larger map is pooled first
    larger = maps(2, 3, 8, 10)
    assert hint(regressor, larger, theirs, given).item() == match(regressor(larger), theirs, given).item()


def test_channel_at_weighted_places_against_a_plain_loop() -> None:
    mine, theirs, weights = maps(3, 2, 4, 5), maps(3, 2, 4, 5, seed=1), weights_of(3, 4, 5)
    weights[1] = 0  # an image without objects does not count
    temperature, total = 3.0, 0.0
    for b, c in ((0, 0), (0, 1), (2, 0), (2, 1)):
        p, q = (weights[b] * np.exp(one[b, c].numpy() / temperature) for one in (theirs, mine))
        p, q, used = p / p.sum(), q / q.sum(), weights[b] > 0
        total += (p[used] * np.log(p[used] / q[used])).sum()
    found = channel(mine, theirs, temperature, torch.from_numpy(weights))
    assert found.item() == pytest.approx(temperature**2 * total / 4, rel=1e-9)
    ones = torch.ones(3, 4, 5)
    assert channel(mine, theirs, 3.0, ones).item() == pytest.approx(channel(mine, theirs, 3.0).item(), rel=1e-9)
    assert channel(mine, theirs, temperature, torch.zeros(3, 4, 5)).item() == 0


@pytest.mark.parametrize("name", ["match", "channel"])
def test_places_of_weight_0_get_no_gradient(name: str) -> None:
    mine, weights = maps(2, 3, 4, 5).requires_grad_(), torch.from_numpy(weights_of(2, 4, 5))
    term = match if name == "match" else lambda a, b, w: channel(a, b, 4.0, w)
    term(mine, maps(2, 3, 4, 5, seed=1), weights).backward()
    assert mine.grad is not None
    moved = mine.grad.abs().amax(dim=1)
    assert (moved[weights == 0] == 0).all() and (moved[weights > 0] > 0).all()


# --- channel-wise distillation ---


def test_channel_against_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    mine, theirs = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 3, 4, 5))
    temperature, total = 3.0, 0.0
    for b in range(2):
        for c in range(3):
            p, q = (np.exp(one[b, c] / temperature) for one in (theirs, mine))
            p, q = p / p.sum(), q / q.sum()
            total += (p * np.log(p / q)).sum()
    found = channel(torch.from_numpy(mine), torch.from_numpy(theirs), temperature)
    assert found.item() == pytest.approx(temperature**2 * total / 6, rel=1e-9)
    assert channel(torch.from_numpy(theirs), torch.from_numpy(theirs), temperature).item() == pytest.approx(0, abs=1e-9)


def test_channel_says_where_and_not_how_strongly() -> None:
    maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert channel(maps + 7, maps, 4.0).item() == pytest.approx(0, abs=1e-6)
    assert channel(maps.flip(3), maps, 4.0) > 0.01


def test_channel_pools_the_larger_map() -> None:
    maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    larger = maps.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert channel(larger, maps, 4.0).item() == pytest.approx(0, abs=1e-6)


def test_channel_needs_maps_of_the_same_channels() -> None:
    with pytest.raises(ConfigError, match=r"must be maps .* with the same number of channels"):
        channel(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 4), 4.0)
    with pytest.raises(ConfigError, match="must be maps"):
        channel(torch.zeros(2, 3), torch.zeros(2, 3), 4.0)
