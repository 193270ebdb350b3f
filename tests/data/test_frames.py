"""Views of images with what is known of their pixels: both move in the same way."""

import dataclasses

import numpy as np
import pytest
import torch

from edgekd.augmentation import Augment
from edgekd.data.frames import Frame, framed_image, framed_map, frames_of

ALL = Augment(crop=8, scale=(0.5, 2.0), flip=True, turn=True, seed=3)
INDICES = np.arange(400)


def test_a_frame_is_a_pure_function_of_seed_image_and_view() -> None:
    frames = frames_of(3, INDICES, 2, (16, 16), ALL)
    assert frames_of(3, INDICES[7:9], 2, (16, 16), ALL) == frames[7:9]
    assert frames_of(3, INDICES, 3, (16, 16), ALL) != frames
    assert frames_of(4, INDICES, 2, (16, 16), ALL) != frames
    assert frames_of(3, INDICES, 2, (16, 16), Augment()) == [Frame(0, 0, 16, 16, (16, 16))] * 400


def test_frames_are_spread_over_what_is_asked() -> None:
    frames = frames_of(3, INDICES, 0, (32, 32), ALL)
    assert {frame.turns for frame in frames} == {0, 1, 2, 3}
    assert 150 < sum(frame.mirror for frame in frames) < 250
    assert {frame.out for frame in frames} == {(8, 8)}
    sides = np.array([frame.height for frame in frames])
    assert (sides.min(), sides.max()) == (4, 16)
    assert np.exp(np.log(8 / sides).mean()) == pytest.approx(1, abs=0.1)  # as often smaller as larger
    ends = [(frame.top + frame.height, frame.left + frame.width) for frame in frames]
    assert np.max(ends) == 32 and min(min(frame.top, frame.left) for frame in frames) == 0


def test_a_square_is_never_larger_than_the_image() -> None:
    wide = dataclasses.replace(ALL, crop=16, scale=(0.5, 0.5))
    assert {(frame.top, frame.left, frame.height) for frame in frames_of(3, INDICES, 0, (16, 16), wide)} == {(0, 0, 16)}


def test_alternate_mirrors_every_second_view() -> None:
    each = dataclasses.replace(ALL, flip="alternate")
    views = [[frame.mirror for frame in frames_of(3, INDICES, k, (16, 16), each)] for k in range(4)]
    assert views[0] == views[2] == [not one for one in views[1]]
    assert views[1] == views[3]


def test_image_and_map_move_together() -> None:
    """The class of a pixel is written into the image, where it is still found after cropping, mirroring and turning."""
    classes = torch.from_numpy(np.random.default_rng(0).integers(0, 9, (16, 16)).astype(np.uint8))
    image = torch.stack([classes * 20, 255 - classes * 20], dim=2)
    for frame in frames_of(3, INDICES[:40], 0, (16, 16), dataclasses.replace(ALL, scale=(1.0, 1.0))):
        moved = framed_image(image, frame)
        assert torch.equal(moved[..., 0], framed_map(classes, frame) * 20)
        assert torch.equal(moved[..., 1], 255 - framed_map(classes, frame) * 20)


def test_a_scaled_map_has_the_nearest_pixel() -> None:
    """Blocks of two pixels become blocks of four, or single pixels, for images as for maps."""
    classes = torch.arange(16, dtype=torch.uint8).reshape(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1)
    larger, smaller = Frame(0, 0, 8, 8, (16, 16)), Frame(0, 0, 8, 8, (4, 4))
    assert torch.equal(framed_map(classes, smaller), torch.arange(16, dtype=torch.uint8).reshape(4, 4))
    assert torch.equal(framed_map(classes, larger), classes.repeat_interleave(2, 0).repeat_interleave(2, 1))
    # Where the interpolation sees one block only, the image's levels are the block's.
    assert torch.equal(framed_image(classes[..., None], larger)[1::4, 1::4, 0], framed_map(classes, larger)[1::4, 1::4])


def test_turns_and_mirrors_by_hand() -> None:
    classes = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)
    assert framed_map(classes, Frame(0, 0, 2, 2, (2, 2), mirror=True)).tolist() == [[2, 1], [4, 3]]
    assert framed_map(classes, Frame(0, 0, 2, 2, (2, 2), turns=1)).tolist() == [[2, 4], [1, 3]]
    assert framed_map(classes, Frame(0, 0, 2, 2, (2, 2), mirror=True, turns=2)).tolist() == [[3, 4], [1, 2]]
    assert framed_map(classes, Frame(1, 0, 1, 1, (1, 1))).tolist() == [[3]]
