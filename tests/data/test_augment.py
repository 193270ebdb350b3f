"""Augmenting whole batches: every operation equals torchvision's, applied image by image at the same magnitude."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import autoaugment
from torchvision.transforms.v2 import functional

from edgekd.data.augment import (
    OPERATIONS,
    SIGNED,
    apply_operations,
    magnitude_table,
    rand_augment,
    trivial_augment,
)

SHAPES = [(32, 32, 3), (17, 24, 3), (28, 28, 1)]
STILL = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}


def affine(image: Tensor, **arguments) -> Tensor:
    moved: Tensor = functional.affine(image, **(STILL | arguments))
    return moved


def degrees(tangent: float) -> float:
    return math.degrees(math.atan(tangent))


# As torchvision's TrivialAugmentWide and RandAugment call them, on one image (C, H, W).
REFERENCE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda image, m: image,
    "shear_x": lambda image, m: affine(image, shear=[degrees(m), 0.0], center=[0, 0]),
    "shear_y": lambda image, m: affine(image, shear=[0.0, degrees(m)], center=[0, 0]),
    "translate_x": lambda image, m: affine(image, translate=[int(m), 0]),
    "translate_y": lambda image, m: affine(image, translate=[0, int(m)]),
    "rotate": lambda image, m: functional.rotate(image, m),
    "brightness": lambda image, m: functional.adjust_brightness(image, 1 + m),
    "color": lambda image, m: functional.adjust_saturation(image, 1 + m),
    "contrast": lambda image, m: functional.adjust_contrast(image, 1 + m),
    "sharpness": lambda image, m: functional.adjust_sharpness(image, 1 + m),
    "posterize": lambda image, m: functional.posterize(image, int(m)),
    "solarize": lambda image, m: functional.solarize(image, m),
    "autocontrast": lambda image, m: functional.autocontrast(image),
    "equalize": lambda image, m: functional.equalize(image),
}
GEOMETRIC = OPERATIONS[1:6]
ROUNDED = ("color", "contrast", "sharpness")
"""torchvision adds two products in one rounding or in two, as the processor has it; next to a whole number, the grey
level cut off from the sum is then one or the other."""


def random_images(count: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8))


def one_by_one(images: Tensor, names: list[str], magnitudes: list[float]) -> Tensor:
    channels_first = zip(images.permute(0, 3, 1, 2), names, magnitudes, strict=True)
    return torch.stack([REFERENCE[name](image, m).permute(1, 2, 0) for image, name, m in channels_first])


def all_magnitudes(name: str, policy: str, shape: tuple[int, int, int]) -> list[float]:
    place = OPERATIONS.index(name)
    row: list[float] = magnitude_table(policy, *shape[:2])[place].tolist()
    return row + [-m for m in row] if SIGNED[place] else row


def applied(images: Tensor, name: str, magnitudes: list[float]) -> Tensor:
    chosen = torch.full((len(images),), OPERATIONS.index(name))
    return apply_operations(images, chosen, torch.tensor(magnitudes, dtype=torch.float64))


def on_an_edge(name: str, m: float, height: int, width: int) -> NDArray[np.bool_]:
    """(H, W) which pixels' centres come from a point between two pixels, so that either is the nearest."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    if name == "rotate":
        centre = complex(width / 2, height / 2)
        # y points down, so that this takes back a turn counter-clockwise
        source = (x + 1j * y - centre) * np.exp(1j * math.radians(m)) + centre
        x, y = source.real, source.imag
    x, y = x + m * y * (name == "shear_x"), y + m * x * (name == "shear_y")
    near: NDArray[np.bool_] = np.minimum(np.abs(x - x.round()), np.abs(y - y.round())) < 1e-4
    return near


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_magnitudes_are_those_of_torchvision(policy: str) -> None:
    height, width = 30, 44
    theirs = (
        autoaugment.TrivialAugmentWide()._augmentation_space(31)
        if policy == "trivial"
        else autoaugment.RandAugment()._augmentation_space(31, (height, width))
    )
    table = magnitude_table(policy, height, width)
    assert [name.lower() for name in theirs] == [name.replace("_", "") for name in OPERATIONS]
    for row, signed, (name, (expected, has_sign)) in zip(table, SIGNED, theirs.items(), strict=True):
        assert np.allclose(row, expected.expand(31).numpy(), rtol=1e-6, atol=1e-6), name
        assert signed == has_sign, name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("policy", ["trivial", "rand"])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometric_operations_take_the_nearest_pixel_as_torchvision_does(
    name: str, policy: str, shape: tuple[int, int, int]
) -> None:
    magnitudes = all_magnitudes(name, policy, shape)
    images = random_images(len(magnitudes), shape)
    seen = applied(images, name, magnitudes)
    edges = np.stack([on_an_edge(name, m, *shape[:2]) for m in magnitudes])
    differing = (seen != one_by_one(images, [name] * len(images), magnitudes)).any(3).numpy()
    assert edges.mean() < 0.05
    assert not (differing & ~edges).any()
    assert (seen != images).any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("policy", ["trivial", "rand"])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in GEOMETRIC])
