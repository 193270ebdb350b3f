"""Losses of detectors, whose outputs are corners and scores (B, 4 + C, L) of L places."""

import torch
from torch import Tensor

from edgekd.errors import ConfigError
from edgekd.nets.detect import centres, strides_of

__all__ = ["assigned", "box_kd", "box_loss", "cross_entropy", "foreground", "giou", "iou", "places"]

BOX = 2.0
"""The weight of the boxes beside the scores."""

CHOSEN = 10
"""Number of places that learn an object at most."""

FOREGROUND = 0.1
"""The teacher's score from which on a place is taken to see an object."""

NEARNESS = 6.0
"""The exponent of the intersection over union in the measure by which places are chosen."""

_LEAST = 1e-6


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """The intersection over union of boxes (…, 4) and others (…, 4)."""
    both, union = _areas(boxes, others)
    return both / union


def giou(boxes: Tensor, others: Tensor) -> Tensor:
    """The generalised intersection over union of boxes (…, 4) and others (…, 4), from −1 to 1 (Rezatofighi et al. 2019,
    arXiv 1902.09630)."""
    both, union = _areas(boxes, others)
    outer = torch.maximum(boxes[..., 2:], others[..., 2:]) - torch.minimum(boxes[..., :2], others[..., :2])
    hull = outer.clamp(min=0).prod(dim=-1).clamp(min=_LEAST)
    return both / union - (hull - union) / hull


