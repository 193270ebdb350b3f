"""Views: pure functions of (seed, index, k), equal to a numpy reference, uniformly drawn."""

import dataclasses
import hashlib
import math
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgekd.augmentation import Augment
from edgekd.data.augment import rand_augment, trivial_augment
from edgekd.data.images import Split, in_memory
from edgekd.data.views import VIEWS_VERSION, draws, mixed, permutation, shrunk, view

CROP_AND_FLIP = Augment(crop_padding=4, flip=True)
EVERYTHING = {
    "crop and flip": CROP_AND_FLIP,
    "trivial": Augment(policy="trivial", flip=True),
    "rand": Augment(policy="rand", crop_padding=1),
    "mixup": Augment(mixup=0.8),
    "cutmix": Augment(cutmix=1.0),
    "cutout": Augment(policy="rand", cutout=5, flip="alternate"),
    "all": Augment(crop_padding=2, flip=True, policy="trivial", mixup=0.4, cutmix=1.0),
}
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


def test_the_cutout_is_a_grey_square_anywhere() -> None:
    found = random_images(300)
    found[found == 128] = 127
    places = np.arange(300)
    out = view(found, places, 2, 0, Augment(cutout=4))
    u = draws(0, places, 2, 5)[:, 3:]
    for number in range(300):
        top, left = (int(share * 12) - 2 for share in u[number])
        grey = np.zeros((12, 12), dtype=bool)
        grey[max(top, 0) : top + 4, max(left, 0) : left + 4] = True
        assert bool((out[number].numpy()[grey] == 128).all())
        assert np.array_equal(out[number].numpy()[~grey], found[number].numpy()[~grey])
    assert not torch.equal(out, view(found, places, 3, 0, Augment(cutout=4)))


def test_alternating_mirroring() -> None:
    found, places = random_images(200), np.arange(200)
    shown = [view(found, places, k, 5, Augment(flip="alternate")) for k in range(4)]
    assert torch.equal(shown[0], view(found, places, 0, 5, Augment(flip=True)))
    assert torch.equal(shown[1], shown[0].flip(2))
    assert torch.equal(shown[2], shown[0])
    assert torch.equal(shown[3], shown[1])


def test_smaller_images_are_means_of_larger_ones() -> None:
    found = random_images(3)
    half = shrunk(found, 0.5)
    assert half.dtype == torch.uint8
    assert half.shape == (3, 6, 6, 3)
    flat = torch.full((1, 12, 12, 1), 77, dtype=torch.uint8)
    assert torch.equal(shrunk(flat, 0.75), flat[:, :9, :9])
    ramp = torch.arange(0, 240, 20, dtype=torch.uint8).view(1, 1, 12, 1).expand(1, 12, 12, 1)
    inner = shrunk(ramp, 0.5)[0, 3, 1:-1, 0]
    assert inner.tolist() == [50, 90, 130, 170]  # the middles of 40 and 60, of 80 and 100, …


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


def test_crop_and_flip_stay_bit_for_bit_what_they_were() -> None:
    # Kept logits of teachers hold for these very views: whoever changes a value raises the version, too.
    assert VIEWS_VERSION == 1
    assert draws(3, np.array([0, 1, 49_999]), 7, 3).tolist() == [
        [0.10305496428164007, 0.05676703041402875, 0.2747586978983757],
        [0.7295091264064101, 0.09250373776104415, 0.40087973769054397],
        [0.4000594982431648, 0.44531557895256935, 0.832649107786563],
    ]
    images = torch.from_numpy((np.arange(6 * 10 * 12 * 3) * 37 % 251).astype(np.uint8).reshape(6, 10, 12, 3))
    frozen = {
        "e3cde3be4cf46335": Augment(crop_padding=4, flip=True),
        "02979eb8a15fefcb": Augment(crop_padding=2),
        "37b672545f6d516c": Augment(flip=True),
    }
    for digest, augment in frozen.items():
        seen = view(images, np.arange(6) * 9999, 7, 3, augment)
        assert hashlib.sha256(seen.numpy().tobytes()).hexdigest().startswith(digest), augment


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_a_policy_changes_the_cropped_and_flipped_view(policy: Literal["trivial", "rand"]) -> None:
    images, indices = random_images(60), np.arange(60)
    plain = view(images, indices, 5, 3, CROP_AND_FLIP)
    augment = Augment(crop_padding=4, flip=True, policy=policy)
    if policy == "rand":
        augment = dataclasses.replace(augment, rand_operations=3, rand_magnitude=12)
    u = np.array([[draw_by_hand(3, i, 5, number) for number in range(8, 14)] for i in range(60)])
    expected = trivial_augment(plain, u[:, :3]) if policy == "trivial" else rand_augment(plain, u.reshape(60, 3, 2), 12)
    assert torch.equal(view(images, indices, 5, 3, augment), expected)
    assert (expected != plain).flatten(1).any(1).sum() > 40


