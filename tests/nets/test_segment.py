"""Networks that give logits of every pixel."""

import pytest
import torch
from torch import nn

from edgekd.nets.segment import FastScnn, FastScnnShape, UNet, UNetShape


@pytest.mark.parametrize(
    "net",
    [
        UNet(UNetShape(width=8, depth=2), 1, 32, 3),
        UNet(UNetShape(width=8, depth=3, layers=1, stem_stride=2, separable=True, widest=16), 1, 32, 3),
        FastScnn(FastScnnShape(width=8, depth=1), 1, 32, 3),
        FastScnn(FastScnnShape(width=16, depth=2), 1, 32, 3),
    ],
)
def test_logits_of_every_pixel_at_any_size(net: nn.Module) -> None:
    net.eval()
    for size in (32, 64, 96):
        assert net(torch.randn(2, 1, size, size)).shape == (2, 3, size, size)


def test_the_sizes_of_a_unet() -> None:
    net = UNet(UNetShape(width=8, depth=3, widest=32), 3, 64, 2)
    assert [stage[-3].out_channels for stage in net.down] == [8, 16, 32, 32]  # type: ignore[index]
    assert [stage[0].in_channels for stage in net.up] == [64, 48, 24]  # type: ignore[index]


def test_the_paper_s_sizes_of_fast_scnn() -> None:
    net = FastScnn(FastScnnShape(), 3, 64, 19)
    assert [layer.out_channels for layer in net.detail if isinstance(layer, nn.Conv2d)] == [32, 32, 48, 48, 64]
    assert sum(parameter.numel() for parameter in net.parameters()) == pytest.approx(1.11e6, rel=0.05)  # table 2


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: UNet(UNetShape(depth=4, stem_stride=2), 1, 48, 2), "made 32 times smaller, .* divide the size 48"),
        (lambda: FastScnn(FastScnnShape(), 1, 48, 2), "made 32 times smaller, which does not divide the size 48"),
    ],
)
def test_a_size_that_cannot_be_halved(make: object, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()  # type: ignore[operator]