def _areas(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The areas of intersection and union."""
    one, two = ((each[..., 2:] - each[..., :2]).clamp(min=0).prod(dim=-1) for each in (boxes, others))
    inner = torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])
    both = inner.clamp(min=0).prod(dim=-1)
    return both, (one + two - both).clamp(min=_LEAST)


def assigned(outputs: Tensor, boxes: Tensor, at: Tensor, reach: float) -> tuple[Tensor, Tensor, Tensor]:
    """Which object each place learns: target scores (B, C, L), target corners (B, L, 4), and whether the place is
    judged (B, L), which it is not inside a box that is not.

    `boxes` are (B, M, 6), and `at` (2, L) are the centres of the places. Of the places inside an object, or nearer to
    its centre than `reach`, those learn it that have the largest product of score and intersection over union to the
    power of 6; the target scores are this measure, scaled so that its maximum is the largest intersection over union
    (task-aligned assignment; Feng et al. 2021, arXiv 2108.07755, section 3.2).
    """
    corners, known = boxes[:, :, 1:5], boxes[:, :, 0] >= 0
    judged = known & (boxes[:, :, 5] == 0)
    middle, half = (corners[..., :2] + corners[..., 2:]) / 2, (corners[..., 2:] - corners[..., :2]) / 2
    away = (at.T[None, None] - middle[:, :, None]).abs()  # (B, M, L, 2)
    inside = (away < half.clamp(min=reach)[:, :, None]).all(dim=-1)
    guessed = outputs[:, :4].transpose(1, 2)
    shared = iou(guessed[:, None], corners[:, :, None])
    labels = boxes[:, :, 0].clamp(min=0).long()
    scores = outputs[:, 4:].gather(1, labels[:, :, None].expand(-1, -1, outputs.shape[2]))
    measure = (scores * shared**NEARNESS + 1e-12) * (inside & judged[:, :, None])
    best = measure.topk(min(CHOSEN, measure.shape[2]), dim=2)
    chosen = torch.zeros_like(measure).scatter_(2, best.indices, (best.values > 0).to(measure.dtype)) > 0
    owner = torch.where(chosen, shared + _LEAST, torch.zeros_like(shared)).max(dim=1)  # an object for each place
    mine = torch.zeros_like(chosen).scatter_(1, owner.indices[:, None], True) & chosen
    top = (measure * mine).amax(dim=2, keepdim=True).clamp(min=1e-12)
    quality = measure * mine / top * (shared * mine).amax(dim=2, keepdim=True).clamp(min=0.1)
    wanted = torch.zeros_like(outputs[:, 4:]).scatter_add_(1, labels[:, :, None].expand_as(quality), quality)
    hidden = (inside & (known & (boxes[:, :, 5] != 0))[:, :, None]).any(dim=1) & ~mine.any(dim=1)
    return wanted, corners.gather(1, owner.indices[:, :, None].expand(-1, -1, 4)), ~hidden


def box_loss(outputs: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None) -> Tensor:
    """The loss of corners and scores (B, 4 + C, L) for boxes (B, 1 + M, 6), of which the first one is the whole view.

    Scores learn the quality of the box by the quality focal loss (Li et al. 2020, arXiv 2006.04388, equation 2, β = 2),
    boxes by 1 − GIoU, each place with its target score as weight; both are divided by the sum of all target scores.
    `weights` (C,) multiply the losses of each class's scores and boxes. `smoothing` is always 0: `_weights` in
    edgekd/distill/tasks/detection.py refuses others.
    """
    height, width = int(targets[0, 0, 4]), int(targets[0, 0, 3])
    at, reach = places(outputs.shape[2], (height, width))
    wanted, corners, judged = assigned(outputs.detach(), targets[:, 1:], at.to(outputs.device), reach)
    total = wanted.sum().clamp(min=1)
    scores = outputs[:, 4:]
    each = cross_entropy(scores, wanted) * (wanted - scores).detach().abs() ** 2 * judged[:, None]
    if weights is not None:
        each = each * weights[:, None]
    share = (wanted if weights is None else wanted * weights[:, None]).amax(dim=1)
    boxes = ((1 - giou(outputs[:, :4].transpose(1, 2), corners)) * share).sum()
    return (each.sum() + BOX * boxes) / total


def box_kd(outputs: Tensor, teacher: Tensor) -> Tensor:
    """The distance of the student's corners and scores (B, 4 + C, L) from the teacher's.

    Scores: the cross-entropy of the scores as probabilities, less the teacher's own entropy, times the difference of
    the two, which keeps the many places of the background from outweighing the others, as in `box_loss`. Boxes:
    1 − GIoU at the places where the teacher's largest score is at least FOREGROUND, with this score as weight. Both are
    divided by the sum of these weights.
    """
    scores, wanted = outputs[:, 4:], teacher[:, 4:]
    best = wanted.amax(dim=1)
    share = best * (best >= FOREGROUND)
    total = share.sum().clamp(min=1)
    excess = cross_entropy(scores, wanted) - cross_entropy(wanted, wanted)
    each = excess * (wanted - scores).detach().abs()
    corners = [one[:, :4].transpose(1, 2) for one in (outputs, teacher)]
    boxes = ((1 - giou(*corners)) * share).sum()
    return (each.sum() + BOX * boxes) / total


def foreground(targets: Tensor, size: tuple[int, int]) -> Tensor:
    """The weights (B, *size) of the places of maps of that `size` (height, width), for the boxes (B, 1 + M, 6) of which
    the first one is the whole view.

    The places of an object are the cells that its box overlaps, at least one, and together they weigh 1, whatever
    their number; a place in several objects has the weight of the object with the fewest cells. All others, and those
    of boxes that are not judged, weigh 0. This is the product of the masks M and S of the foreground in FGD (Yang et
    al. 2022, arXiv 2111.11837, section 3.1, equations 3 and 4). The losses divide by the sum of all weights, as that
    of fine-grained feature imitation does by the number of places (Wang et al. 2019, arXiv 1906.03609, section 3.2).
    """
    boxes = targets[:, 1:]
    judged = (boxes[:, :, 0] >= 0) & (boxes[:, :, 5] == 0)
    cells = torch.tensor([size[1], size[0]], dtype=boxes.dtype, device=boxes.device)
    scale = cells / targets[:, :1, 3:5]
    limit = (cells - 1).expand_as(boxes[:, :, 1:3])
    first = torch.minimum((boxes[:, :, 1:3] * scale).floor(), limit)
    last = torch.maximum(torch.minimum((boxes[:, :, 3:5] * scale).ceil() - 1, limit), first)
    columns, rows = (torch.arange(count, device=boxes.device) for count in (size[1], size[0]))
    across = (columns >= first[:, :, :1]) & (columns <= last[:, :, :1])
    down = (rows >= first[:, :, 1:]) & (rows <= last[:, :, 1:])
    inside = down[:, :, :, None] & across[:, :, None, :] & judged[:, :, None, None]
    return (inside / (last - first + 1).prod(dim=2)[:, :, None, None]).amax(dim=1)


def cross_entropy(scores: Tensor, wanted: Tensor) -> Tensor:
    """The binary cross-entropy of each score and the wanted one, both from 0 to 1."""
    scores = scores.clamp(_LEAST, 1 - _LEAST)
    return -wanted * scores.log() - (1 - wanted) * (1 - scores).log()


def places(count: int, size: tuple[int, int]) -> tuple[Tensor, float]:
    """The centres (2, L) of the places of images of that `size` (height, width), and how far from the centre of an
    object there is always one. Raises ConfigError if so many places are no grids.
    """
    try:
        strides = strides_of(count, size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return centres(size, strides), 0.51 * strides[0]
