"""Look at a folder of images with boxes, in the layout of Pascal VOC or of COCO."""

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgekd.data.annotations import (
    Annotated,
    coco_names,
    coco_part,
    coco_parts,
    voc_classes,
    voc_names,
    voc_part,
    voc_parts,
)
from edgekd.data.boxes import letterboxed
from edgekd.data.images import named, read_file
from edgekd.data.pixels import turned_size
from edgekd.draft.facts import DataFacts, Proposal
from edgekd.draft.images import NO_PARTS, measured_scale, seen_channels, some_of
from edgekd.errors import InputError
from edgekd.tasks.detection import BoxData

__all__ = ["boxes_in", "look_at_boxes"]

SAMPLE = 64
"""This many training images are decoded."""
AREA = 192 * 256
"""About as many pixels are proposed for the network's input; larger ones take hours to train on a CPU."""
DEEPEST = 32
"""Height and width are multiples of this."""
SMALL = 12.0
"""Objects whose median side in the network's input is smaller than this, in pixels, get a grid of stride 4."""


def boxes_in(folder: Path) -> str:
    """The layout of a folder of images with boxes, `voc` or `coco`; empty if it holds none."""
    if (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir():
        return "voc"
    return "coco" if coco_parts(folder) else ""


def look_at_boxes(folder: Path) -> DataFacts:
    """Facts of a folder of images with boxes. Raises InputError, which names the file, if they cannot be read."""
    source = boxes_in(folder)
    classes, parts, said = _coco(folder) if source == "coco" else _voc(folder)
    train = parts["train"]
    if not any(one.objects for one in train):
        raise InputError(f"--data {folder}: has no training images with boxes")
    tests = len(parts.get("test", parts.get("validation", ()))) or round(0.2 * len(train))
    count = len(train) if len(parts) > 1 else len(train) - tests
    shape, coloured, sides = _pixels(train, classes)
    pixels, channels = seen_channels(coloured)
    scale, grey = measured_scale(pixels), pixels.shape[-1] == 1
    keys: dict[str, Any] = {"source": source, "height": shape[0], "width": shape[1], "channels": 1 if grey else 3}
    counts = Counter(thing.label for one in train for thing in one.objects)
    least = min(counts.values(), default=0)
    rare = f"; the rarest class has {least} of {counts.total():,} boxes" if len(classes) > 1 else ""
    return DataFacts(
        task="detection",
        keys=keys | {"mean": list(scale.mean), "std": list(scale.std)},
        classes=classes,
        examples=count,
        tests=tests,
        side=min(shape),
        grey=grey,
        proposal=_proposal(sides),
        guesses=(
            *said,
            f"classes: the {len(classes)} names that the boxes have{rare}",
            f"height, width: {shape[0]}×{shape[1]} pixels, near the images' ratio; images are scaled to fit inside",
            channels,
            f"mean, std: {scale.words}",
        ),
    )


Parts = dict[str, list[Annotated]]


def _voc(folder: Path) -> tuple[tuple[str, ...], Parts, list[str]]:
    listed = voc_parts(folder)
    names = listed or {"train": voc_names(folder)}
    if "train" not in names:
        raise InputError(f"{folder}: ImageSets/Main has no list train.txt or trainval.txt")
    classes = voc_classes(folder, sorted({name for some in names.values() for name in some}))
    said = "source: voc, because the folder holds JPEGImages and Annotations"
    return classes, {part: voc_part(folder, some, classes) for part, some in names.items()}, [said, _split(list(names))]


def _coco(folder: Path) -> tuple[tuple[str, ...], Parts, list[str]]:
    files = coco_parts(folder)
    if "train" not in files:
        raise InputError(f"{folder}: has COCO files of {', '.join(files)}, but none of train")
    classes = tuple(dict.fromkeys(name for file in files.values() for name in coco_names(file)))
    said = f"source: coco, because the folder holds {files['train'].relative_to(folder)}"
    return (
        classes,
        {part: coco_part(file, folder, classes) for part, file in files.items()},
        [said, _split(list(files))],
    )


def _split(parts: Sequence[str]) -> str:
    if parts == ["train"]:
        return NO_PARTS
    if "test" not in parts:
        return "split: the validation part is for the test, and a tenth of the training images for validation"
    own = "the data have their own parts" if "validation" in parts else "a tenth of the training images validates"
    return f"split: {own}"


def _pixels(
    train: Sequence[Annotated], classes: tuple[str, ...]
) -> tuple[tuple[int, int], np.ndarray[Any, np.dtype[np.uint8]], list[float]]:
    """Height and width for the card, some images (n, height, width, 3), and the sides of the objects in them in pixels
    of the network's input."""
    some = some_of(train, SAMPLE)
    sizes = []
    for one in some:
        with named(str(one.image)), Image.open(one.image) as image:
            sizes.append(turned_size(image))
    wide, high = (statistics.median(size[axis] for size in sizes) for axis in (0, 1))
    factor = min(1.0, (AREA / (wide * high)) ** 0.5)
    height, width = (max(DEEPEST, DEEPEST * round(side * factor / DEEPEST)) for side in (high, wide))
    data = BoxData(source="voc", height=height, width=width, classes=classes, mean=(0.0,) * 3, std=(1.0,) * 3)
    pixels = np.stack([letterboxed(read_file(one.image), data, str(one.image)) for one in some])
    sides = [
        (max(0.0, x2 - x1) * max(0.0, y2 - y1)) ** 0.5 * min(width / size[0], height / size[1])
        for one, size in zip(some, sizes, strict=True)
        for x1, y1, x2, y2 in (thing.corners for thing in one.objects)
    ]
    return (height, width), pixels, sides


def _proposal(sides: Sequence[float]) -> Proposal:
    middle = statistics.median(sides) if sides else 0.0
    strides = [4, 8, 16] if middle < SMALL else [8, 16]
    training = {"optimizer": "adamw", "learning_rate": 0.003, "weight_decay": 0.01, "clip_norm": 10.0, "ema": 0.99}
    return Proposal(
        augment={"scale": [1.0, 1.5], "flip": True, "turn": False, "brightness": 0.2},
        teacher={"family": "detector", "shape": {"width": 16, "widest": 96, "strides": strides, "neck": 48}},
        student="detector",
        knobs={"width": [8], "widest": [64], "depth": [0, 1], "strides": [strides], "neck": [32]},
        training=training,
        recipe=training | {"losses": {"kd": 1.0, "ce": 1.0}, "views": 4},
        guesses=(
            "augment: mirrors and scales; turn = true suits pictures without an upper side, as of microscopes",
            f"strides: {strides}, because the median side of an object is {middle:.0f} pixels in the network's input",
            "student: detector of small width; what decodes boxes stays in float",
        ),
    )
