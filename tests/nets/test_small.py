"""The small families: layers, sizes, and a grid that does not fit."""

import pytest
import torch

from edgekd.errors import ConfigError
from edgekd.nets.deployed import count_macs, count_params
from edgekd.nets.families import make
from edgekd.tasks.known import load_card

CARD = load_card("digits")


def test_an_mlp_has_the_asked_layers() -> None:
    net = make(CARD, CARD.student.__class__(family="mlp"), {"hidden": [12, 7]}, "student.knobs")
    layers = [tuple(m.weight.shape) for m in net.modules() if isinstance(m, torch.nn.Linear)]
    assert layers == [(12, 64), (7, 12), (10, 7)]
    assert count_params(net) == (64 + 1) * 12 + (12 + 1) * 7 + (7 + 1) * 10
    assert count_macs(net, CARD.data) == 64 * 12 + 12 * 7 + 7 * 10
    assert net(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_a_convnet_has_the_asked_layers() -> None:
    net = make(CARD, CARD.student, {"channels": [4, 6], "hidden": 5, "grid": 2}, "student.knobs")
    convolutions = [tuple(m.weight.shape) for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    layers = [tuple(m.weight.shape) for m in net.modules() if isinstance(m, torch.nn.Linear)]
    assert convolutions == [(4, 1, 3, 3), (6, 4, 3, 3)]
    assert layers == [(5, 6 * 2 * 2), (10, 5)]
    batch_norm = 2 * (4 + 6)
    assert count_params(net) == 4 * 9 + 6 * 4 * 9 + batch_norm + (24 + 1) * 5 + (5 + 1) * 10
    assert count_macs(net, CARD.data) == 64 * 4 * 9 + 16 * 6 * 4 * 9 + 24 * 5 + 5 * 10
    assert net(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize(
    ("shape", "last"),
    [({"channels": [4, 6], "grid": 3}, 4), ({"channels": [4] * 5}, 0), ({"channels": [4], "grid": 16}, 8)],
)
def test_a_grid_that_does_not_divide_the_map_is_told(shape: dict[str, object], last: int) -> None:
    with pytest.raises(ConfigError) as caught:
        make(CARD, CARD.student, shape, "student.knobs")
    grid = shape.get("grid", 1)
    assert str(caught.value) == (
        f"{CARD.file}: student.knobs: grid {grid} does not divide the last feature map of {last}×{last}"
    )


def test_a_shape_is_strictly_typed() -> None:
    for shape, message in (
        ({"channels": [4], "hiden": 3}, r"hiden: unknown key; did you mean 'hidden'\? Known: channels, grid, hidden"),
        ({"channels": []}, r"channels: got \[\]; it "),
        ({"channels": [0]}, r"channels\.0: got 0; it should be greater than or equal to 1"),
        ({"hidden": "many"}, r'hidden: got "many"; it should be a valid integer'),
    ):
        with pytest.raises(ConfigError, match=message):
            make(CARD, CARD.student, shape, "student.knobs")
