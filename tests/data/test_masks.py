"""Folders of images and masks: what is read, how it is split, and what is told of wrong ones."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from edgekd.card import Card
from edgekd.data.images import Split
from edgekd.data.masks import (
    load_masked_test,
    load_masked_training,
    load_masked_whole,
    mask_examples,
    require_masked_test,
)
from edgekd.errors import InputError
from edgekd.tasks.known import load_card
from edgekd.tasks.segmentation import IGNORED


@pytest.fixture
def folder(tmp_path: Path, discs: Any) -> Path:
    written: Path = discs.write_masked(tmp_path / "shapes", 30)
    return written


@pytest.fixture
def card(tmp_path: Path, discs: Any) -> Card:
    (tmp_path / "shapes.toml").write_text(discs.CARD)
    return load_card(str(tmp_path / "shapes.toml"))


def with_data(card: Card, **values: Any) -> Card:
    return dataclasses.replace(card, data=dataclasses.replace(card.data, **values))


def pixels(split: Split) -> set[bytes]:
    return {image.tobytes() for image in split.read(np.arange(len(split)))}


def test_images_come_with_their_masks(card: Card, folder: Path, discs: Any) -> None:
    parts = [*load_masked_whole(card, None), load_masked_test(card, folder)]
    assert sum(map(len, parts)) == 30
    table = {number: k for k, number in enumerate(discs.NUMBERS)}
    truth = {discs.drawn(seed)[0].tobytes(): np.vectorize(table.get)(discs.drawn(seed)[1]) for seed in range(30)}
    for part in parts:
        images = part.read(np.arange(len(part)))
        assert images.dtype == np.uint8 and images.shape[1:] == (32, 32, 1)
        assert part.labels.dtype == np.uint8 and part.labels.shape[1:] == (32, 32)
        for image, mask in zip(images, part.labels, strict=True):
            assert np.array_equal(mask, truth[image.tobytes()])


def test_a_new_file_moves_no_other_to_another_part(card: Card, folder: Path, discs: Any) -> None:
    before = [pixels(part) for part in (*load_masked_training(card, folder), load_masked_test(card, folder))]
    discs.write_masked(folder, 6, first=100)
    after = [pixels(part) for part in (*load_masked_training(card, folder), load_masked_test(card, folder))]
    assert all(one <= other for one, other in zip(before, after, strict=True))
    assert sum(map(len, after)) == 36
    assert all(len(part) > 1 for part in before)
    other = load_masked_training(with_data(card, validation_seed=1), folder)
    assert pixels(other[1]) != after[1]


def test_images_of_the_same_name_in_several_folders_fall_to_all_parts(card: Card, folder: Path, discs: Any) -> None:
    for seed in range(30):
        for name in ("images", "masks"):
            (folder / name / f"plate-{seed}").mkdir()
            (folder / name / f"shape-{seed}.png").rename(folder / name / f"plate-{seed}" / "a.png")
    parts = [*load_masked_training(card, folder), load_masked_test(card, folder)]
    assert all(len(part) > 1 for part in parts) and sum(map(len, parts)) == 30


def test_parts_with_folders_of_their_own(card: Card, tmp_path: Path, discs: Any) -> None:
    for place, part in enumerate(("train", "val", "test")):
        discs.write_masked(tmp_path / "parts" / part, 4, first=10 * place)
    parts = [*load_masked_training(card, tmp_path / "parts"), load_masked_test(card, tmp_path / "parts")]
    for place, whole in enumerate(parts):
        assert pixels(whole) == {discs.drawn(10 * place + seed)[0].tobytes() for seed in range(4)}
    require_masked_test(card, tmp_path / "parts")
    (tmp_path / "parts" / "test").rename(tmp_path / "parts" / "elsewhere")
    with pytest.raises(InputError, match="has a folder 'train' but no 'test'"):
        require_masked_test(card, tmp_path / "parts")


def save(array: NDArray[Any], path: Path, mode: str | None = None) -> None:
    Image.fromarray(array, mode).save(path)


def test_masks_grey_of_one_bit_and_as_equal_colours(card: Card, folder: Path) -> None:
    data = dataclasses.replace(card.data, classes=("off", "on"), values=(0, 255), ignored=())
    two = dataclasses.replace(card, data=data)
    on = np.zeros((32, 32), np.uint8)
    on[:5] = 255
    kinds = (on, on > 0, np.stack([on] * 3, axis=2), on.astype(np.uint16), on.astype(">u2"))
    for seed in range(30):
        (folder / "masks" / f"shape-{seed}.png").unlink()
        save(kinds[seed % 5], folder / "masks" / f"shape-{seed}.{'tif' if seed % 5 == 4 else 'png'}")
    for part in load_masked_training(two, folder):
        assert np.array_equal(part.labels, np.broadcast_to(on // 255, part.labels.shape))


def test_pixels_that_are_not_judged_and_another_size(card: Card, folder: Path) -> None:
    image, mask = np.zeros((48, 64), np.uint8), np.zeros((48, 64), np.uint8)
    image[:, 32:], mask[:, 32:] = 255, 255
    mask[:24, :32] = 7
    for seed in range(30):
        save(image, folder / "images" / f"shape-{seed}.png")
        save(mask, folder / "masks" / f"shape-{seed}.png")
    train, _ = load_masked_training(card, folder)
    # 48 × 64 becomes 32 × 43, of which the 32 columns in the middle are kept.
    differs = (train.labels[0] == IGNORED) != (train.read(np.arange(1))[0, :, :, 0] > 127)
    assert differs.any(axis=0).sum() <= 1  # the column where both meet
    assert set(np.unique(train.labels)) == {0, 1, IGNORED}
    for seed in range(30):
        save(np.full((48, 64), 255, np.uint8), folder / "masks" / f"shape-{seed}.png")
    with pytest.raises(InputError, match=r"train part in .*masks: class maps hold no class; at least two are needed"):
        load_masked_training(card, folder)


def first_of(folder: Path, name: str) -> Path:
    return folder / name / "shape-0.png"


def wrong_number(folder: Path) -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[3, 3] = 11
    save(mask, first_of(folder, "masks"))


def colours(folder: Path) -> None:
    save(np.random.default_rng(0).integers(0, 9, (32, 32, 3)).astype(np.uint8), first_of(folder, "masks"))


def fractions(folder: Path) -> None:
    first_of(folder, "masks").unlink()
    save(np.full((32, 32), 7.5, np.float32), folder / "masks" / "shape-0.tif")


def other_size(folder: Path) -> None:
    save(np.zeros((31, 32), np.uint8), first_of(folder, "masks"))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: first_of(f, "masks").unlink(), "images/shape-0.png: has no mask; "),
        (lambda f: first_of(f, "images").unlink(), "masks/shape-0.png: is a mask without an image"),
        (wrong_number, "masks/shape-0.png: holds 11, which stands for no class; the card's classes are 0, 7, 9"),
        (colours, "masks/shape-0.png: holds colours; a mask has one number a pixel"),
        (fractions, "masks/shape-0.tif: holds fractions; a mask has one whole number a pixel"),
        (other_size, "masks/shape-0.png: has 32×31 pixels, and its image shape-0.png has 32×32; they should be equal"),
        (lambda f: first_of(f, "masks").write_bytes(b"no"), "masks/shape-0.png: the image does not decode"),
        (lambda f: first_of(f, "images").write_bytes(b"no"), "images/shape-0.png: the image does not decode"),
        (lambda f: (f / "masks").rename(f / "truth"), "has no folder 'masks'; it should hold images/ and masks/"),
        (
            lambda f: save(np.zeros((32, 32), np.uint8), f / "images" / "shape-0.bmp"),
            "images/shape-0.png: has the name of shape-0.bmp, apart from the ending; drop one of them",
        ),
    ],
)
def test_wrong_data_are_told_in_one_line(card: Card, folder: Path, spoil: Callable[[Path], object], told: str) -> None:
    spoil(folder)
    with pytest.raises(InputError) as error:
        load_masked_whole(card, folder)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_folder(card: Card, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such data folder; give the folder with --data DIR"):
        load_masked_training(card, tmp_path / "nowhere")


def test_views_move_masks_and_are_pure(card: Card, folder: Path) -> None:
    card = dataclasses.replace(card, augment=dataclasses.replace(card.augment, brightness=0.3))
    train, _ = load_masked_training(card, folder)
    examples = mask_examples(card, train)
    batch = examples.batch(np.arange(6), 1)
    assert batch.inputs.shape == (6, 16, 16, 1) and batch.targets.shape == (6, 16, 16)
    assert batch.targets.dtype == torch.int64
    one = examples.batch(np.array([4]), 1)
    assert torch.equal(one.inputs[0], batch.inputs[4]) and torch.equal(one.targets[0], batch.targets[4])
    assert not torch.equal(examples.batch(np.arange(6), 2).inputs, batch.inputs)
    # Discs are bright wherever the view shows them: levels and classes still belong together.
    disc, ground = batch.inputs[..., 0][batch.targets == 1], batch.inputs[..., 0][batch.targets == 0]
    assert disc.float().mean() > 2.5 * ground.float().mean()
    whole = examples.batch(np.arange(3), None)
    assert np.array_equal(whole.inputs.numpy(), train.read(np.arange(3)))
    assert np.array_equal(whole.targets.numpy(), train.labels[:3])
    moved = mask_examples(dataclasses.replace(card, augment=dataclasses.replace(card.augment, turn=False)), train)
    assert moved.key != examples.key
