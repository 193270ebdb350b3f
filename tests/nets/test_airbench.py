"""The networks after airbench: sizes as published, the whitening, what is trained, and the order of layers."""

import copy
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from edgekd.card import Teacher
from edgekd.data.examples import Batch, Examples
from edgekd.distill.loop import whiten
from edgekd.errors import ConfigError
from edgekd.nets.airbench import Airbench, AirbenchShape, WhiteningConv, whitening_filters
from edgekd.nets.deployed import Deployed, count_params
from edgekd.nets.families import make
from edgekd.tasks.known import load_card

CARD = load_card("cifar10")
SMALL = AirbenchShape(channels=(6, 8), depth=(2,), residual=True, stem=8, activation="relu")


def images(count: int = 64) -> torch.Tensor:
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=(count, 3, 16, 16)).cumsum(2).cumsum(3) / 8
    return torch.from_numpy(smooth).float()


def test_the_default_is_the_network_of_airbench94() -> None:
    net = make(CARD, Teacher(family="airbench"), {}, "teacher.shape")
    # 24 filters of 3×2×2; 24→64→64, 64→256→256, 256→256→256; 256→10; the published 1.97 million.
    convolutions = 24 * 12 + 9 * (24 * 64 + 64**2 + 64 * 256 + 3 * 256**2)
    weights = convolutions + 24 + 2 * 2 * (64 + 256 + 256) + 256 * 10
    assert count_params(net) == weights == 1_972_792


def test_the_filters_whiten() -> None:
    found = images()
    filters = whitening_filters(found, 2, 12)
    out = nn.functional.conv2d(found, filters[:12]).permute(1, 0, 2, 3).flatten(1).double()
    second_moments = out @ out.T / out.shape[1]
    off = second_moments - second_moments.diag().diag()
    assert off.abs().max() < 1e-3
    assert second_moments.diag()[0] == pytest.approx(1, abs=0.01)  # the strongest component
    assert torch.equal(filters[12:], -filters[:12])


def test_numpy_finds_the_same_first_component() -> None:
    found = images(8)
    patches = np.array(
        [
            image[:, y : y + 2, x : x + 2].ravel()
            for image in found.numpy().astype(np.float64)
            for y in range(15)
            for x in range(15)
        ]
    )
    _, values, vectors = np.linalg.svd(patches / np.sqrt(len(patches)), full_matrices=False)
    expected = vectors[0] / np.sqrt(values[0] ** 2 + 5e-4)
    mine = whitening_filters(found, 2, 1)[0].numpy().ravel()
    assert np.allclose(np.abs(mine), np.abs(expected), rtol=1e-4)


def test_a_training_whitens_once() -> None:
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8))
    examples = Examples(
        np.zeros(40, dtype=np.int64),
        lambda indices, k: Batch(pixels[torch.from_numpy(indices)], torch.zeros(len(indices), dtype=torch.int64)),
    )
    whole = Deployed(make(CARD, Teacher(family="airbench"), {"channels": [8, 8], "stem": 6}, "x"), CARD.data)
    (stem,) = [module for module in whole.modules() if isinstance(module, WhiteningConv)]
    before = stem.weight.clone()
    whiten(whole, whole, examples)
    assert stem.get_buffer("whitened") == 1
    assert not torch.equal(stem.weight, before)
    with torch.no_grad():
        stem.weight.zero_()
    whiten(whole, whole, examples)  # such as one that was loaded
    assert not stem.weight.any()


def test_what_is_trained_and_how_fast() -> None:
    net = Airbench(SMALL, 3, 16, 10)
    x = images(4)
    net(x).logsumexp(1).sum().backward()
    fixed = {name for name, value in net.named_parameters() if not value.requires_grad}
    assert fixed == {name for name, _ in net.named_parameters() if name == "stem.weight" or "norm" in name} - {
        name for name, _ in net.named_parameters() if name.endswith("bias")
    }
    plain = copy.deepcopy(net)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.bias is not None
            module.bias = nn.Parameter(module.bias.detach().clone())  # without the factor
    plain.zero_grad()
    plain(x).logsumexp(1).sum().backward()
    for (name, mine), (_, other) in zip(net.named_parameters(), plain.named_parameters(), strict=True):
        if name.endswith("norm.bias") and mine.grad is not None:
            assert other.grad is not None
            assert torch.allclose(mine.grad, 64 * other.grad, rtol=1e-3, atol=1e-5)


def test_batch_norm_before_the_pooling_is_the_same_as_after_it() -> None:
    net = Airbench(SMALL, 3, 16, 10)
    net.train()
    for _ in range(3):
        net(images())
    x = images(5)
    with torch.no_grad():
        before = net.eval()(x)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        for group in net.groups:
            group.training = True
        assert torch.allclose(net(x), before, rtol=1e-4, atol=1e-5)


def test_a_mirror_gives_the_same_answer_for_an_image_and_its_mirror_image() -> None:
    net = Airbench(AirbenchShape(channels=(6, 8), stem=8, mirror=True), 3, 16, 10).eval()
    x = images(3)
    with torch.no_grad():
        assert torch.allclose(net(x), net(x.flip(3)), atol=1e-5)
        assert not torch.allclose(net.train()(x), net(x.flip(3)), atol=1e-3)


@pytest.mark.parametrize(("patch", "stride"), [(2, 1), (2, 2), (4, 2), (6, 2)])
def test_smaller_images_and_other_stems(patch: int, stride: Literal[1, 2]) -> None:
    shape = AirbenchShape(channels=(6, 8), stem=8, patch=patch, stride=stride, pool="mean")
    net = Airbench(shape, 3, 32, 7).eval()
    with torch.no_grad():
        assert net(torch.zeros(2, 3, 32, 32)).shape == net(torch.zeros(2, 3, 24, 24)).shape == (2, 7)
        if stride == 2:
            assert net.stem(torch.zeros(1, 3, 32, 32)).shape == (1, 8, 16, 16)


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ({"depth": [1, 2]}, "depth: should be one number, or one for each of the 3 groups"),
        ({"depth": [3], "residual": True}, "depth: should be even with residual = true, got [3]"),
        ({"stem": 7}, "stem: got 7; it should be a multiple of 2"),
        ({"channels": [8] * 6}, "images of 32×32 are too small for 6 groups"),
    ],
)
def test_shapes_that_do_not_exist(shape: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(CARD, Teacher(family="airbench"), shape, "teacher.shape")
    assert told in str(caught.value)
