"""Contrastive distillation against a computation in numpy, image by image."""

import copy
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.distill.terms.contrast import Contrast, nce, negative_indices
from edgekd.errors import ConfigError

COUNT, NEGATIVES, TEMPERATURE = 6, 4, 0.5
RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, 3)), RNG.normal(size=(2, 5))
S, T = torch.from_numpy(STUDENT), torch.from_numpy(TEACHER)
INDICES = torch.tensor([4, 1])


def make(seed: int = 3, count: int = COUNT, negatives: int = NEGATIVES) -> Contrast:
    torch.manual_seed(0)
    return Contrast(3, 5, 2, count, negatives, TEMPERATURE, seed).double()


def unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vector / math.sqrt(sum(vector**2)))


def embedded(module: Contrast) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    student, teacher = (
        [unit(layer.weight.detach().numpy() @ row + layer.bias.detach().numpy()) for row in rows]
        for layer, rows in ((module.student, STUDENT), (module.teacher, TEACHER))
    )
    return student, teacher


def side_by_hand(
    anchors: list[NDArray[np.float64]], bank: NDArray[np.float64], others: NDArray[np.int64], constant: float | None
) -> tuple[float, float]:
    """The loss of one side, and Z."""
    scores = [
        [math.exp(sum(anchor * bank[i]) / TEMPERATURE) for i in (place, *row)]
        for anchor, place, row in zip(anchors, INDICES.tolist(), others.tolist(), strict=True)
    ]
    z = constant or COUNT * sum(map(sum, scores)) / (len(scores) * (1 + NEGATIVES))
    noise, total = NEGATIVES / COUNT, 0.0
    for positive, *rest in scores:
        total -= math.log(positive / z / (positive / z + noise + 1e-7))
        total -= sum(math.log(noise / (one / z + noise + 1e-7)) for one in rest)
    return total / len(scores), z


def test_the_loss_by_hand() -> None:
    module = make()
    v, u = embedded(module)
    ours, theirs = module.banks.numpy().copy()
    first_z, second_z = None, None
    for step in (7, 8):
        others = negative_indices(3, step, INDICES, COUNT, NEGATIVES).numpy()
        first, first_z = side_by_hand(v, theirs, others, first_z)
        second, second_z = side_by_hand(u, ours, others, second_z)
        assert module(S, T, INDICES, step).item() == pytest.approx(first + second, rel=1e-9)
        np.testing.assert_allclose(module.constants, [first_z, second_z], rtol=1e-9)
        for bank, now in ((ours, v), (theirs, u)):
            for place, one in zip(INDICES.tolist(), now, strict=True):
                bank[place] = unit(0.5 * bank[place] + 0.5 * one)
        np.testing.assert_allclose(module.banks, [ours, theirs], rtol=1e-9)


def test_nce_by_pencil() -> None:
    # h of the positive 3 / (3 + 2/4); of the negatives 0.5 / (0.5 + 0.5) and 1.5 / (1.5 + 0.5).
    value = nce(torch.tensor([[3.0, 0.5, 1.5]], dtype=torch.float64), 4).item()
    assert value == pytest.approx(-math.log(6 / 7) - math.log(1 / 2) - math.log(1 / 4), abs=1e-6)


def test_embeddings_and_banks_are_of_length_one() -> None:
    module = make()
    for found in (*module.embed(S, T), *module.banks):
        np.testing.assert_allclose(np.linalg.norm(found.detach().numpy(), axis=1), 1, rtol=1e-6)
    before = module.banks.clone()
    module(S, T, INDICES, 0)
    changed = (module.banks != before).any(dim=2)
    assert changed.nonzero().tolist() == [[bank, place] for bank in (0, 1) for place in sorted(INDICES.tolist())]


def test_negatives_are_the_others() -> None:
    indices = torch.arange(5)
    found = negative_indices(1, 2, indices, 5, 4_000)
    for row, own in zip(found.tolist(), range(5), strict=True):
        places, times = np.unique(row, return_counts=True)
        assert places.tolist() == [i for i in range(5) if i != own]
        assert np.abs(times - 1_000).max() < 150  # 5 standard deviations