def numbered(count: int, height: int = 8, width: int = 8) -> Split:
    """`count` images, each of one grey level, which is its place and its label."""
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((height, width, 1), dtype=np.uint8)
    return in_memory(images, np.arange(count))


def streaming(split: Split) -> Split:
    """The same split, its images read one by one."""
    return Split(
        split.labels, lambda indices: np.stack([split.read(indices[i : i + 1])[0] for i in range(len(indices))])
    )


def photos(count: int) -> Split:
    labels = np.random.default_rng(1).integers(0, 7, count)
    return in_memory(random_images(count).numpy(), labels)


@pytest.mark.parametrize("name", EVERYTHING)
def test_an_augmented_view_does_not_depend_on_its_batch_or_on_how_the_split_is_read(name: str) -> None:
    split, augment = photos(60), EVERYTHING[name]
    images, targets = mixed(split, np.arange(60), 2, 9, augment, 7)
    assert images.dtype == torch.uint8
    assert images.shape == (60, 12, 12, 3)
    for chosen in (np.array([31, 0, 7, 7, 59]), *np.arange(60)[:, None]):
        for source in (split, streaming(split)):
            some, some_targets = mixed(source, chosen, 2, 9, augment, 7)
            assert torch.equal(some, images[chosen])
            assert torch.equal(some_targets, targets[chosen])


@pytest.mark.parametrize("name", EVERYTHING)
def test_equal_images_differ_by_place_view_and_seed(name: str) -> None:
    augment = EVERYTHING[name]
    images = np.concatenate((np.repeat(random_images(1).numpy(), 40, axis=0), photos(60).read(np.arange(60))))
    split, same = in_memory(images, np.arange(100)), np.arange(40)
    first, _ = mixed(split, same, 0, 0, augment, 100)
    assert len({one.numpy().tobytes() for one in first}) > 25
    assert torch.equal(first, mixed(split, same, 0, 0, augment, 100)[0])
    for k, seed in ((1, 0), (0, 1)):
        other, _ = mixed(split, same, k, seed, augment, 100)
        assert (first != other).flatten(1).any(1).sum() > 25, (k, seed)


def test_views_that_are_not_mixed_have_labels_for_targets() -> None:
    split = photos(20)
    images, targets = mixed(split, np.array([4, 2]), 1, 0, CROP_AND_FLIP, 7)
    assert torch.equal(
        images, view(torch.from_numpy(split.read(np.array([4, 2]))), np.array([4, 2]), 1, 0, CROP_AND_FLIP)
    )
    assert targets.dtype == torch.int64
    assert targets.tolist() == [split.labels[4], split.labels[2]]


@pytest.mark.parametrize("name", [name for name, augment in EVERYTHING.items() if augment.mixup or augment.cutmix])
def test_shares_of_each_mixed_image_sum_to_one(name: str) -> None:
    split = photos(500)
    _, targets = mixed(split, np.arange(500), 0, 0, EVERYTHING[name], 7)
    assert targets.dtype == torch.float32
    assert targets.shape == (500, 7)
    assert targets.min() >= 0
    assert (targets.sum(1) - 1).abs().max() < 1e-6
    assert ((targets > 0).sum(1) <= 2).all()
    assert (targets[np.arange(500), split.labels] < 0.99).sum() > 100


