"""The adversarial term against numpy and finite differences, and a student brought to where its teacher is."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd.distill.terms.adversary import Discriminator, adversarial, reverse
from edgekd.distill.terms.features import Regressor
from edgekd.errors import ConfigError

STUDENT = np.array([[1.0, -0.5, 0.25], [0.0, 2.0, -1.0]])
TEACHER = np.array([[0.5, 0.5, -2.0], [-1.0, 3.0, 0.0]])
S, T = torch.from_numpy(STUDENT), torch.from_numpy(TEACHER)


def make(factor: float = 1.0) -> Discriminator:
    torch.manual_seed(0)
    module = Discriminator(3, 4).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(factor)
    return module


def by_hand(module: Discriminator, student: NDArray[np.float64], teacher: NDArray[np.float64]) -> tuple[float, float]:
    """The two terms of the cross-entropy together, and the penalty."""
    w1, b1, w2, b2 = (one.detach().numpy() for one in module.parameters())

    def logit(row: NDArray[np.float64]) -> float:
        hidden = w1 @ row + b1
        return float(w2[0] @ np.where(hidden > 0, hidden, 0.2 * hidden) + b2[0])

    def normalized(row: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((row - row.mean()) / math.sqrt(row.var() + 1e-5))

    entropy = np.mean([math.log(1 + math.exp(-logit(normalized(row)))) for row in teacher])
    entropy += np.mean([math.log(1 + math.exp(logit(normalized(row)))) for row in student])
    penalties = []
    for row in teacher:
        x = normalized(row)
        slopes = [(logit(x + 1e-5 * e) - logit(x - 1e-5 * e)) / 2e-5 for e in np.eye(3)]
        length = math.hypot(*slopes)
        penalties.append(length**2 / 2 if length < 1 else length - 0.5)
    return float(entropy), float(np.mean(penalties))


def test_reverse() -> None:
    x = S.clone().requires_grad_()
    out = reverse(x, 0.3)
    assert torch.equal(out, x)
    (out * T).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad, -0.3 * TEACHER, rtol=1e-12)


@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
def test_the_value_by_hand(factor: float) -> None:
    module = make(factor)
    entropy, penalty = by_hand(module, STUDENT, TEACHER)
    assert adversarial(module, S, T).item() == pytest.approx(entropy + penalty, rel=1e-6)
    assert (penalty > 0.5) == (factor == 4.0)  # both sides of the bend


def test_nothing_to_tell_apart_is_two_ln_2() -> None:
    module = make(0)
    value = adversarial(module, S, T)
    assert value.item() == pytest.approx(2 * math.log(2), rel=1e-12)
    value.backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in module.parameters())


def test_the_discriminators_gradient_by_finite_differences() -> None:
    module = make()
    names = [name for name, _ in module.named_parameters()]

    def value(*parameters: Tensor) -> Tensor:
        copied = Discriminator(3, 4).double()
        for name, parameter in zip(names, parameters, strict=True):
            layer, part = name.removeprefix("layers.").split(".")
            old = copied.layers[int(layer)]
            del old._parameters[part]
            setattr(old, part, parameter)
        return adversarial(copied, S, T)

    given = tuple(one.detach().clone().requires_grad_() for one in module.parameters())
    assert torch.autograd.gradcheck(value, given, atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_students_gradient_is_reversed(scale: float) -> None:
    module, student = make(), S.clone().requires_grad_()
    adversarial(module, student, T, scale).backward()
    assert student.grad is not None
    for place in np.ndindex(*STUDENT.shape):
        shift = np.zeros_like(STUDENT)
        shift[place] = 1e-6
        up, down = (sum(by_hand(module, STUDENT + sign * shift, TEACHER)) for sign in (1, -1))
        assert student.grad[place].item() == pytest.approx(-scale * (up - down) / 2e-6, rel=1e-4, abs=1e-7)
    assert student.grad.abs().max() > 1e-3


def test_the_teacher_gets_no_gradient() -> None:
    teacher = T.clone().requires_grad_()
    adversarial(make(), S.clone().requires_grad_(), teacher).backward()
    assert teacher.grad is None


def test_logits_know_no_scale() -> None:
    module = make()
    np.testing.assert_allclose(module(S).detach(), module(50 * S + 3).detach(), rtol=1e-4)


def test_maps_and_tokens_are_averaged() -> None:
    rng = np.random.default_rng(0)
    maps, tokens = torch.from_numpy(rng.normal(size=(2, 3, 4, 5))), torch.from_numpy(rng.normal(size=(2, 7, 3)))
    given = adversarial(make(), maps, tokens).item()
    assert given == pytest.approx(adversarial(make(), maps.mean(dim=(2, 3)), tokens.mean(dim=1)).item(), rel=1e-12)


def test_channels_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"\(2, 2\) and teacher \(2, 3\) .*'s 3 channels.*Regressor"):
        adversarial(make(), S[:, :2], T)
    with pytest.raises(ConfigError, match=r"\(2, 3\) and teacher \(2, 4, 5, 5\)"):
        adversarial(make(), S, torch.zeros(2, 4, 5, 5))


def told_apart(discriminator: nn.Module, student: Tensor, teacher: Tensor) -> float:
    """The discriminator's accuracy."""
    with torch.no_grad():
        right = torch.cat([discriminator(teacher) > 0, discriminator(student) <= 0])
    return right.double().mean().item()


def train(
    discriminator: Discriminator, learned: list[nn.Parameter], student: nn.Module, teacher: nn.Module, steps: int
) -> None:
    """Steps of the recipe's default: SGD with momentum at 0.1, half a cosine down."""
    optimizer = torch.optim.SGD(learned, 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        noise = torch.randn(64, 4)
        with torch.no_grad():
            wanted = teacher(noise)
        optimizer.zero_grad()
        adversarial(discriminator, student(noise), wanted).backward()
        optimizer.step()
        schedule.step()


@pytest.mark.slow
def test_a_student_ends_up_where_it_cannot_be_told_from_the_teacher() -> None:
    torch.manual_seed(0)
    teacher = nn.Linear(4, 6)
    nn.init.uniform_(teacher.bias, -2, 2)
    student = nn.Sequential(nn.Linear(4, 5), Regressor((5,), (6,)))  # of another width than the teacher's
    fresh, noise = Discriminator(6, 32), torch.randn(4_000, 4)
    with torch.no_grad():
        wanted, first = teacher(noise), student(noise)
    train(fresh, list(fresh.parameters()), student, teacher, 100)  # the discriminator alone: how far apart they are
    assert told_apart(fresh, first, wanted) > 0.9
    discriminator = Discriminator(6, 32)
    train(discriminator, [*discriminator.parameters(), *student.parameters()], student, teacher, 400)
    with torch.no_grad():
        last = student(noise)
    assert told_apart(discriminator, last, wanted) < 0.7  # 0.5 to 0.67 over four seeds
    assert told_apart(fresh, last, wanted) < 0.65  # nor can the one that could
    gaps = [(discriminator.normalized(one) - discriminator.normalized(wanted)).mean(0).norm() for one in (first, last)]
    assert gaps[1] < 0.2 * gaps[0]
