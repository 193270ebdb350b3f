"""Losses of detectors, against torchvision and by hand."""

import pytest
import torch
from torchvision.ops import box_iou, generalized_box_iou

from edgekd.distill.terms.boxes import assigned, box_kd, box_loss, foreground, giou, iou
from edgekd.errors import ConfigError
from edgekd.nets.detect import centres


def some_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 40
    return torch.cat([corners, corners + 2 + torch.rand(count, 2, generator=generator) * 30], dim=1)


def test_overlaps_are_those_of_torchvision() -> None:
    one, two = some_boxes(30, 0), some_boxes(20, 1)
    assert torch.allclose(giou(one[:, None], two[None]), generalized_box_iou(one, two), atol=1e-6)
    assert torch.allclose(iou(one[:, None], two[None]), box_iou(one, two), atol=1e-6)


AT = centres((64, 64), (8,))


def outputs_for(boxes: torch.Tensor, score: float) -> torch.Tensor:
    """Outputs (1, 6, 64) of a network that gives the box (x1, y1, x2, y2) of class 0 at each place inside it."""
    found = torch.cat([AT - 4, AT + 4, torch.full((2, 64), 0.01)])[None]
    for box in boxes:
        inside = ((AT.T > box[:2]) & (AT.T < box[2:])).all(dim=1)
        found[0, :4, inside] = box[:, None]
        found[0, 4, inside] = score
    return found


