"""Image classification: a model assigns uint8 images (n, H, W, C) to one of several classes."""

import dataclasses
import json

import numpy as np
from numpy.typing import NDArray

from edgekd.augmentation import Augment
from edgekd.card import Data, caller_rule
from edgekd.tasks.classification import CLASSES
from edgekd.tasks.task import Normalization, Task

__all__ = ["IMAGE_CLASSIFICATION"]


def _problem(data: Data, augment: Augment) -> str:
    if augment.crop_padding <= data.size:
        return ""
    return (
        f"augment.crop_padding: got {augment.crop_padding}; it should be at most data.size, {data.size}, for a crop "
        "that holds nothing of the image teaches nothing"
    )


def _example(data: Data, count: int) -> NDArray[np.uint8]:
    return np.zeros((count, data.size, data.size, data.channels), dtype=np.uint8)


def _describe(data: Data) -> dict[str, str]:
    normalization = {"mean": data.mean, "std": data.std, "scale": "pixel / 255", "in_graph": True}
    color = "RGB" if data.channels == 3 else "grey"
    what = f"uint8 (batch, {data.size}, {data.size}, {data.channels}), {color}"
    resize = caller_rule({"data": dataclasses.asdict(data)})
    return {
        "labels": json.dumps(data.classes),
        "normalization": json.dumps(normalization),
        "input": what,
        "resize": resize,
    }


IMAGE_CLASSIFICATION = Task(
    name="image-classification",
    unit="image",
    units="images",
    data=Data,
    augment=frozenset(
        {"crop_padding", "flip", "policy", "rand_operations", "rand_magnitude", "mixup", "cutmix", "cutout"}
    ),
    problem=_problem,
    embedded=frozenset({"digits"}),
    input="image",
    free={0: "batch"},
    calibration="static",
    outputs=lambda data: len(data.classes),
    argument="classes",
    targets=lambda data: f"{len(data.classes)} classes of data",
    example=_example,
    takes=lambda data: f"images of {data.size}×{data.size} pixels",
    sizes=lambda data: (data.channels, data.size),
    normalization=lambda data: Normalization(mean=data.mean, std=data.std, top=255, channels_last=True),
    describe=_describe,
    calls=lambda inputs: [inputs],
    **CLASSES,
)
