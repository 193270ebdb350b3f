"""Views: pure functions of (seed, index, k), equal to a numpy reference, uniformly drawn."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgekd.card import Augment
from edgekd.data.views import draws, permutation, view

CROP_AND_FLIP = Augment(crop_padding=4, flip=True)
MASK = 2**64 - 1


def random_images(count: int, height: int = 12, width: int = 12, channels: int = 3) -> torch.Tensor:
    rng = np.random.default_rng(5)
    return torch.from_numpy(rng.integers(1, 256, (count, height, width, channels), dtype=np.uint8))


def split_mix(state: int) -> int:
    """The output of SplitMix64 that follows `state`, in Python integers."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def draw_by_hand(seed: int, index: int, k: int, number: int) -> float:
    row = split_mix(split_mix(split_mix(seed) ^ k) ^ index)
    return (split_mix((row + number * 0x9E3779B97F4A7C15) & MASK) >> 11) / 2**53


def view_by_hand(image: NDArray[np.uint8], index: int, k: int, seed: int, augment: Augment) -> NDArray[np.uint8]:
    padding, (height, width, _) = augment.crop_padding, image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    top = int(draw_by_hand(seed, index, k, 0) * (2 * padding + 1))
    left = int(draw_by_hand(seed, index, k, 1) * (2 * padding + 1))
    cropped = padded[top : top + height, left : left + width]
    return cropped[:, ::-1] if augment.flip and draw_by_hand(seed, index, k, 2) < 0.5 else cropped


def test_the_reference_generator_gives_the_published_numbers() -> None:
    # https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64, seed 1234567
    assert split_mix(1234567) == 6457827717110365317
    assert split_mix(1234567 + 0x9E3779B97F4A7C15) == 3203168211198807973


@pytest.mark.parametrize("seed", [0, 1, 2**40])
@pytest.mark.parametrize("k", [0, 7])
def test_draws_equal_the_reference_generator(seed: int, k: int) -> None:
    indices = np.array([0, 1, 49_999, 3])
    expected = [[draw_by_hand(seed, int(i), k, number) for number in range(5)] for i in indices]
    assert draws(seed, indices, k, 5).tolist() == expected


def test_draws_are_uniform_and_independent() -> None:
    u = draws(0, np.arange(50_000), 3, 2)
    sd = np.sqrt(1 / 12)
    assert u.min() >= 0
    assert u.max() < 1
    # Five standard errors each: of the mean, of the variance, of a share, of a correlation.
    assert abs(u.mean() - 0.5) < 5 * sd / np.sqrt(1e5)
    assert abs(u.var() - 1 / 12) < 5 * np.sqrt((1 / 80 - 1 / 144) / 1e5)
    shares = np.histogram(u, bins=20, range=(0, 1))[0] / 1e5
    assert np.abs(shares - 0.05).max() < 5 * np.sqrt(0.05 * 0.95 / 1e5)
    others = {
        "next draw": (u[:, 0], u[:, 1]),
        "next index": (u[:-1, 0], u[1:, 0]),
        "next view": (u[:, 0], draws(0, np.arange(50_000), 4, 1)[:, 0]),
        "next seed": (u[:, 0], draws(1, np.arange(50_000), 3, 1)[:, 0]),
    }
    for name, (first, second) in others.items():
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(5e4), name


def test_a_view_does_not_depend_on_the_batch_it_is_in() -> None:
    images = random_images(40)
    everything = view(images, np.arange(40), 2, 9, CROP_AND_FLIP)
    chosen = np.array([31, 0, 7, 7, 39])
    assert torch.equal(view(images[chosen], chosen, 2, 9, CROP_AND_FLIP), everything[chosen])
    for i in (0, 17, 39):
        assert torch.equal(view(images[i : i + 1], np.array([i]), 2, 9, CROP_AND_FLIP), everything[i : i + 1])


@pytest.mark.parametrize(
    "augment",
    [CROP_AND_FLIP, Augment(crop_padding=2), Augment(flip=True), Augment(crop_padding=15, flip=True)],
    ids=["crop and flip", "crop", "flip", "padding wider than the image"],
)
@pytest.mark.parametrize("shape", [(12, 12, 3), (5, 9, 1)])
def test_a_view_equals_the_numpy_reference(augment: Augment, shape: tuple[int, int, int]) -> None:
    images = random_images(30, *shape)
    indices = np.arange(100, 130)
    seen = view(images, indices, 5, 3, augment)
    assert seen.dtype == torch.uint8
    expected = [view_by_hand(image, int(i), 5, 3, augment) for image, i in zip(images.numpy(), indices, strict=True)]
    assert np.array_equal(seen.numpy(), np.stack(expected))
    assert not np.array_equal(seen.numpy(), images.numpy())


def test_every_offset_and_both_mirrorings_occur_equally_often() -> None:
    image = np.arange(1, 26, dtype=np.uint8).reshape(5, 5, 1)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    crops = [padded[top : top + 5, left : left + 5] for top in range(3) for left in range(3)]
    possible = {crop[:, ::step].tobytes() for crop in crops for step in (1, -1)}
    assert len(possible) == 18
    images = torch.from_numpy(np.repeat(image[None], 3_600, axis=0))
    seen = view(images, np.arange(3_600), 0, 0, Augment(crop_padding=1, flip=True)).numpy()
    counts = {key: 0 for key in possible}
    for one in seen:
        counts[one.tobytes()] += 1  # a KeyError is a view that may not occur
    # 200 expected of each; five standard deviations of a binomial count.
    assert all(abs(count - 200) < 5 * np.sqrt(200) for count in counts.values()), counts


def test_equal_images_at_different_places_give_different_views() -> None:
    images = random_images(1).repeat(64, 1, 1, 1)
    seen = view(images, np.arange(64), 0, 0, CROP_AND_FLIP)
    # 64 draws out of 162 forms: about 53 different ones are expected.
    assert len({one.numpy().tobytes() for one in seen}) > 40


def test_views_differ_by_k_and_by_seed() -> None:
    images = random_images(50)
    first = view(images, np.arange(50), 0, 0, CROP_AND_FLIP)
    assert torch.equal(first, view(images, np.arange(50), 0, 0, CROP_AND_FLIP))
    for k, seed in ((1, 0), (0, 1)):
        other = view(images, np.arange(50), k, seed, CROP_AND_FLIP)
        differing = (first != other).flatten(1).any(1).sum()
        assert differing > 40, (k, seed)


def test_no_augmentation_changes_nothing() -> None:
    images = random_images(3)
    assert torch.equal(view(images, np.arange(3), 4, 1, Augment()), images)


def test_permutation_orders_every_image_anew_in_each_epoch() -> None:
    orders = [permutation(seed, epoch, 100) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for order in orders:
        assert sorted(order.tolist()) == list(range(100))
        assert order.tolist() != list(range(100))
    assert len({order.tobytes() for order in orders}) == 4
    assert np.array_equal(permutation(0, 1, 100), orders[1])
