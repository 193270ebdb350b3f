"""A small folder of images and masks: bright discs and rings on a dark background."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NUMBERS = (0, 7, 9)
"""What stands in the masks for background, disc and ring."""

CARD = """
title = "Discs and rings"
task = "segmentation"

[data]
source = "mask-folder"
path = "shapes"
size = 32
channels = 1
classes = ["background", "disc", "ring"]
values = [0, 7, 9]
ignored = [255]
mean = [0.3]
std = [0.25]
validation_fraction = 0.2

[augment]
crop = 16
scale = [0.8, 1.25]
flip = true
turn = true

[teacher]
family = "unet"
shape = { width = 16, depth = 2, layers = 1 }

[teacher.training]
epochs = 20
batch_size = 8
learning_rate = 0.01
optimizer = "adamw"

[student]
family = "unet"
knobs = { width = [8], depth = [2], layers = [1] }

[recipe]
epochs = 30
batch_size = 8
learning_rate = 0.01
optimizer = "adamw"
losses = { kd = 1.0, ce = 1.0 }
temperature = 2.0
features = [{ term = "channel", weight = 0.5 }]
views = 2

[budget]
size_kb = 60
min_miou = 0.5
max_miou_drop = 25
teacher_min_miou = 0.5
"""


def drawn(seed: int, size: int = 32) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image and its mask, (size, size) uint8 each."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    image, mask = np.full((size, size), 40.0), np.zeros((size, size), np.uint8)
    for number, level in ((NUMBERS[1], 200.0), (NUMBERS[2], 120.0)):
        centre, radius = rng.uniform(6, size - 6, 2), rng.uniform(4, 7)
        away = np.hypot(rows - centre[0], columns - centre[1])
        inside = away < radius if number == NUMBERS[1] else (away < radius) & (away > radius - 3)
        image[inside], mask[inside] = level, number
    return np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8), mask


def write_masked(folder: Path, count: int = 40, first: int = 0) -> Path:
    """Write `count` pairs below `folder`: grey images, and masks with a palette."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        image, mask = drawn(seed)
        Image.fromarray(image).save(folder / "images" / f"shape-{seed}.png")
        with_palette = Image.fromarray(mask).convert("P")
        with_palette.putdata(mask.reshape(-1).tolist())
        with_palette.putpalette([channel for level in range(256) for channel in (level, 0, 255 - level)])
        with_palette.save(folder / "masks" / f"shape-{seed}.png")
    return folder
