"""Detectors: the places where they look, what they give, and that each knob does what it says."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from edgekd.nets.detect import Detector, DetectorShape, centres, strides_of


def test_the_places_are_the_middles_of_the_cells() -> None:
    at = centres((8, 16), (4, 8))
    assert at.shape == (2, 8 + 2)
    assert at[:, 0].tolist() == [2, 2] and at[:, 5].tolist() == [6, 6] and at[:, -1].tolist() == [12, 4]


@pytest.mark.parametrize("strides", [(8,), (8, 16), (4, 32), (4, 8, 16, 32)])
def test_strides_are_known_from_the_number_of_places(strides: tuple[int, ...]) -> None:
    for size in ((64, 96), (192, 256)):
        assert strides_of(centres(size, strides).shape[1], size) == strides
    with pytest.raises(ValueError, match="the network gives 5 places, which are no grids of"):
        strides_of(5, (64, 64))


@pytest.mark.parametrize(
    "knobs",
    [{}, {"depth": 0, "strides": (8,)}, {"separable": True, "layers": 2}, {"strides": (4, 8, 16, 32)}, {"deepest": 16}],
)
def test_outputs_are_boxes_and_scores(knobs: dict[str, Any]) -> None:
    shape = DetectorShape(width=8, neck=16, **knobs)
    net = Detector(shape, 1, 64, 96, 4 + 3).eval()
    with torch.no_grad():
        found = net(torch.randn(2, 1, 64, 96))
        smaller = net(torch.randn(1, 1, 32, 32))  # views may be smaller than the images
    at = centres((64, 96), shape.strides)
    assert found.shape == (2, 7, at.shape[1])
    assert smaller.shape[2] == centres((32, 32), shape.strides).shape[1]
    assert ((found[:, :2] < at) & (found[:, 2:4] > at)).all()  # each place lies in its box
    assert (found[:, 4:] < 0.1).all()  # untrained networks are not sure
    others = {type(part).__name__ for part in net.modules() if not list(part.children())}
    assert others == {"Conv2d", "BatchNorm2d", "ReLU"}


def test_gradients_reach_all_weights() -> None:
    net = Detector(DetectorShape(width=8, neck=16), 3, 64, 64, 6)
    net(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="deepest: the resolution is made 32 times smaller, which does not divide 72"):
        Detector(DetectorShape(), 3, 64, 72, 5)
    for strides, told in (((16, 8), "should rise"), ((8, 32), "at most deepest, 16")):
        with pytest.raises(ValidationError, match=told):
            DetectorShape(strides=strides, deepest=16)  # type: ignore[arg-type]
