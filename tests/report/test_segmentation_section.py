"""Pictures of class maps in the report."""

import io

import numpy as np
import pytest
from PIL import Image

from edgekd.report.pictures import png
from edgekd.report.tasks.segmentation import colours_of


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_png_file_holds_the_pixels(channels: int, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels)).astype(np.uint8)
    with Image.open(io.BytesIO(png(pixels))) as image:
        assert (image.format, image.mode, image.size) == ("PNG", mode, (7, 5))
        assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)


def test_each_class_has_a_colour_and_what_is_not_judged_is_white() -> None:
    drawn = colours_of(np.array([[0, 1], [2, 255]], np.uint8), 3)
    assert drawn.shape == (2, 2, 3)
    assert drawn[1, 1].tolist() == [255, 255, 255]
    assert len({tuple(one) for one in drawn.reshape(-1, 3).tolist()}) == 4
    assert (colours_of(np.full((1, 1), 3, np.uint8), 3) == 255).all()  # no class of the card
