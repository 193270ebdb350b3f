"""Look at a folder of images and masks: `images/` and `masks/`, in it or below `train` and `test`."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgekd.data.folders import plain_files, validation_folder
from edgekd.data.images import decode, named, read_file
from edgekd.data.masks import mask_numbers
from edgekd.draft.facts import DataFacts, Proposal
from edgekd.draft.images import NO_PARTS, measured_scale, seen_channels, some_of
from edgekd.errors import InputError
from edgekd.tasks.segmentation import IGNORED, MaskData

__all__ = ["look_at_masks", "masks_in", "numbers_in"]

SAMPLE = 64
"""This many training images are decoded."""
SIZES = (32, 64, 96, 128, 160, 192, 224, 256)
"""Sizes in pixels from which one is chosen; larger networks take hours to train on a CPU."""
MOST_NUMBERS = 100
"""Masks with more different numbers than this hold something else than classes, or were compressed with loss."""
KEPT_BYTES = 2e9
"""Bytes of the teacher's outputs that the views of all images may take."""


def masks_in(folder: Path) -> Path | None:
    """The folder that holds `images` and `masks`: the data folder, or `train` in it; None if neither does."""
    roots = (folder / "train", folder)
    return next((root for root in roots if (root / "images").is_dir() and (root / "masks").is_dir()), None)


def look_at_masks(folder: Path) -> DataFacts:
    """Facts of a folder of images and masks. Raises InputError for masks whose numbers cannot be classes."""
    root = masks_in(folder)
    assert root is not None  # the caller has asked
    images, masks = (sorted(plain_files(root / name)) for name in ("images", "masks"))
    if not images or not masks:
        raise InputError(f"{root}: holds {len(images)} images and {len(masks)} masks; it needs a mask for each image")
    values, ignored = _numbers(masks)
    names = {0: "background"} | ({values[1]: "foreground"} if len(values) == 2 and not values[0] else {})
    classes = tuple(names.get(one, f"class {one}") for one in values)
    size, side, coloured = _pixels(images)
    pixels, channels = seen_channels(coloured)
    scale, grey = measured_scale(pixels), pixels.shape[-1] == 1
    parts = root != folder
    tests = len(list(plain_files(folder / "test" / "images"))) if parts and (folder / "test").is_dir() else 0
    keys: dict[str, Any] = {"source": "mask-folder", "size": size, "channels": 1 if grey else 3}
    keys |= {"values": values} | ({"ignored": ignored} if ignored else {})
    keys |= {"mean": list(scale.mean), "std": list(scale.std)}
    count = len(images) if parts else round(0.8 * len(images))
    return DataFacts(
        task="segmentation",
        keys=keys,
        classes=classes,
        examples=count,
        tests=tests or len(images) - count,
        side=side,
        grey=grey,
        proposal=_proposal(size, len(values), count),
        guesses=(
            f"source: mask-folder, because {root} holds images and masks",
            *_parts(folder, parts),
            f"classes: the masks hold {', '.join(map(str, values))}; give the classes their names"
            + (f"; {IGNORED} marks pixels that are not judged, as in PASCAL VOC" if ignored else ""),
            f"size: {size} pixels, because the median of the shorter sides is {side}; the centre is cut out of others",
            channels,
            f"mean, std: {scale.words}",
        ),
    )


def _parts(folder: Path, parts: bool) -> list[str]:
    if not parts:
        return [NO_PARTS]
    if validation_folder(folder) is None:
        return ["split: a tenth of the training images is set apart for validation"]
    return ["split: the folder has its own parts for training, validation and test"]


def numbers_in(masks: Iterable[Path]) -> set[int]:
    """All numbers that these masks hold. Raises InputError if they are so many that they cannot be classes."""
    found: set[int] = set()
    for mask in masks:
        with named(str(mask)), Image.open(mask) as image:
            found |= {int(one) for one in np.unique(mask_numbers(image, mask))}
        if len(found) > MOST_NUMBERS:
            raise InputError(
                f"{mask}: the masks hold more than {MOST_NUMBERS} different numbers; a mask has the number of a class "
                "at each pixel, and is written without loss (PNG)"
            )
    return found


def _numbers(masks: Sequence[Path]) -> tuple[list[int], list[int]]:
    """The numbers in all masks that stand for classes, and those that are not judged."""
    values = sorted(numbers_in(masks))
    rest = [one for one in values if one != IGNORED]
    if len(rest) > 1 and len(rest) < len(values) and rest == list(range(len(rest))):
        return rest, [IGNORED]
    if len(values) < 2:
        raise InputError(f"{masks[0].parent}: the masks hold only the number {values[0]}; two classes are needed")
    if values[-1] > IGNORED:
        raise InputError(f"{masks[0].parent}: the masks hold {values[-1]}; classes are numbered up to {IGNORED}")
    return values, []


def _pixels(images: Sequence[Path]) -> tuple[int, int, np.ndarray[Any, np.dtype[np.uint8]]]:
    """Size for the card, median of the shorter sides, and some images (n, size, size, 3)."""
    some = some_of(images, SAMPLE)
    sides = []
    for file in some:
        with named(str(file)), Image.open(file) as image:
            sides.append(min(image.size))
    side = round(statistics.median(sides))
    size = max(one for one in SIZES if one <= max(side, SIZES[0]))
    data = MaskData(source="mask-folder", size=size, classes=("a", "b"), mean=(0.0,) * 3, std=(1.0,) * 3)
    return size, side, np.stack([decode(read_file(file), data, str(file)) for file in some])


def _proposal(size: int, classes: int, count: int) -> Proposal:
    half = size >= 96  # the network then computes at half the resolution
    depth = 3 if size >= 64 else 2
    crop = size // 2 if size >= 128 else 0
    kept = 4 * classes * (crop or size) ** 2 * count
    views = int(max(1, min(4, KEPT_BYTES // kept)))
    training = {"optimizer": "adamw", "learning_rate": 0.004, "weight_decay": 0.01}
    augment = {"scale": [0.75, 1.5], "flip": True, "turn": False, "brightness": 0.2}
    return Proposal(
        augment=({"crop": crop} if crop else {}) | augment,
        teacher={
            "family": "unet",
            "shape": {"width": 24, "depth": depth, "widest": 96, "stem_stride": 2 if half else 1},
        },
        student="unet",
        knobs={
            "width": [8, 16],
            "depth": [depth],
            "layers": [1],
            "widest": [64],
            "stem_stride": [1, 2] if half else [1],
        },
        training=training,
        recipe=training | {"temperature": 2.0, "losses": {"kd": 1.0, "ce": 1.0}, "views": views},
        guesses=(
            "augment: mirrors and scales; turn = true suits pictures without an upper side, as of microscopes",
            "student: unet of small width; its upsampling by the nearest pixel stays in int8",
        ),
    )
