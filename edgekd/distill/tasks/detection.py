"""How detection is learnt; see `Learning`."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd.bench.worker import KEPT
from edgekd.card import Card
from edgekd.data import boxes
from edgekd.data.examples import Examples
from edgekd.distill.distributed import World, device, summed
from edgekd.distill.optimise import autocast
from edgekd.distill.tasks.learning import Learning, as_it_is, nothing_kept
from edgekd.distill.tasks.weighing import class_weights
from edgekd.distill.terms.boxes import box_kd, box_loss, foreground
from edgekd.distill.terms.detections import detections_kd
from edgekd.errors import ConfigError
from edgekd.nets.detect import strides_of
from edgekd.recipe import Training
from edgekd.tasks.detection import DETECTION, found_in, mean_precision

__all__ = ["BOXES", "mean_average_precision"]


def mean_average_precision(
    net: nn.Module,
    examples: Examples,
    precision: str,
    among: World = World(),  # noqa: B008 - frozen
) -> float:
    """mAP50 of `net` on the examples, in evaluation mode; the processes of `among` share the work.

    Raises ModelError if the network gives numbers that are not finite.
    """
    net.eval()
    mine = np.arange(len(examples))[among.share(len(examples))]
    found = np.zeros((len(examples), KEPT, 6), np.float32)
    with torch.no_grad(), autocast(precision):
        for chosen in np.array_split(mine, max(1, -(-len(mine) // DETECTION.together))):
            outputs = net(examples.batch(chosen, None).inputs.to(device()))
            found[chosen] = found_in(outputs.float().cpu().numpy())
    if among.size > 1:
        found = summed(torch.from_numpy(found)).cpu().numpy()  # each row is zero in all processes but one
    return mean_precision(found, examples.labels)


def _weights(training: Training, labels: NDArray[Any], data: Any, where: str) -> Tensor | None:
    if training.label_smoothing:
        key = f"{where.rpartition('.')[0]}.label_smoothing".lstrip(".")
        raise ConfigError(f"{key}: is for classes that exclude one another; set it to 0 for {DETECTION.name}")
    known = labels[..., 0][labels[..., 0] >= 0].astype(np.int64)
    return class_weights(training, known, data.classes, where, "objects")


def _soft(outputs: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    if outputs.shape == teacher.shape:
        return box_kd(outputs, teacher)
    return detections_kd(outputs, teacher, targets)


def _by_detections(card: Card, outputs: tuple[int, ...]) -> bool:
    """Whether the places of a teacher are no grids of strides, as those of anchors."""
    crop = card.augment.crop
    try:
        strides_of(outputs[-1], (crop, crop) if crop else (card.data.height, card.data.width))
    except ValueError:
        return True
    return False


BOXES = Learning(
    load=boxes.load_boxed_training,
    examine=boxes.load_boxed_whole,
    require_test=boxes.require_boxed_test,
    load_test=lambda card, folder, kept: boxes.load_boxed_test(card, folder),
    keep=nothing_kept,
    settle=as_it_is,
    examples=boxes.box_examples,
    loss=box_loss,
    soft=_soft,
    foreground=foreground,
    by_answers=_by_detections,
    weights=_weights,
    score=mean_average_precision,
)
