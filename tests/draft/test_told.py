"""Examples for a file of edgekd's own, as its metadata and its input say."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from edgekd.draft.told import told_examples
from edgekd.errors import ConfigError, InputError
from edgekd.tasks.detection import DETECTION
from edgekd.tasks.segmentation import SEGMENTATION


def model_of(labels: str, *sides: int) -> onnx.ModelProto:
    """A model without layers that takes uint8 images (batch, H, W, C), and whose metadata name classes."""
    shape: list[str | int | None] = ["batch", *sides]
    ends = [helper.make_tensor_value_info(name, TensorProto.UINT8, shape) for name in ("image", "same")]
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["same"])], "main", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    helper.set_model_props(model, {"labels": labels})
    return model


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(3):
        pixels = np.full((48, 64, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def test_images_alone_are_read_as_the_model_takes_them(images: Path) -> None:
    found = told_examples(images, model_of('["disc", "square"]', 32, 64, 1), DETECTION, 2)
    assert found.labels is None
    assert found.inputs["image"].shape == (2, 32, 64, 1)
    assert [int(one[16, 32, 0]) for one in found.inputs["image"]] == [0, 80]  # the first and the last


def add_masks(images: Path) -> None:
    """Move the images into `images/`, and put masks full of 0, 2 and 255 beside them."""
    for name in ("images", "masks"):
        (images / name).mkdir()
    for number in range(3):
        (images / f"{number}.png").rename(images / "images" / f"{number}.png")
        mask = np.full((48, 64), (0, 2, 255)[number], np.uint8)
        Image.fromarray(mask).save(images / "masks" / f"{number}.png")


def test_the_model_says_which_numbers_of_masks_are_its_classes(images: Path) -> None:
    add_masks(images)
    folder = images / "parts"
    for part in ("train", "test"):
        for name in ("images", "masks"):
            shutil.copytree(images / name, folder / part / name)
    model = model_of('["sky", "road", "car"]', 48, 48, 3)
    told = model.metadata_props.add(key="masks", value='{"values": [0, 1, 2], "ignored": [255]}')
    found = told_examples(folder, model, SEGMENTATION, 3).labels
    assert found is not None
    assert [int(one) for one in found[:, 24, 24]] == [0, 2, 255]
    told.value = '{"values": [0, 2, 255], "ignored": []}'
    found = told_examples(folder, model, SEGMENTATION, 3).labels
    assert found is not None
    assert [int(one) for one in found[:, 24, 24]] == [0, 1, 2]
    told.value = '{"values": [0, 1, 2], "ignored": []}'  # these masks are numbered in another way
    with pytest.raises(InputError, match="its masks hold 255, which may be a class or mark pixels"):
        told_examples(folder, model, SEGMENTATION, 3)


def test_numbers_of_masks_that_may_be_two_things_are_refused(images: Path) -> None:
    """Of three classes, 1 does not occur and 255 is not judged; or the classes are 0, 2 and 255."""
    add_masks(images)
    with pytest.raises(InputError, match="its masks hold 255, which may be a class or mark pixels"):
        told_examples(images, model_of('["sky", "road", "car"]', 48, 48, 3), SEGMENTATION, 3)


@pytest.mark.parametrize(
    ("task", "labels", "sides", "said"),
    [
        (DETECTION, '["disc", "disc"]', (48, 64, 3), "classes: should name each class once"),
        (DETECTION, '["disc"]', (48, 64, 4), "channels: got 4; it should be 1 or 3"),
        (DETECTION, '["disc"]', (50, 64, 3), "height: got 50; it should be a multiple of 4"),
        (SEGMENTATION, '["disc"]', (48, 48, 3), "classes: got "),
    ],
)
def test_what_no_card_could_have_is_told_in_one_line(
    task: Any, labels: str, sides: tuple[int, ...], said: str, images: Path
) -> None:
    with pytest.raises(ConfigError, match=r"^--data: a folder cannot be read as the model takes it") as caught:
        told_examples(images, model_of(labels, *sides), task, 2)
    assert said in str(caught.value) and "\n" not in str(caught.value)