def test_mixup_equals_the_formula_by_hand() -> None:
    split, augment = photos(30), Augment(crop_padding=2, flip=True, policy="trivial", mixup=1.0)
    seen, targets = mixed(split, np.arange(30), 4, 6, augment, 7)
    alone = view(torch.from_numpy(split.read(np.arange(30))), np.arange(30), 4, 6, augment).numpy().astype(float)
    for i in range(30):
        partner, share = int(draw_by_hand(6, i, 4, 4) * 30), draw_by_hand(6, i, 4, 5)  # Beta(1, 1) is uniform
        expected = share * alone[i] + (1 - share) * alone[partner]
        assert np.abs(seen[i].numpy() - expected).max() < 0.501
        shares = np.zeros(7)
        np.add.at(shares, [split.labels[i], split.labels[partner]], [share, 1 - share])
        assert np.abs(targets[i].numpy() - shares).max() < 1e-6


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_share_follows_the_beta_distribution(alpha: float) -> None:
    count = 20_000
    split = in_memory(np.zeros((count, 1, 1, 1), dtype=np.uint8), np.arange(count) % 50)
    _, targets = mixed(split, np.arange(count), 0, 0, Augment(mixup=alpha), 50)
    partners = (draws(0, np.arange(count), 0, 5)[:, 4] * count).astype(np.int64)
    other = split.labels[partners] != split.labels
    assert 0.97 < other.mean() < 0.99  # 49 of 50 classes
    share = targets[np.arange(count), split.labels].numpy()[other].astype(float)
    variance = 1 / (4 * (2 * alpha + 1))
    deviations = (share - 0.5) ** 2
    # Five standard errors, of the mean and of the variance.
    assert abs(share.mean() - 0.5) < 5 * np.sqrt(variance / len(share))
    assert abs(deviations.mean() - variance) < 5 * deviations.std() / np.sqrt(len(share))


@pytest.mark.parametrize("size", [(8, 8), (9, 14)])
def test_cutmix_takes_a_rectangle_whose_area_is_one_minus_the_share(size: tuple[int, int]) -> None:
    height, width = size
    split, area, found = numbered(200, *size), height * width, 0
    seen, targets = mixed(split, np.arange(200), 0, 0, Augment(cutmix=1.0), 200)
    for i in range(200):
        partner, share = int(draw_by_hand(0, i, 0, 4) * 200), draw_by_hand(0, i, 0, 5)
        y, x = int(draw_by_hand(0, i, 0, 6) * height), int(draw_by_hand(0, i, 0, 7) * width)
        half_height, half_width = (int(side * math.sqrt(1 - share)) // 2 for side in (height, width))
        expected = np.full((height, width), i)
        expected[max(y - half_height, 0) : y + half_height, max(x - half_width, 0) : x + half_width] = partner
        assert np.array_equal(seen[i, :, :, 0].numpy(), expected)
        if partner != i:
            pasted = int((expected == partner).sum())
            assert targets[i, partner].item() == pytest.approx(pasted / area, abs=1e-7)
            assert targets[i, i].item() == np.float32(1 - pasted / area)
            found += pasted > 0
    assert found > 100


def test_with_both_half_of_the_images_get_each() -> None:
    count = 4_000
    images = np.zeros((count, 8, 8, 1), dtype=np.uint8)
    images[1::2] = 250
    seen, _ = mixed(in_memory(images, np.zeros(count, np.int64)), np.arange(count), 0, 0, Augment(mixup=4, cutmix=1), 1)
    # Half of the partners are of the other grey: mixup gives levels between, CutMix never.
    between = ((seen > 0) & (seen < 250)).flatten(1).any(1).float().mean().item()
    assert abs(between - 0.25) < 5 * np.sqrt(0.25 * 0.75 / count)


def test_partners_are_uniform_over_the_split() -> None:
    split = numbered(20)
    indices = np.arange(20)
    chosen = np.zeros((20, 20), dtype=int)
    for k in range(500):
        _, targets = mixed(split, indices, k, 0, Augment(mixup=4.0), 20)
        targets[np.arange(20), indices] = 0
        rows, partners = targets.nonzero(as_tuple=True)
        np.add.at(chosen, (rows.numpy(), partners.numpy()), 1)
    others = chosen[~np.eye(20, dtype=bool)]
    # 25 expected of each; five standard deviations of a binomial count.
    assert np.abs(others - 25).max() < 5 * np.sqrt(25)
    assert abs(others.sum() - 9_500) < 5 * np.sqrt(500)
