"""Distillation from the final detections of a teacher that looks at other places than the student."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from edgekd.bench.worker import KEPT, OVERLAP
from edgekd.distill.terms.boxes import BOX, FOREGROUND, assigned, cross_entropy, giou, places

__all__ = ["detections_kd", "sure_detections"]


def sure_detections(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """What non-maximum suppression leaves of corners and scores (B, 4 + C, L): boxes (B, KEPT, 6) as true boxes are
    given, and their scores (B, KEPT), which are at least FOREGROUND; unused boxes have the class −1."""
    boxes = torch.zeros(len(outputs), KEPT, 6, device=outputs.device)
    boxes[..., 0] = -1
    scores = torch.zeros(len(outputs), KEPT, device=outputs.device)
    for place, one in enumerate(outputs):
        labels, at = (one[4:] >= FOREGROUND).nonzero(as_tuple=True)
        corners, found = one[:4, at].T, one[4 + labels, at]
        kept = batched_nms(corners, found, labels, OVERLAP)[:KEPT]
        boxes[place, : len(kept), 0] = labels[kept].float()
        boxes[place, : len(kept), 1:5] = corners[kept]
        scores[place, : len(kept)] = found[kept]
    return boxes, scores


def detections_kd(outputs: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """The distance of the student's corners and scores (B, 4 + C, L) from what a teacher (B, 4 + C, A) finds; the first
    row of `targets` (B, 1 + M, 6) is the whole view.

    Each of the teacher's detections is assigned to places of the student as an object is (`assigned`), but its target
    scores are multiplied by its own score. The losses of scores and boxes are those of `box_kd`. Raises ConfigError if
    the student's places are no grids.
    """
    at, reach = places(outputs.shape[2], (int(targets[0, 0, 4]), int(targets[0, 0, 3])))
    boxes, sure = sure_detections(teacher.float())
    quality, corners, _ = assigned(outputs.detach(), boxes, at.to(outputs.device), reach)
    best = quality.amax(dim=1)
    label = quality.argmax(dim=1)
    owns = (corners[:, :, None] == boxes[:, None, :, 1:5]).all(dim=3) & (label[:, :, None] == boxes[:, None, :, 0])
    surest = (sure[:, None] * owns).amax(dim=2)
    wanted, share = quality * surest[:, None], best * surest
    scores = outputs[:, 4:]
    excess = cross_entropy(scores, wanted) - cross_entropy(wanted, wanted)
    each = excess * (wanted - scores).detach().abs()
    lost = ((1 - giou(outputs[:, :4].transpose(1, 2), corners)) * share).sum()
    return (each.sum() + BOX * lost) / share.sum().clamp(min=1)
