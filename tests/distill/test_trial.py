"""Networks that cannot be trained are told by two examples."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgekd.card import Training
from edgekd.distill.trial import check_learning, check_small, check_steady
from edgekd.errors import ConfigError
from edgekd.nets.deployed import Deployed, noise_inputs
from edgekd.nets.families import make
from edgekd.tasks.known import load_card

CARD = load_card("digits")


class Net(nn.Module):
    def __init__(self, last: Callable[[Tensor], object], classes: int = 10) -> None:
        super().__init__()
        self.body, self.last = nn.Sequential(nn.Flatten(), nn.Linear(64, classes)), last

    def forward(self, x: Tensor) -> object:
        return self.last(self.body(x))


def test_a_network_that_can_be_trained() -> None:
    state = torch.get_rng_state()
    check_learning(Net(lambda x: x), CARD, noise_inputs(CARD.data, 2), "card.toml: student")
    dropout = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 10))
    check_learning(dropout, CARD, noise_inputs(CARD.data, 2), "card.toml: student")
    assert torch.equal(torch.get_rng_state()[:8], state[:8])


@pytest.mark.parametrize(
    ("last", "told"),
    [
        (lambda x: nn.functional.dropout(x, 0.5), "gives different answers to the same inputs in evaluation mode"),
        (lambda x: x.detach(), "no gradient reaches the network's parameters"),
        (lambda x: x / (x - x), "gives numbers that are not finite"),
        (lambda x: x[:, :7], r"gives \(7,\) outputs for 10 classes of data"),
        (lambda x: x[:1], r"gives \(1, 10\) for 2 examples"),
        (lambda x: [x], "gives a list; it should give its logits"),
        (lambda x: x.view(16, 10), "cannot take the card's data: shape"),
    ],
)
def test_what_is_wrong_is_told(last: Callable[[Tensor], object], told: str) -> None:
    with pytest.raises(ConfigError, match=rf"^card\.toml: student: the network {told}|^card\.toml: student: {told}"):
        check_learning(Net(last), CARD, noise_inputs(CARD.data, 2), "card.toml: student")


def test_a_network_that_gives_several_outputs_in_training_alone() -> None:
    class Two(Net):
        def forward(self, x: Tensor) -> object:
            return (self.body(x), x) if self.training else self.body(x)

    with pytest.raises(ConfigError, match="gives a tuple"):
        check_learning(Two(lambda x: x), CARD, noise_inputs(CARD.data, 2), "card.toml: student")


def test_the_answers_of_a_teacher() -> None:
    inputs, net = noise_inputs(CARD.data, 3), Net(lambda x: x)
    assert torch.equal(check_steady(Deployed(net, CARD.data), inputs, "t.pt"), Deployed(net, CARD.data)(inputs))


def test_small_images_need_images_and_a_network_that_takes_them() -> None:
    training = Training(epochs=4, small_share=0.5)
    inputs, net = noise_inputs(CARD.data, 2), Net(lambda x: x)
    check_small(net, CARD, inputs, Training(epochs=4), "recipe")
    check_small(make(CARD, CARD.student, {"channels": [4, 6]}, "student.knobs"), CARD, inputs, training, "recipe")
    with pytest.raises(
        ConfigError, match=r"recipe\.small_share: the network cannot take smaller images, of 6×6 \(.*0$"
    ):
        check_small(net, CARD, inputs, training, "recipe")
    with pytest.raises(
        ConfigError, match=r"recipe\.small_share: is for images that get one class; set small_share = 0"
    ):
        check_small(net, CARD, inputs[:, :, 0, 0], training, "recipe")
