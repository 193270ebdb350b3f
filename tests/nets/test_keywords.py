"""Families for keyword spotting: their sizes as published, and their parts against plain operations."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekd.card import Card, Student
from edgekd.errors import ConfigError
from edgekd.nets.deployed import Deployed, count_macs, count_params, noise_inputs
from edgekd.nets.families import KEYWORD_FAMILIES, make
from edgekd.nets.keywords import BcResNetShape, BroadcastBlock, DsCnnShape, SubSpectralNorm, bc_resnet, ds_cnn
from edgekd.tasks.known import load_card

CARD = load_card("speech-commands")


def made(family: str, shape: dict[str, Any] | None = None, card: Card = CARD) -> nn.Module:
    return make(card, Student(family=family), shape or {}, "student.knobs")


@pytest.mark.parametrize("family", KEYWORD_FAMILIES)
def test_all_parts_learn_and_rows_do_not_touch_each_other(family: str) -> None:
    net = made(family)
    whole, samples = Deployed(net, CARD.data), noise_inputs(CARD.data, 3)
    assert samples.dtype == torch.int16 and samples.min() < -30_000 < 30_000 < samples.max()
    whole(samples).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())
    whole.eval()
    with torch.no_grad():
        assert whole(samples).shape == (3, 12)
        torch.testing.assert_close(whole(samples)[1:2], whole(samples[1:2]), rtol=1e-4, atol=1e-4)


def test_bc_resnets_have_the_published_sizes() -> None:
    # Kim et al. 2021, table 2: 9.2 k, 27.3 k, 54.2 k, 188 k and 321 k parameters with 12 outputs.
    published = {1: 9.2, 2: 27.3, 3: 54.2, 6: 188, 8: 321}
    for width, thousands in published.items():
        count = count_params(bc_resnet(BcResNetShape(width=width), 40, 101, 12))
        assert round(count / 1000, 1 if thousands < 100 else 0) == thousands


def test_the_ds_cnn_is_that_of_mlperf_tiny() -> None:
    net = ds_cnn(DsCnnShape(), 10, 49, 12)
    # Weights of the convolutions, scale and shift of nine normalisations, and the last layer.
    weights = 64 * 40 + 4 * (64 * 9 + 64 * 64)
    assert count_params(net) == weights + 9 * 2 * 64 + 64 * 12 + 12
    mfcc = CARD.data.__class__(source="audio-folder", classes=CARD.data.classes, features="mfcc")
    # 25 × 5 positions, as in its TensorFlow model: 2.66 million multiply-accumulates.
    assert count_macs(net, mfcc) == 25 * 5 * weights + 64 * 12
    assert isinstance(net, nn.Sequential)
    first = next(module for module in net if isinstance(module, nn.Conv2d))
    x = torch.randn(1, 1, 10, 49)
    padded = F.conv2d(F.pad(x, (4, 5, 1, 2)), first.weight, stride=2)  # "SAME" of TensorFlow for an odd remainder
    assert torch.equal(net[1](net[0](x)), padded) and padded.shape == (1, 64, 5, 25)


def test_sub_spectral_normalisation_normalises_each_part_apart() -> None:
    norm = SubSpectralNorm(3, 2).train()
    x = torch.randn(5, 3, 8, 7) * torch.tensor([1.0, 5.0]).repeat_interleave(4)[:, None] + 2
    parts = [F.batch_norm(part, None, None, training=True) for part in x.split(4, dim=2)]
    torch.testing.assert_close(norm(x), torch.cat(parts, dim=2))


def test_a_broadcast_block_adds_what_time_gives_to_all_frequencies() -> None:
    block = BroadcastBlock(8, 8, 1, 2, BcResNetShape(groups=2)).eval()
    x = torch.randn(2, 8, 4, 9)
    two = block.frequencies(x)
    expected = F.relu(x + two + block.times(two.mean(dim=2, keepdim=True)))
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected)
    changed = BroadcastBlock(8, 12, 2, 1, BcResNetShape(groups=2)).eval()
    assert changed(x).shape == (2, 12, 2, 9)


@pytest.mark.parametrize(
    ("family", "shape", "said"),
    [
        ("bc-resnet", {"groups": 4}, r"bins 40 should be a multiple of 8 · groups, 32, and at least 40"),
        ("keyword-cnn", {"channels": [8] * 8}, r"8 stages are too many for features of 40×49"),
        ("keyword-cnn", {"channels": [12]}, r"channels\.0: got 12; it should be a multiple of 8"),
        ("ds-cnn", {"stride": [0, 2]}, r"stride\.0: got 0; it should be greater than or equal to 1"),
        ("cifar-resnet", {}, r"'cifar-resnet' is not for keyword-spotting; .+bc-resnet.+"),
    ],
)
def test_a_wrong_family_or_shape_is_one_line(family: str, shape: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made(family, shape)
