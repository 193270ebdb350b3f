"""Folders of images and masks: the parts of a data set for segmentation, and their views."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edgekd.card import Card
from edgekd.console import say
from edgekd.data.arrays import digest, duplicates
from edgekd.data.examples import Batch, Examples
from edgekd.data.folders import divided_by_name, plain_files, validation_folder
from edgekd.data.frames import framed_image, framed_map, frames_of, lit
from edgekd.data.images import Split, decode, decoded_split, look, named, origin_of, read_file
from edgekd.data.pixels import turned_size
from edgekd.data.sources import HELD_OUT, place_of
from edgekd.errors import InputError, shown
from edgekd.tasks.segmentation import IGNORED, SEGMENTATION, MaskData

__all__ = [
    "load_masked_test",
    "load_masked_training",
    "load_masked_whole",
    "mask_examples",
    "mask_numbers",
    "read_mask",
    "require_masked_test",
]

VIEWS_VERSION = 1
"""Part of the key of cached teacher outputs. Increase it whenever the views of images with masks change."""


@dataclasses.dataclass(frozen=True)
class _Pair:
    image: Path
    mask: Path
    name: str
    """Their path below `images` and `masks`, without the ending."""


def load_masked_training(card: Card, folder: Path | None) -> tuple[Split, Split]:
    """The training and the validation part of a folder of images and masks; `folder` is the value of `--data`.

    Without a folder `val`, a share of the training images is used for validation, by the hash of their names. Raises
    InputError, which names the file, for an image without a mask and the reverse, for a mask of another size, and for
    a number in a mask that stands for no class.
    """
    data = card.data
    place = _place(card, folder)
    pairs = _pairs(place, "train")
    if len(pairs) < 2:
        raise InputError(f"{place}: has {len(pairs) or 'no'} training images; at least two are needed")
    if validation_folder(place) is not None:
        return _split(pairs, data, "train"), _split(_pairs(place, "validation"), data, "validation")
    rest, held = _divided(pairs, data.validation_fraction, f"validation {data.validation_seed}")
    if not rest:
        raise InputError(f"{place}: all {len(pairs)} training images fall to validation; lower validation_fraction")
    return _split(rest, data, "train"), _split(held, data, "validation")


def load_masked_whole(card: Card, folder: Path | None) -> tuple[Split, Split]:
    """The training and the validation part; also reads the test part, so that its errors are reported before training.
    Prints a message if the same images are in several parts."""
    parts = load_masked_training(card, folder)
    if message := duplicates(*parts, load_masked_test(card, folder)):
        say(f"data: {message}")
    return parts


def require_masked_test(card: Card, folder: Path | None) -> None:
    """Raise InputError if the test part does not exist; do not read it."""
    _pairs(_place(card, folder), "test")


def load_masked_test(card: Card, folder: Path | None) -> Split:
    """The test part: the folder `test`, or a fifth of the images of a folder without parts, by the hash of their
    names."""
    return _split(_pairs(_place(card, folder), "test"), card.data, "test")


def _place(card: Card, folder: Path | None) -> Path:
    place = place_of(card, folder)
    assert place is not None  # no data of this task come with a package
    return place


def _pairs(place: Path, part: str) -> list[_Pair]:
    """The images of a part with their masks, in the order of their names."""
    if not (place / "train").is_dir():
        pairs = _pairs_in(place)
        rest, held = _divided(pairs, HELD_OUT, "test")
        return held if part == "test" else rest
    own = validation_folder(place)
    roots = {"train": place / "train", "validation": own, "test": place / "test"}
    root = roots[part]
    if root is None or not root.is_dir():
        raise InputError(f"{place}: has a folder 'train' but no '{part}'")
    return _pairs_in(root)


def _pairs_in(root: Path) -> list[_Pair]:
    for name in ("images", "masks"):
        if not (root / name).is_dir():
            raise InputError(f"{root}: has no folder '{name}'; it should hold images/ and masks/, with the same names")
    images, masks = (_by_stem(root / name) for name in ("images", "masks"))
    for stem, file in images.items():
        if stem not in masks:
            raise InputError(f"{file}: has no mask; {root / 'masks'} should hold a file {shown(stem)} with any ending")
    for stem, file in masks.items():
        if stem not in images:
            raise InputError(f"{file}: is a mask without an image; {root / 'images'} holds no {shown(stem)}")
    if not images:
        raise InputError(f"{root / 'images'}: holds no images")
    return [_Pair(file, masks[stem], stem) for stem, file in images.items()]


def _by_stem(folder: Path) -> dict[str, Path]:
    """The files below a folder by their path in it without the ending, such as `plate1/a` for `plate1/a.png`."""
    found: dict[str, Path] = {}
    for file in plain_files(folder):
        stem = file.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise InputError(f"{file}: has the name of {found[stem].name}, apart from the ending; drop one of them")
        found[stem] = file
    return dict(sorted(found.items()))


def _divided(pairs: Sequence[_Pair], share: float, purpose: str) -> tuple[list[_Pair], list[_Pair]]:
    return divided_by_name(pairs, [pair.name for pair in pairs], share, purpose)


def _split(pairs: Sequence[_Pair], data: MaskData, part: str) -> Split:
    with ThreadPoolExecutor() as pool:  # PIL's decoders release the interpreter lock
        tried = list(pool.map(lambda pair: _tried(pair, data), pairs))
    problems = [one for one in tried if isinstance(one, str)]
    if problems:
        raise InputError(problems[0] + (f" ({len(problems) - 1} more masks have problems)" if problems[1:] else ""))
    maps = np.stack([one for one in tried if not isinstance(one, str)])
    if problem := SEGMENTATION.targets_problem(maps):
        raise InputError(f"{part} part in {pairs[0].mask.parent}: {problem}")

    return decoded_split(
        maps,
        lambda i: decode(read_file(pairs[i].image), data, str(pairs[i].image)),
        lambda i: origin_of(pairs[i].image),
        data,
        lambda i: look(pairs[i].image, data, str(pairs[i].image)),
        f"{part} part in {pairs[0].image.parent}",
    )


def _tried(pair: _Pair, data: MaskData) -> NDArray[np.uint8] | str:
    try:
        return read_mask(pair.mask, pair.image, data)
    except InputError as error:
        return str(error)


def read_mask(mask: Path, image: Path, data: MaskData) -> NDArray[np.uint8]:
    """The class map (size, size) of a mask, resized and cut out like its image, without interpolation.

    Raises InputError, which names the file, for a mask that cannot be read, has colours instead of numbers, is of
    another size than its image, or holds a number that stands for no class.
    """
    with named(str(mask)), Image.open(mask) as opened:
        numbers = mask_numbers(opened, mask)
    with named(str(image)), Image.open(image) as opened:
        size = turned_size(opened)
    if numbers.shape != size[::-1]:
        raise InputError(
            f"{mask}: has {numbers.shape[1]}×{numbers.shape[0]} pixels, and its image {image.name} has "
            f"{size[0]}×{size[1]}; they should be equal"
        )
    return _fitted(_classes(numbers, mask, data), data)


def mask_numbers(image: Image.Image, where: Path) -> NDArray[np.int64]:
    """The number of each pixel (H, W): its grey level, or its index into the palette; 0 and 255 for 1 bit."""
    if image.mode == "F":
        raise InputError(f"{where}: holds fractions; a mask has one whole number a pixel: write it grey, of 8 bit")
    if image.mode in ("P", "L", "1", "I", "I;16", "I;16B"):
        return np.asarray(image.convert("L") if image.mode == "1" else image).astype(np.int64)
    values = np.asarray(image.convert("RGB"))
    if not (values == values[..., :1]).all():
        raise InputError(f"{where}: holds colours; a mask has one number a pixel: write it grey, or with a palette")
    return values[..., 0].astype(np.int64)


def _classes(numbers: NDArray[np.int64], where: Path, data: MaskData) -> NDArray[np.uint8]:
    """The class of each pixel (H, W); IGNORED where its number is not judged."""
    table = np.full(IGNORED + 1, -1, np.int64)
    table[list(data.numbers)] = range(len(data.classes))
    table[list(data.ignored)] = IGNORED
    inside = np.clip(numbers, 0, IGNORED)
    found = np.where(numbers == inside, table[inside], -1)
    if (found < 0).any():
        wrong = sorted({int(one) for one in numbers[found < 0]})
        known = ", ".join(map(str, data.numbers))
        raise InputError(
            f"{where}: holds {', '.join(map(str, wrong[:5]))}{', …' if wrong[5:] else ''}, which stands for no class; "
            f"the card's classes are {known}; name the numbers of masks in data.values and data.ignored"
        )
    return found.astype(np.uint8)


def _fitted(classes: NDArray[np.uint8], data: MaskData) -> NDArray[np.uint8]:
    """The class map resized and cut out as `decode` does it with images, but with the nearest pixel."""
    height, width = classes.shape
    if (height, width) == (data.size, data.size):
        return classes
    scale = (data.resize or data.size) / max(1, min(height, width))
    wide, high = (max(data.size, round(side * scale)) for side in (width, height))
    resized = Image.fromarray(classes).resize((wide, high), Image.Resampling.NEAREST)
    left, top = (wide - data.size) // 2, (high - data.size) // 2
    return np.asarray(resized.crop((left, top, left + data.size, top + data.size)), np.uint8)


def mask_examples(card: Card, split: Split) -> Examples:
    """Convert `split` for the training loop. View k of image i depends only on (i, k) and on `augment` with its seed.

    Inputs are uint8 (B, H, W, C), targets class maps (B, H, W) int64, which move with their images.
    """
    data, augment = card.data, card.augment

    def batch(indices: NDArray[np.int64], k: int | None) -> Batch:
        images, maps = torch.from_numpy(split.read(indices)), torch.from_numpy(split.labels[indices])
        if k is not None:
            frames = frames_of(augment.seed, indices, k, (data.size, data.size), augment)
            images = torch.stack([framed_image(one, frame) for one, frame in zip(images, frames, strict=True)])
            maps = torch.stack([framed_map(one, frame) for one, frame in zip(maps, frames, strict=True)])
            images = lit(images, indices, k, augment)
        return Batch(images, maps.long())

    augmented = {key: value for key, value in dataclasses.asdict(augment).items() if key in _KEYS}
    key = {
        "data": digest(split),
        "preprocess": data.preprocessing(),
        "augment": augmented,
        "views": VIEWS_VERSION,
    }
    return Examples(split.labels, batch, key)


_KEYS = ("flip", "turn", "crop", "scale", "brightness", "seed")