def test_colour_operations_equal_torchvision(name: str, policy: str, shape: tuple[int, int, int]) -> None:
    magnitudes = all_magnitudes(name, policy, shape)
    images = random_images(len(magnitudes), shape) // 2 + 40  # so that autocontrast and equalize have much to do
    expected = one_by_one(images, [name] * len(images), magnitudes)
    difference = (applied(images, name, magnitudes).int() - expected.int()).abs()
    if name in ROUNDED:
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.005
    else:
        assert not difference.any()


def test_contrast_of_large_images_uses_their_exact_mean() -> None:
    images = torch.full((1, 300, 300, 1), 255, dtype=torch.uint8)  # a sum above 2**24
    images[0, 0, 0] = 0
    seen = applied(images, "contrast", [-0.9])
    mean = 255 * (90_000 - 1) / 90_000
    assert seen[0, 0, 0].item() == int(0.9 * mean)
    assert seen[0, 5, 5].item() == int(0.1 * 255 + 0.9 * mean)


@pytest.mark.parametrize("name", ["color", "identity"])
def test_colour_of_one_channel_is_the_identity(name: str) -> None:
    images = random_images(3, (8, 8, 1))
    assert torch.equal(applied(images, name, [0.9, -0.9, 0.5]), images)


def test_images_too_small_for_a_neighbourhood_keep_their_sharpness() -> None:
    images = random_images(2, (2, 5, 3))
    assert torch.equal(applied(images, "sharpness", [0.9, -0.9]), images)


def test_images_of_one_grey_stay_as_they_are() -> None:
    images = torch.full((2, 8, 8, 3), 77, dtype=torch.uint8)
    for name in ("autocontrast", "equalize", "sharpness"):
        assert torch.equal(applied(images, name, [0.5, 0.5]), images), name


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_comes_out_the_same_in_any_batch_and_place(shape: tuple[int, int, int]) -> None:
    rng, count = np.random.default_rng(1), 140
    images, before = random_images(count, shape), random_images(count, shape)
    chosen, levels = np.arange(count) % 14, rng.integers(0, 31, count)
    table = magnitude_table("trivial", *shape[:2])
    operations, magnitudes = torch.from_numpy(chosen), torch.from_numpy(table[chosen, levels])
    together = apply_operations(images, operations, magnitudes)
    assert torch.equal(images, before)
    order = torch.from_numpy(rng.permutation(count))
    assert torch.equal(apply_operations(images[order], operations[order], magnitudes[order]), together[order])
    for i in range(count):
        one = slice(i, i + 1)
        assert torch.equal(apply_operations(images[one], operations[one], magnitudes[one]), together[one]), i


def test_trivial_augment_draws_operation_strength_and_sign() -> None:
    images = random_images(4, (16, 16, 3))
    rotate, solarize = (OPERATIONS.index(name) + 0.5 for name in ("rotate", "solarize"))
    u = np.array([[rotate / 14, 0.999, 0.4], [rotate / 14, 20.1 / 31, 0.6], [solarize / 14, 0.0, 0.1], [0.0, 0.5, 0.5]])
    expected = one_by_one(images, ["rotate", "rotate", "solarize", "identity"], [-135.0, 90.0, 255.0, 0.0])
    differing = (trivial_augment(images, u) != expected).any(3)
    edges = np.stack([on_an_edge("rotate", m, 16, 16) for m in (-135.0, 90.0, 0.0, 0.0)])
    assert not (differing.numpy() & ~edges).any()


def test_trivial_augment_chooses_among_all_operations_and_strengths_alike() -> None:
    # One pixel, darkened by a brightness below one, tells operation, sign and strength.
    images = torch.full((14 * 2 * 31 * 40, 1, 1, 1), 200, dtype=torch.uint8)
    u = np.random.default_rng(0).random((len(images), 3))
    seen = trivial_augment(images, u).flatten().numpy()
    strengths = np.arange(1, 31)
    levels = (200 * (1 - 0.033 * strengths).astype(np.float32)).astype(np.uint8)
    assert len(set(levels)) == 30
    # Solarized, a pixel of 200 is 55, and so is none of these; posterized, 200, 192 or 128.
    counts = np.array([(seen == level).sum() for level in levels if level not in (0, 55, 128, 192, 200)])
    assert len(counts) >= 28
    assert np.abs(counts - 40).max() < 5 * np.sqrt(40)


def test_rand_augment_applies_its_operations_in_turn() -> None:
    images = random_images(3, (16, 16, 3))
    names = [("translate_x", "solarize"), ("posterize", "brightness"), ("brightness", "posterize")]
    u = np.array([[[(OPERATIONS.index(name) + 0.5) / 14, 0.3] for name in pair] for pair in names])
    table = magnitude_table("rand", 16, 16)[:, 9]
    expected = images
    for turn in (0, 1):
        now = [pair[turn] for pair in names]
        signs = [-1 if SIGNED[OPERATIONS.index(name)] else 1 for name in now]
        magnitudes = [sign * table[OPERATIONS.index(name)] for sign, name in zip(signs, now, strict=True)]
        expected = one_by_one(expected, now, magnitudes)
    assert torch.equal(rand_augment(images, u, 9), expected)
    assert not torch.equal(expected[1], expected[2])
