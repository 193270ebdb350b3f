"""How segmentation is learnt; see `Learning`."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd.data import masks
from edgekd.data.examples import Examples
from edgekd.distill.distributed import World, device, summed
from edgekd.distill.optimise import autocast
from edgekd.distill.tasks.learning import Learning, as_it_is, nothing_kept
from edgekd.distill.tasks.weighing import class_weights
from edgekd.distill.terms.losses import cross_entropy
from edgekd.recipe import Training
from edgekd.tasks.segmentation import IGNORED, SEGMENTATION, counts, ious

__all__ = ["MAPS", "judged_pixels", "mean_iou"]


def judged_pixels(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The logits (N, C) and classes (N,) of the pixels that are judged, of outputs (B, C, H, W) and class maps
    (B, H, W). If no pixel is judged, they are one row that does not depend on the outputs."""
    rows, classes = outputs.permute(0, 2, 3, 1).reshape(-1, outputs.shape[1]), targets.reshape(-1)
    judged = classes != IGNORED
    if not bool(judged.any()):  # a mean over no rows is NaN; equal rows of teacher and student have no distance
        fixed = torch.arange(rows.shape[1], dtype=rows.dtype, device=rows.device)
        return rows[:1] * 0 + fixed, classes[:1] * 0 + rows.shape[1] - 1
    return (rows, classes) if bool(judged.all()) else (rows[judged], classes[judged])


def mean_iou(net: nn.Module, examples: Examples, precision: str, among: World = World()) -> float:  # noqa: B008 - frozen
    """Mean IoU of `net` on the examples, in evaluation mode; the processes of `among` share the work."""
    net.eval()
    mine = np.arange(len(examples))[among.share(len(examples))]
    total: Tensor | None = None
    with torch.no_grad(), autocast(precision):
        for chosen in np.array_split(mine, max(1, -(-len(mine) // SEGMENTATION.together))):
            batch = examples.batch(chosen, None)
            outputs = net(batch.inputs.to(device()))
            found = counts(outputs.argmax(1).cpu().numpy(), batch.targets.numpy(), outputs.shape[1]).sum(axis=0)
            total = torch.from_numpy(found) if total is None else total + torch.from_numpy(found)
    assert total is not None  # every process has at least one piece
    matrix = summed(total) if among.size > 1 else total
    return float(np.mean([share for share in ious(matrix.numpy()) if share is not None]))


def _weights(training: Training, maps: NDArray[Any], data: Any, where: str) -> Tensor | None:
    return class_weights(training, maps[maps != IGNORED].astype(np.int64), data.classes, where, "pixels")


MAPS = Learning(
    load=masks.load_masked_training,
    examine=masks.load_masked_whole,
    require_test=masks.require_masked_test,
    load_test=lambda card, folder, kept: masks.load_masked_test(card, folder),
    keep=nothing_kept,
    settle=as_it_is,
    examples=masks.mask_examples,
    loss=cross_entropy,
    rows=judged_pixels,
    weights=_weights,
    score=mean_iou,
)
