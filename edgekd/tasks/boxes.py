"""Average precision of detections, as the COCO challenge defines it, and how it depends on single images.

Detections are (n, K, 6): corners x1, y1, x2, y2, score and class; rows of class −1 are unused. True boxes are
(n, M, 6): class, corners, and 1 for a box that is not judged, such as a crowd; rows of class −1 are unused.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["THRESHOLDS", "Matches", "average_precision", "influence", "matches", "overlaps"]

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""The intersections over union from which on a detection is a hit: 0.5, 0.55, … 0.95."""

_RECALLS = np.linspace(0, 1, 101)

Boxes = NDArray[np.floating]


@dataclass(frozen=True)
class Matches:
    """The detections of one class in all images, those with the highest score first, and what they hit."""

    image: NDArray[np.int64]
    """The number of the image of each detection (D,)."""
    hit: NDArray[np.int8]
    """1 for a hit, 0 for a miss, −1 if it is not judged, (T, D) by threshold."""
    boxes: NDArray[np.int64]
    """The number of judged true boxes in each image (n,)."""


def overlaps(boxes: Boxes, others: Boxes, of_first: bool = False) -> NDArray[np.float64]:
    """Intersection over union of boxes (n, 4) and others (m, 4), as (n, m); with `of_first`, the intersection's share
    of the box in the first array."""
    one, two = boxes[:, None].astype(np.float64), others[None].astype(np.float64)
    sides = np.minimum(one[..., 2:4], two[..., 2:4]) - np.maximum(one[..., :2], two[..., :2])
    both = np.maximum(sides, 0).prod(axis=2)
    areas = [np.maximum(each[..., 2:4] - each[..., :2], 0).prod(axis=2) for each in (one, two)]
    whole = areas[0] if of_first else areas[0] + areas[1] - both
    return np.asarray(np.divide(both, whole, out=np.zeros_like(both), where=whole > 0))


def matches(found: Boxes, truth: Boxes, category: int, thresholds: tuple[float, ...] = THRESHOLDS) -> Matches:
    """What the detections of a class hit, as COCO's evaluation assigns them (Lin et al. 2014; pycocotools).

    In the order of their scores, each detection takes the free box with which it overlaps most. One that takes none is
    not judged if enough of it lies in a box that is not judged.
    """
    scores, images, hits, counts = [], [], [], np.zeros(len(truth), np.int64)
    for number, (answers, known) in enumerate(zip(found, truth, strict=True)):
        own = answers[answers[:, 5] == category]
        own = own[np.argsort(-own[:, 4], kind="stable")]
        true = known[known[:, 0] == category]
        judged, others = true[true[:, 5] == 0, 1:5], true[true[:, 5] != 0, 1:5]
        counts[number] = len(judged)
        shared = overlaps(own, judged)
        aside = overlaps(own, others, of_first=True).max(axis=1, initial=0)
        hits.append(np.stack([_hits(shared, aside, least) for least in thresholds]))
        scores.append(own[:, 4])
        images.append(np.full(len(own), number, np.int64))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return Matches(np.concatenate(images)[order], np.concatenate(hits, axis=1)[:, order], counts)


def _hits(shared: NDArray[np.float64], aside: NDArray[np.float64], least: float) -> NDArray[np.int8]:
    free = np.ones(shared.shape[1], bool)
    found = np.where(aside >= least, -1, 0).astype(np.int8)
    for place, row in enumerate(shared):
        usable = np.where(free, row, -1.0)
        if len(usable) and usable.max() >= least:
            free[usable.argmax()] = False
            found[place] = 1
    return found


def average_precision(found: Matches) -> NDArray[np.float64] | None:
    """The average precision (T,) at each threshold: the mean of the precision at 101 recalls, each the highest one at
    this or a higher recall. None for a class without judged boxes."""
    total = int(found.boxes.sum())
    if not total:
        return None
    values = np.zeros(len(found.hit))
    for number, hit in enumerate(found.hit):
        counted = hit[hit >= 0]
        hits = np.cumsum(counted)
        precision = _highest(hits / np.arange(1, len(hits) + 1))[0]
        places = np.searchsorted(hits / total, _RECALLS, side="left")
        reached = places[places < len(hits)]
        values[number] = precision[reached].sum() / len(_RECALLS)
    return values


def _highest(precision: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The highest precision at each place or a later one, and the place where it is reached."""
    backwards = precision[::-1]
    highest = np.maximum.accumulate(backwards)
    places = np.where(backwards >= highest, np.arange(len(backwards)), 0)
    return highest[::-1], (len(backwards) - 1 - np.maximum.accumulate(places))[::-1]


def influence(found: Matches) -> NDArray[np.float64]:
    """How the average precision at the first threshold changes with the weight of each image, (n,); the sum is 0.

    This is the derivative of Σ w·hit·P / Σ w·boxes, in which P is the highest precision from a hit on: the values of
    the infinitesimal jackknife (Jaeckel 1972; Efron 1982, chapter 6). Their spread estimates that of the average
    precision when images are drawn anew.
    """
    judged = found.hit[0] >= 0
    hit, image = found.hit[0][judged].astype(np.float64), found.image[judged]
    total = float(found.boxes.sum())
    change = np.zeros(len(found.boxes))
    if len(hit):
        precision, reached = _highest(np.cumsum(hit) / np.arange(1, len(hit) + 1))
        # A detection changes P of every hit whose highest precision is reached at it or behind it: a suffix of them.
        ones, shares = (np.append(np.cumsum((hit * v / (reached + 1))[::-1])[::-1], 0.0) for v in (1.0, precision))
        first = np.searchsorted(reached, np.arange(len(hit)), side="left")
        own = hit * precision + hit * ones[first] - shares[first]
        change += np.bincount(image, own, minlength=len(change))
        mean = float((hit * precision).sum()) / total
    else:
        mean = 0.0
    return np.asarray((change - mean * found.boxes) / total)
