"""Networks that train with branches: folded, checked, and left alone where they have none."""

import dataclasses

import pytest
import torch
from torch import nn

from edgekd.card import Student
from edgekd.errors import ModelError
from edgekd.nets.deployed import Deployed, count_params, noise_inputs
from edgekd.nets.families import make
from edgekd.nets.folding import folded
from edgekd.nets.outputs import Head, add_head, head_of
from edgekd.tasks.known import load_card

CARD = load_card("digits")


class Branches(nn.Module):
    """Two convolutions whose sum is one."""

    def __init__(self, wrong: float = 0.0) -> None:
        super().__init__()
        self.one, self.other, self.wrong = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1), wrong

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.one(x) + self.other(x) if hasattr(self, "other") else self.one(x)
        return found

    def fold(self) -> None:
        self.one.weight.data += self.other.weight.data + self.wrong  # a second time there is no other one
        assert self.one.bias is not None and self.other.bias is not None
        self.one.bias.data += self.other.bias.data
        del self.other


class Reparameterize(Branches):
    def reparameterize(self) -> None:
        self.fold()


class Switch(Branches):
    def switch_to_deploy(self) -> None:
        self.fold()


class Fuse(Branches):
    def fuse(self) -> nn.Module:
        self.fold()
        return self.one


class Whole(nn.Sequential):
    """Folds all its parts by one call."""

    def reparameterize_unireplknet(self) -> None:
        for part in self:
            if isinstance(part, Reparameterize):
                part.reparameterize()


class WithArgument(nn.Module):
    """Its `fuse` joins two tensors, and a layer of it is called as a method could be."""

    def __init__(self) -> None:
        super().__init__()
        self.reparameterize = nn.Flatten()

    def fuse(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return one + other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fuse(self.reparameterize(x), self.reparameterize(x))


def net(*parts: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*parts, nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


def answers(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = Deployed(network, CARD.data).eval()(noise_inputs(CARD.data, 5))
    return found


@pytest.mark.parametrize("kind", [Reparameterize, Switch, Fuse])
def test_branches_are_folded_on_a_copy(kind: type[Branches]) -> None:
    trained = net(nn.Sequential(kind())).train()
    before, expected = count_params(trained), answers(trained)
    trained.train()
    copied = folded(trained, CARD.data)
    assert (count_params(copied), count_params(trained)) == (before - 4 * 10, before)
    assert (copied.training, trained.training) == (False, True)
    assert torch.allclose(answers(copied), expected, atol=1e-5)


def test_a_network_that_folds_all_its_parts_itself() -> None:
    whole = Whole(*net(Reparameterize()))
    assert count_params(folded(whole, CARD.data)) == count_params(whole) - 40


def test_a_network_that_gives_another_one_keeps_its_head() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net(Reparameterize())

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.inner(x)}

        def fuse(self) -> nn.Module:
            return Outer2(self.inner)

    class Outer2(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.inner(x),)

    outer = add_head(Outer(), Head(10, "", "card.toml: student"))
    copied = folded(outer, CARD.data)
    assert type(copied) is Outer2 and head_of(copied) is not None
    assert torch.allclose(answers(copied), answers(outer), atol=1e-5)


def test_networks_without_branches_are_left_alone() -> None:
    for plain in (net(nn.Conv2d(1, 4, 3, padding=1)), nn.Sequential(WithArgument(), nn.Linear(64, 10))):
        assert folded(plain, CARD.data) is plain


def test_a_folding_that_changes_the_answers_is_told() -> None:
    with pytest.raises(
        ModelError, match=r"cannot be folded: .* differ by .* 0\.0001 is allowed \(Switch\.switch_to_deploy\)"
    ):
        folded(net(Switch(wrong=0.1)), CARD.data)


def test_a_folding_that_fails_is_told() -> None:
    class Broken(nn.Linear):
        def reparameterize(self) -> None:
            raise KeyError("no branch here")

    broken = nn.Sequential(nn.Flatten(), Broken(64, 10))
    with pytest.raises(ModelError, match=r"cannot be folded \(Broken\.reparameterize\): 'no branch here'"):
        folded(broken, CARD.data)


def test_networks_of_timm() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    card = load_card("cifar10")
    card = dataclasses.replace(card, data=dataclasses.replace(card.data, size=64))
    for name in ("mobileone_s0", "fastvit_t8"):
        network = make(card, Student(family="timm"), {"model": name}, "student.knobs").eval()
        assert count_params(folded(network, card.data)) < count_params(network), name
