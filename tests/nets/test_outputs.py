"""What a network gives: logits among several outputs, probabilities, sigmoids."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekd.card import Card, Student, Teacher
from edgekd.errors import ConfigError
from edgekd.nets.deployed import Deployed, noise_inputs
from edgekd.nets.families import make
from edgekd.nets.outputs import are_probabilities, are_sigmoids, log_of
from edgekd.nets.teachers import load_teacher_file
from edgekd.nets.weights import save_state
from edgekd.tasks.known import load_card

NETS = """
from types import SimpleNamespace
from collections import namedtuple
import torch
from torch import nn

Named = namedtuple("Named", ["aux", "main"])

class Net(nn.Module):
    def __init__(self, classes, kind):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU())
        self.head, self.kind = nn.Linear(12, classes), kind
    def forward(self, x):
        f = self.body(x)
        y = self.head(f)
        return {
            "dict": lambda: {"features": f, "scores": y},
            "tuple": lambda: (f, y),
            "training": lambda: (y, f) if self.training else y,
            "object": lambda: SimpleNamespace(loss=None, logits=y),
            "two": lambda: {"aux": -y, "logits": y},
            "named": lambda: Named(-y, y),
            "none": lambda: (f, f),
            "softmax": lambda: y.softmax(1).view(-1, 10),
            "by hand": lambda: y.exp() / y.exp().sum(1, keepdim=True),
            "log": lambda: y.log_softmax(1),
            "sigmoid": lambda: torch.sigmoid(y)[:, :],
            "random": lambda: nn.functional.dropout(y, 0.5),
            "plain": lambda: y,
        }[self.kind]()

def net(kind, classes):
    return Net(classes, kind)
"""


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Card:
    """A card beside networks of every kind."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_outputs", raising=False)
    (tmp_path / "my_outputs.py").write_text(NETS)
    return dataclasses.replace(load_card("digits"), file=str(tmp_path / "card.toml"))


def student(output: str = "") -> Student:
    return Student(family="import", function="my_outputs:net", output=output)


def made(card: Card, kind: str, output: str = "") -> nn.Module:
    torch.manual_seed(0)
    return make(card, student(output), {"kind": kind}, "student.knobs")


@pytest.mark.parametrize("kind", ["dict", "tuple", "training", "object", "two", "plain"])
def test_the_logits_are_found(card: Card, kind: str) -> None:
    net, x = made(card, kind), torch.rand(3, 1, 8, 8)
    for each in (net.train(), net.eval()):
        assert torch.equal(each(x), each.head(each.body(x)))  # type: ignore[operator]


def test_the_logits_can_be_named(card: Card) -> None:
    x = torch.rand(3, 1, 8, 8)
    first, named = made(card, "named"), made(card, "named", "main")
    assert torch.equal(first(x), -named(x))
    assert torch.equal(made(card, "named", "1")(x), named(x))
    with pytest.raises(ConfigError) as caught:
        made(card, "dict", "score")
    assert str(caught.value).startswith(
        f"{card.file}: student.output: 'score' is unknown; did you mean 'scores'? The network gives features (8, 12), "
    )


def test_outputs_without_logits_are_told(card: Card) -> None:
    with pytest.raises(ConfigError) as caught:
        made(card, "none")
    assert str(caught.value) == (
        f"{card.file}: student: the network gives several outputs, and none of them is a tensor (batch, 10); name the "
        'logits with student.output = "…". The network gives 0 (8, 12), 1 (8, 12).'
    )


@pytest.mark.parametrize("kind", ["softmax", "by hand"])
def test_probabilities_become_logits(card: Card, kind: str) -> None:
    net, x = made(card, kind).eval(), torch.rand(5, 1, 8, 8)
    logits = net.head(net.body(x))  # type: ignore[operator]
    assert torch.allclose(net(x), logits.log_softmax(1), atol=1e-5)


def test_logarithms_and_logits_stay_as_they_are(card: Card) -> None:
    x = torch.rand(5, 1, 8, 8)
    for kind in ("log", "plain"):
        net = made(card, kind)
        plain = net.head(net.body(x))  # type: ignore[operator]
        assert torch.equal(net(x), plain.log_softmax(1) if kind == "log" else plain)


def test_sigmoids_are_refused(card: Card) -> None:
    with pytest.raises(
        ConfigError, match=r"card\.toml: student: the network gives each class a probability of its own"
    ):
        made(card, "sigmoid")


def test_looking_at_a_network_draws_no_random_number(card: Card) -> None:
    following = []
    for kind in ("plain", "random"):
        made(card, kind)
        following.append(torch.rand(1))
    assert torch.equal(*following)


def test_a_teacher_that_gives_probabilities_is_told(
    card: Card, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = Teacher(family="import", function="my_outputs:net", shape={"kind": "softmax"})
    card = dataclasses.replace(card, teacher=teacher)
    save_state(made(card, "softmax"), tmp_path / "t.safetensors", {})
    loaded = load_teacher_file(card, tmp_path / "t.safetensors")
    assert capsys.readouterr().err == (
        f"{tmp_path / 't.safetensors'}: the teacher gives probabilities; their logarithms are taken as its logits\n"
    )
    assert loaded.identity["outputs"] == "logarithms"
    images = noise_inputs(card.data, 4)
    plain = Deployed(made(card, "plain"), card.data)(images)
    assert torch.allclose(loaded.module(images), plain.log_softmax(1), atol=1e-5)


def test_what_answers_look_like() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 9.0]])
    assert are_probabilities(logits.softmax(1)) and not are_probabilities(logits)
    assert are_sigmoids(logits.sigmoid()) and not are_sigmoids(logits) and not are_sigmoids(logits.softmax(1))
    assert not are_sigmoids(torch.rand(4, 3) * 0.1)  # a network that has learnt nothing yet
    assert torch.allclose(log_of(torch.tensor([0.0, 1.0])), torch.tensor([-87.3365, 0.0]))