def targets_of(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor([[(-1.0, 0, 0, 64, 64, 0), *rows, (-1.0, 0, 0, 0, 0, 0)]])


BOX = torch.tensor([8.0, 8.0, 40.0, 32.0])
OBJECT = (0.0, 8.0, 8.0, 40.0, 32.0, 0.0)


def test_places_inside_an_object_learn_it() -> None:
    wanted, corners, judged = assigned(outputs_for(BOX[None], 0.5), targets_of(OBJECT)[:, 1:], AT, 4.1)
    places = wanted[0, 0] > 0
    assert places.sum() == 10 and judged.all() and (wanted[0, 1] == 0).all()
    assert ((AT[:, places].T > BOX[:2]) & (AT[:, places].T < BOX[2:])).all()
    assert wanted[0, 0, places] == pytest.approx(1)  # the boxes are exact
    assert (corners[0, places] == BOX).all()


def test_a_tiny_object_is_learnt_by_the_nearest_place() -> None:
    tiny = (1.0, 15.0, 15.0, 17.5, 17.5, 0.0)  # between four centres
    wanted, _, _ = assigned(outputs_for(BOX[None], 0.5), targets_of(tiny)[:, 1:], AT, 4.1)
    assert 1 <= (wanted[0, 1] > 0).sum() <= 4


def test_a_place_learns_one_object_only() -> None:
    inner = (1.0, 16.0, 16.0, 32.0, 32.0, 0.0)
    wanted, corners, _ = assigned(outputs_for(BOX[None], 0.5), targets_of(OBJECT, inner)[:, 1:], AT, 4.1)
    both = (wanted[0] > 0).sum(dim=0)
    assert both.max() == 1 and (wanted[0, 0] > 0).any()
    assert (corners[0, wanted[0, 0] > 0] == BOX).all()


def test_places_in_what_is_not_judged_are_left_alone() -> None:
    crowd = targets_of((*OBJECT[:5], 1.0))
    sure, unsure = (outputs_for(BOX[None], score) for score in (0.99, 0.01))
    assert box_loss(sure, crowd, 0.0, None) == pytest.approx(float(box_loss(unsure, crowd, 0.0, None)))
    empty = targets_of()
    assert box_loss(sure, empty, 0.0, None) > 10 * box_loss(unsure, empty, 0.0, None)


def test_the_loss_falls_with_better_boxes_and_scores() -> None:
    targets = targets_of(OBJECT)
    exact = float(box_loss(outputs_for(BOX[None], 0.99), targets, 0.0, None))
    moved = float(box_loss(outputs_for((BOX + 3)[None], 0.99), targets, 0.0, None))
    assert exact < moved
    unsure, missed = (float(box_loss(outputs_for(BOX[None], score), targets, 0.0, None)) for score in (0.5, 0.05))
    assert unsure < missed
    weighted = float(box_loss(outputs_for(BOX[None], 0.05), targets, 0.0, torch.tensor([3.0, 1.0])))
    assert weighted > 2.5 * missed


def test_training_on_one_image_finds_its_objects() -> None:
    raw = torch.zeros(1, 6, 64, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.1)
    targets = targets_of(OBJECT, (1.0, 44.0, 40.0, 60.0, 60.0, 0.0))
    for _ in range(250):
        away = raw[:, :4].exp() * 8
        outputs = torch.cat([AT - away[:, :2], AT + away[:, 2:], (raw[:, 4:] - 4).sigmoid()], dim=1)
        loss = box_loss(outputs, targets, 0.0, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for label, box in ((0, OBJECT), (1, targets[0, 2].tolist())):
        place = int(outputs[0, 4 + label].argmax())
        assert outputs[0, 4 + label, place] > 0.7
        assert iou(outputs[0, :4, place], torch.tensor(box[1:5])) > 0.9


def test_distillation_is_zero_for_equal_outputs_and_ignores_boxes_of_the_background() -> None:
    teacher = outputs_for(BOX[None], 0.9)
    assert box_kd(teacher, teacher) == pytest.approx(0, abs=1e-6)
    other = teacher.clone()
    background = teacher[0, 4:].amax(dim=0) < 0.5
    other[0, :4, background] += 5
    foreground = teacher.clone()
    foreground[0, :4, ~background] += 5
    assert box_kd(other, teacher) < 0.1 * box_kd(foreground, teacher)
    unsure = teacher.clone()
    unsure[0, 4] *= 0.5
    assert box_kd(unsure, teacher) > 0.05
    with pytest.raises(ConfigError, match=r"^the network gives 63 places, which are no grids"):
        box_loss(teacher[:, :, :63], targets_of(OBJECT), 0.0, None)


def test_the_foreground_are_the_cells_that_boxes_overlap() -> None:
    """Cells of 4 × 8 maps of a view of 32 × 64 pixels, found by looking at points a tenth of a pixel apart."""
    rows = [(0.0, 3.0, 9.0, 20.0, 31.0, 0.0), (1.0, 8.0, 8.0, 16.0, 16.0, 0.0), (1.0, 60.5, 0.0, 64.0, 32.0, 0.0)]
    aside, unused = (0.0, 30.0, 0.0, 50.0, 10.0, 1.0), (-1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    targets = torch.tensor([[(-1.0, 0, 0, 64, 32, 0), *rows, aside, unused], [(-1.0, 0, 0, 64, 32, 0), *[unused] * 5]])
    expected = torch.zeros(2, 4, 8)
    for _, x1, y1, x2, y2, _ in rows:
        found = {
            (int(y / 10 // 8), int(x / 10 // 8))
            for x in range(round(10 * x1) + 1, round(10 * x2))
            for y in range(round(10 * y1) + 1, round(10 * y2))
        }
        for row, column in found:
            expected[0, row, column] = max(float(expected[0, row, column]), 1 / len(found))
    assert torch.allclose(foreground(targets, (4, 8)), expected)
    assert expected[0].count_nonzero() == 9 + 4 and expected[0, 1, 1] == 1  # the second one lies within the first


def test_objects_weigh_the_same_at_each_resolution() -> None:
    small, large = (0.0, 1.0, 1.0, 2.0, 2.0, 0.0), (0.0, 16.0, 16.0, 64.0, 64.0, 0.0)
    for size in ((64, 64), (8, 8), (2, 2)):
        for box in (small, large):
            assert foreground(targets_of(box), size).sum() == pytest.approx(1)
    assert foreground(targets_of(small), (8, 8))[0, 0, 0] == 1
