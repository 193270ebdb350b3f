"""Images with boxes: the parts of a data set for detection, letterboxed, and their views."""

import dataclasses
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edgekd.card import Card
from edgekd.console import say
from edgekd.data.annotations import Annotated, coco_part, coco_parts, voc_names, voc_part, voc_parts
from edgekd.data.arrays import digest, duplicates
from edgekd.data.examples import Batch, Examples
from edgekd.data.folders import divided_by_name
from edgekd.data.frames import framed_boxes, framed_image, frames_of, lit
from edgekd.data.images import Split, decoded_split, look, named, origin_of, read_file
from edgekd.data.pixels import turned_size, upright_8_bit
from edgekd.data.sources import HELD_OUT, place_of
from edgekd.errors import InputError, shown
from edgekd.tasks.detection import DETECTION, BoxData

__all__ = ["box_examples", "letterboxed", "load_boxed_test", "load_boxed_training", "load_boxed_whole", "placing",
           "require_boxed_test"]  # fmt: skip

VIEWS_VERSION = 1
"""Part of the key of cached teacher outputs. Increase it whenever the views of images with boxes change."""

ROUNDING = 0.02
"""So many pixels a corner may lie outside its image: COCO rounds x and width of a box to hundredths each."""

GREY = 114
"""The level of the pixels around a letterboxed image."""


def load_boxed_training(card: Card, folder: Path | None) -> tuple[Split, Split]:
    """The training and the validation part of images with boxes; `folder` is the value of `--data`.

    Without a validation part, a share of the training images is used for it, by the hash of their names. Raises
    InputError, which names the file, for an image without annotation, a box outside its image, an object of an unknown
    class, and a file that cannot be read.
    """
    parts = _parts(card, folder)
    rest, held = parts["train"], parts.get("validation")
    if held is None:
        count = len(rest)
        rest, held = _divided(rest, card.data.validation_fraction, f"validation {card.data.validation_seed}")
        if not rest:
            raise InputError(
                f"{_place(card, folder)}: no training images are left, because validation takes all {count} of them; "
                "add images, or lower data.validation_fraction"
            )
    return _split(rest, card.data, "train"), _split(held, card.data, "validation")


def load_boxed_whole(card: Card, folder: Path | None) -> tuple[Split, Split]:
    """The training and the validation part; also reads the test part, so that its errors are reported before training.
    Prints a message if the same images are in several parts."""
    parts = load_boxed_training(card, folder)
    if message := duplicates(*parts, load_boxed_test(card, folder)):
        say(f"data: {message}")
    return parts


def require_boxed_test(card: Card, folder: Path | None) -> None:
    """Raise InputError if the test part does not exist; do not read its images."""
    _parts(card, folder)


def load_boxed_test(card: Card, folder: Path | None) -> Split:
    """The test part, or the validation part if the data have no other, or else a fifth of all images, by the hash of
    their names."""
    return _split(_parts(card, folder)["test"], card.data, "test")


def _place(card: Card, folder: Path | None) -> Path:
    place = place_of(card, folder)
    assert place is not None  # no data of this task come with a package
    return place


def _parts(card: Card, folder: Path | None) -> dict[str, list[Annotated]]:
    """The images of each part; a part for testing is always there."""
    place, classes = _place(card, folder), card.data.classes
    if card.data.source == "coco":
        files = coco_parts(place)
        if not files:
            raise InputError(
                f"{place}: has neither annotations/*.json nor train/_annotations.coco.json; --data, or data.path in "
                "the card, names a folder of COCO's layout"
            )
        found = {part: coco_part(file, place, classes) for part, file in files.items()}
    else:
        names = voc_parts(place) or {"train": voc_names(place)}
        found = {part: voc_part(place, those, classes) for part, those in names.items()}
    if empty := next((part for part, images in found.items() if not images), None):
        raise InputError(f"{place}: the {empty} part holds no images")
    if "train" not in found:
        raise InputError(f"{place}: has no training part; it has {', '.join(found)}")
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    if "test" not in found:
        count = len(found["train"])
        found["train"], found["test"] = _divided(found["train"], HELD_OUT, "test")
        if not found["train"]:
            raise InputError(
                f"{place}: no training images are left, because the test takes all {count} of them; add images, or "
                "give the data a test part"
            )
    return found


def _divided(images: Sequence[Annotated], share: float, purpose: str) -> tuple[list[Annotated], list[Annotated]]:
    return divided_by_name(images, [one.image.stem for one in images], share, purpose)


def _split(images: Sequence[Annotated], data: BoxData, part: str) -> Split:
    each = [_boxes(one, data) for one in images]
    _report_flat(part, tuple(one.where for one, (_, flat) in zip(images, each, strict=True) for _ in range(flat)))
    boxes = np.zeros((len(images), max(1, *(len(found) for found, _ in each)), 6), np.float32)
    boxes[..., 0] = -1
    for row, (found, _) in zip(boxes, each, strict=True):
        row[: len(found)] = found

    split = decoded_split(
        boxes,
        lambda i: letterboxed(read_file(images[i].image), data, str(images[i].image)),
        lambda i: origin_of(images[i].image),
        data,
        lambda i: look(images[i].image, data, str(images[i].image)),
        f"{part} part in {images[0].image.parent}",
    )
    if problem := DETECTION.targets_problem(split.labels):
        raise InputError(f"{part} part in {images[0].file.parent}: {problem}")
    return split


