"""Distillation from the detections of a teacher with other places."""

import pytest
import torch

from edgekd.distill.terms.boxes import assigned
from edgekd.distill.terms.detections import detections_kd, sure_detections
from edgekd.errors import ConfigError
from edgekd.nets.detect import centres

SIZE = (32, 32)
TARGETS = torch.tensor([[[-1.0, 0, 0, 32, 32, 0]]])


def teacher(score: float = 0.8) -> torch.Tensor:
    """Outputs (1, 6, 5): two boxes of an object, one of another, one that is not sure, and nothing."""
    boxes = torch.tensor([[4.0, 4, 20, 20], [5, 4, 20, 20], [18, 16, 30, 30], [0, 0, 8, 8], [0, 0, 1, 1]]).T
    scores = torch.tensor([[score, 0.5, 0, 0.05, 0], [0, 0, 0.4, 0, 0]])
    return torch.cat([boxes, scores])[None]


def student(scores: float = 0.02) -> torch.Tensor:
    """Outputs (1, 6, 16) of a grid of stride 8 whose boxes are 16 pixels wide."""
    at = centres(SIZE, (8,))
    return torch.cat([at - 8, at + 8, torch.full((2, 16), scores)])[None]


def test_what_is_left_of_the_teachers_boxes() -> None:
    boxes, scores = sure_detections(teacher())
    used = boxes[0, :, 0] >= 0
    assert boxes[0, used].tolist() == [[0, 4, 4, 20, 20, 0], [1, 18, 16, 30, 30, 0]]
    assert scores[0, used].tolist() == pytest.approx([0.8, 0.4])
    assert not (sure_detections(torch.zeros(1, 6, 5))[0][..., 0] >= 0).any()


def test_a_student_that_answers_so_has_no_loss_and_others_have_more() -> None:
    boxes, _ = sure_detections(teacher())
    outputs = student()
    at = centres(SIZE, (8,))
    for _ in range(5):  # scores choose the places, and these give the scores
        quality, corners, _ = assigned(outputs, boxes, at, 0.51 * 8)
        sure = torch.tensor([0.8, 0.4])[:, None]
        outputs = torch.cat([corners.transpose(1, 2), quality * sure], dim=1)
    assert detections_kd(outputs, teacher(), TARGETS).item() == pytest.approx(0, abs=1e-4)
    worse = detections_kd(student(), teacher(), TARGETS)
    assert worse > 0.3
    assert detections_kd(student(0.0), torch.zeros(1, 6, 5), TARGETS).item() == pytest.approx(0, abs=1e-4)


def test_gradients_move_scores_towards_those_of_the_teacher() -> None:
    outputs = student(0.5).requires_grad_()
    detections_kd(outputs, teacher(), TARGETS).backward()
    assert outputs.grad is not None and outputs.grad.isfinite().all()
    far = outputs.grad[0, 4:, 3]  # the place in the corner sees nothing, so that its scores should fall
    assert (far > 0).all()
    surer = [detections_kd(student(0.5), teacher(score), TARGETS).item() for score in (0.9, 0.5)]
    assert surer[0] != surer[1]


def test_places_that_are_no_grids_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^the network gives 15 places, which are no grids"):
        detections_kd(student()[:, :, :15], teacher(), TARGETS)