def test_negatives_are_a_function_of_seed_step_and_index() -> None:
    found = negative_indices(1, 2, torch.tensor([10, 20]), 1_000, 8)
    assert found.tolist() == negative_indices(1, 2, torch.tensor([20, 10]), 1_000, 8).flip(0).tolist()
    for seed, step in ((1, 3), (2, 2)):
        assert found.tolist() != negative_indices(seed, step, torch.tensor([10, 20]), 1_000, 8).tolist()


def test_a_loaded_state_goes_on_bit_for_bit() -> None:
    module = make()
    module(S, T, INDICES, 0)
    state = copy.deepcopy(module.state_dict())
    expected = [module(S, T, INDICES, step) for step in (1, 2)]
    resumed = make()
    with torch.no_grad():
        resumed.student.weight.zero_()
    resumed.load_state_dict(state)
    assert [resumed(S, T, INDICES, step).item() for step in (1, 2)] == [one.item() for one in expected]
    for name, value in module.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_seed_draws_the_banks() -> None:
    assert torch.equal(make().banks, make().banks)
    assert not torch.equal(make(3).banks, make(4).banks)


def test_gradients_by_finite_differences() -> None:
    module = make()
    module(S, T, INDICES, 0)

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        value: Tensor = copy.deepcopy(module)(student, teacher, INDICES, 1)  # a call moves the banks
        return value

    pair = (S.clone().requires_grad_(), T.clone().requires_grad_())
    assert torch.autograd.gradcheck(loss, pair, atol=1e-7)


def test_both_maps_are_learned_and_the_banks_are_not() -> None:
    module = make()
    module(S, T, INDICES, 0).backward()
    assert {name for name, one in module.named_parameters() if one.grad is not None and one.grad.abs().sum() > 0} == {
        f"{side}.{part}" for side in ("student", "teacher") for part in ("weight", "bias")
    }
    assert not module.banks.requires_grad


def test_two_calls_before_one_backward() -> None:
    # A batch computed in parts, or the term used on two views.
    module, twin = make(), make()
    together = module(S[:1], T[:1], INDICES[:1], 0) + module(S[1:], T[1:], INDICES[1:], 0)
    together.backward()
    for part in (slice(0, 1), slice(1, 2)):
        twin(S[part], T[part], INDICES[part], 0).backward()
    for a, b in zip(module.parameters(), twin.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(a.grad, b.grad)


def test_maps_are_averaged_and_half_precision_is_widened() -> None:
    found = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 3, 4, 4)))
    assert make()(found, T, INDICES, 0).item() == make()(found.mean(dim=(2, 3)), T, INDICES, 0).item()
    half = make().float()(S.to(torch.bfloat16), T.to(torch.bfloat16), INDICES, 0)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(make()(S, T, INDICES, 0).item(), rel=0.05)


def test_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"\(2, 3\), teacher \(1, 5\) and indices \(2,\)"):
        make()(S, T[:1], INDICES, 0)
    with pytest.raises(ConfigError, match="at least two training images"):
        make(count=1)


def test_a_student_learns_to_be_recognised() -> None:
    # The teacher's features are a nonlinear function of 32 images; the student's network sees the images alone.
    rng = np.random.default_rng(2)
    images = torch.from_numpy(rng.normal(size=(32, 8))).float()
    teacher = torch.tanh(images @ torch.from_numpy(rng.normal(size=(8, 6))).float())
    torch.manual_seed(0)
    student = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
    module = Contrast(8, 6, 16, 32, 16, 0.1, 0)

    def retrieved() -> float:
        """Share of the images whose student's embedding is nearest to the teacher's of the same image."""
        with torch.no_grad():
            v, u = module.embed(student(images), teacher)
        return ((v @ u.T).argmax(dim=1) == torch.arange(32)).double().mean().item()

    first, losses = retrieved(), []
    optimizer = torch.optim.Adam([*student.parameters(), *module.parameters()], 0.01)
    for step in range(120):
        batch = torch.from_numpy(rng.permutation(32)[:16])
        loss = module(student(images[batch]), teacher[batch], batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert first < 0.2
    assert retrieved() > 0.9
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:20])
