"""Preprocessing against its formula, and what a network costs, counted by hand."""

import dataclasses

import numpy as np
import torch
from torch import nn

from edgekd.nets.deployed import Deployed, Preprocess, count_macs, count_params
from edgekd.tasks.known import load_card
from edgekd.tasks.task import Normalization

COLOUR = load_card("cifar10").data
NORMALIZATION = Normalization(mean=COLOUR.mean, std=COLOUR.std, top=255, channels_last=True)


def test_preprocessing_is_the_formula() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    images[0, 0, 0], images[0, 0, 1] = 0, 255
    expected = (images.astype(np.float64) / 255 - COLOUR.mean) / COLOUR.std
    given = Preprocess(NORMALIZATION)(torch.from_numpy(images))
    assert given.dtype == torch.float32
    assert given.is_contiguous()
    assert given.shape == (4, 3, 32, 32)
    assert np.abs(given.numpy() - expected.transpose(0, 3, 1, 2)).max() < 2e-6


def test_deployed_is_preprocessing_then_the_network() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 900, 10))
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(Deployed(net, COLOUR)(images), net(Preprocess(NORMALIZATION)(images)))
    # Constants of preprocessing are no weights: they must not be counted or trained.
    assert count_params(Deployed(net, COLOUR)) == count_params(net) == 4 * 3 * 9 + 4 + 3_600 * 10 + 10


def test_multiply_accumulates_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),  # 16×16 places, 8 outputs of 3×3×3 inputs
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 5, padding=2, groups=8),  # 16×16 places, 8 outputs of 5×5 inputs
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    assert count_macs(net, COLOUR) == 256 * 8 * 27 + 256 * 8 * 25 + 80
    assert count_macs(net, dataclasses.replace(COLOUR, size=16)) == 64 * 8 * 27 + 64 * 8 * 25 + 80


def test_counting_leaves_the_network_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    count_macs(net, COLOUR)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    count_macs(net.eval(), COLOUR)
    assert not net.training
