"""A small data set of images with boxes: bright discs and darker squares on a dark background."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = ("disc", "square")

CARD = """
title = "Discs and squares"
task = "detection"

[data]
source = "voc"
path = "things"
height = 48
width = 64
channels = 1
classes = ["disc", "square"]
mean = [0.2]
std = [0.2]
validation_fraction = 0.2

[augment]
scale = [1.0, 1.3]
flip = true
turn = true

[teacher]
family = "detector"
shape = { width = 16, depth = 0, strides = [8], deepest = 16, neck = 32, layers = 1 }

[teacher.training]
epochs = 25
batch_size = 8
learning_rate = 0.01
optimizer = "adamw"

[student]
family = "detector"
knobs = { width = [8], depth = [0], strides = [[8]], deepest = [8], neck = [16], layers = [1] }

[recipe]
epochs = 25
batch_size = 8
learning_rate = 0.01
optimizer = "adamw"
losses = { kd = 1.0, ce = 1.0 }
views = 2

[budget]
size_kb = 60
min_map50 = 0.5
max_map50_drop = 30
teacher_min_map50 = 0.5
"""

Things = list[tuple[str, tuple[int, int, int, int]]]


def drawn(seed: int, size: tuple[int, int] = (64, 48)) -> tuple[NDArray[np.uint8], Things]:
    """An image (height, width) and its objects: name and corners x1, y1, x2, y2."""
    rng = np.random.default_rng(seed)
    width, height = size
    image, things = np.full((height, width), 30.0), list[Any]()
    rows, columns = np.mgrid[:height, :width]
    for place in range(3):  # one in each third, so that they do not overlap
        if rng.random() < 0.2 and things:
            continue
        side = int(rng.integers(10, width // 3))
        x1 = int(rng.integers(place * width // 3, (place + 1) * width // 3 - side + 1))
        y1 = int(rng.integers(0, height - side + 1))
        box = (x1, y1, x1 + side, y1 + side)
        if rng.random() < 0.5:
            centre = (x1 + side / 2 - 0.5, y1 + side / 2 - 0.5)
            image[np.hypot(columns - centre[0], rows - centre[1]) <= side / 2] = 220
            things.append((CLASSES[0], box))
        else:
            image[y1 : y1 + side, x1 : x1 + side] = 120
            things.append((CLASSES[1], box))
    return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8), things


def voc_text(things: Things, more: str = "") -> str:
    """The text of an annotation file of Pascal VOC."""
    keys = ("xmin", "ymin", "xmax", "ymax")
    objects = [
        f"<object><name>{name}</name><difficult>0</difficult><bndbox>"
        + "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, box, strict=True))
        + "</bndbox></object>"
        for name, box in things
    ]
    return f"<annotation>{''.join(objects)}{more}</annotation>"


def write_voc(folder: Path, count: int = 40, parts: bool = False) -> Path:
    """Write images and annotations in the layout of Pascal VOC; with `parts`, a fifth each for val and test."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    names = [f"thing-{seed}" for seed in range(count)]
    for seed, name in enumerate(names):
        image, things = drawn(seed)
        Image.fromarray(image).save(folder / "JPEGImages" / f"{name}.png")
        (folder / "Annotations" / f"{name}.xml").write_text(voc_text(things))
    if parts:
        for part, some in (("train", names[: -2 * (count // 5)]), ("val", names[-2 * (count // 5) : -(count // 5)]),
                           ("test", names[-(count // 5) :])):  # fmt: skip
            (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(some) + "\n")
    return folder


def write_coco(folder: Path, count: int = 10, beside: bool = False) -> Path:
    """Write images and annotations in one of the two layouts of COCO, with parts train, val and test."""
    for start, part in ((0, "train"), (count, "val"), (2 * count, "test")):
        images = folder / (part if beside else "images")
        images.mkdir(parents=True, exist_ok=True)
        told: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
        told["categories"] = [{"id": 3, "name": "square"}, {"id": 7, "name": "disc"}]
        for seed in range(start, start + count):
            image, things = drawn(seed)
            Image.fromarray(image).save(images / f"thing-{seed}.png")
            told["images"].append({"id": 100 + seed, "file_name": f"thing-{seed}.png", "width": 64, "height": 48})
            for name, (x1, y1, x2, y2) in things:
                number = {"square": 3, "disc": 7}[name]
                told["annotations"].append(
                    {
                        "id": len(told["annotations"]),
                        "image_id": 100 + seed,
                        "category_id": number,
                        "iscrowd": 0,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                    }
                )
        file = images / "_annotations.coco.json" if beside else folder / "annotations" / f"instances_{part}2017.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(told))
    return folder