@cache  # so that the message is printed once, even if a part is read several times
def _report_flat(part: str, where: tuple[str, ...]) -> None:
    if where:
        what = "1 box without area is" if len(where) == 1 else f"{len(where)} boxes without area are"
        say(f"data: {what} left out of the {part} part; the first one is in {where[0]}")


def _boxes(one: Annotated, data: BoxData) -> tuple[NDArray[np.float32], int]:
    """The boxes (m, 6) of an image in pixels of the network's input, and the number of those without area, which are
    left out; none if the image cannot be opened, which `decoded_split` reports. Raises InputError for a box outside of
    its image."""
    try:
        with named(str(one.image)), Image.open(one.image) as opened:
            size = turned_size(opened)
    except InputError:
        return np.zeros((0, 6), np.float32), 0
    (wide, high), (left, top) = placing(size, data)
    rows, flat = [], 0
    for number, thing in enumerate(one.objects, 1):
        x1, y1, x2, y2 = _inside(thing.corners, size)
        if x1 < 0 or y1 < 0 or x2 > size[0] or y2 > size[1] or x2 < x1 or y2 < y1:
            corners = ", ".join(f"{corner:g}" for corner in thing.corners)
            raise InputError(
                f"{one.where}: object {number} ({shown(data.classes[thing.label])}) has the corners {corners}, and its "
                f"image has {size[0]}×{size[1]} pixels; a box should lie inside"
            )
        if x1 == x2 or y1 == y2:
            flat += 1
            continue
        across, down = wide / size[0], high / size[1]
        inside = (x1 * across + left, y1 * down + top, x2 * across + left, y2 * down + top)
        rows.append((thing.label, *inside, float(thing.aside)))
    return np.array(rows, np.float32).reshape(-1, 6), flat


def _inside(corners: Sequence[float], size: tuple[int, int]) -> list[float]:
    """The corners, without what the rounding of a file's numbers adds to the sides of an image of this size."""
    limits = (*size, *size)
    near = [min(max(corner, 0.0), float(limit)) for corner, limit in zip(corners, limits, strict=True)]
    return [new if abs(new - old) <= ROUNDING else old for new, old in zip(near, corners, strict=True)]


def placing(size: tuple[int, int], data: BoxData) -> tuple[tuple[int, int], tuple[int, int]]:
    """Width and height of a letterboxed image of this size (width, height), and where its left upper corner is."""
    scale = min(data.width / max(1, size[0]), data.height / max(1, size[1]))
    wide, high = (
        min(whole, max(1, round(side * scale))) for side, whole in zip(size, (data.width, data.height), strict=True)
    )
    return (wide, high), ((data.width - wide) // 2, (data.height - high) // 2)


def letterboxed(content: bytes, data: BoxData, where: str) -> NDArray[np.uint8]:
    """An encoded image as uint8 (height, width, channels): upright, scaled to fit inside, in the middle of grey.

    Raises InputError, which names `where`, if it cannot be decoded.
    """
    look(content, data, where)
    with named(where), Image.open(io.BytesIO(content)) as opened:
        image = upright_8_bit(opened, data, where)
    inside, corner = placing(image.size, data)
    if image.size != inside:
        image = image.resize(inside, Image.Resampling.BILINEAR)
    if inside != (data.width, data.height):
        whole = Image.new(image.mode, (data.width, data.height), (GREY,) * 3 if data.channels == 3 else GREY)
        whole.paste(image, corner)
        image = whole
    return np.asarray(image, np.uint8).reshape(data.height, data.width, data.channels)


def box_examples(card: Card, split: Split) -> Examples:
    """Convert `split` for the training loop. View k of image i depends only on (i, k) and on `augment` with its seed.

    Inputs are uint8 (B, H, W, C). Targets are (B, 1 + M, 6): first a row of class −1 whose box is the whole view, then
    the boxes, which move with their images.
    """
    data, augment = card.data, card.augment

    def batch(indices: NDArray[np.int64], k: int | None) -> Batch:
        images, boxes = torch.from_numpy(split.read(indices)), torch.from_numpy(split.labels[indices])
        if k is not None:
            frames = frames_of(augment.seed, indices, k, (data.height, data.width), augment)
            images = torch.stack([framed_image(one, frame) for one, frame in zip(images, frames, strict=True)])
            boxes = torch.stack([framed_boxes(one, frame) for one, frame in zip(boxes, frames, strict=True)])
            images = lit(images, indices, k, augment)
        whole = torch.tensor([-1.0, 0, 0, images.shape[2], images.shape[1], 0]).expand(len(images), 1, 6)
        return Batch(images, torch.cat([whole, boxes], dim=1))

    augmented = {key: value for key, value in dataclasses.asdict(augment).items() if key in _KEYS}
    key = {
        "data": digest(split),
        "preprocess": data.preprocessing(),
        "augment": augmented,
        "views": VIEWS_VERSION,
    }
    return Examples(split.labels, batch, key)


_KEYS = ("flip", "turn", "crop", "scale", "brightness", "seed")
