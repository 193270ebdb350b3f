"""The third task: how it is learnt, and its only family of networks."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from edgekd.card import Card
from edgekd.data.arrays import digest
from edgekd.data.examples import Batch, Examples
from edgekd.data.images import Split
from edgekd.distill.distributed import World
from edgekd.distill.tasks.learning import Learning, as_it_is, nothing_kept

CENTRE, SCALE = 152.0, 77.0
"""Mean and standard deviation of what is predicted."""


def part(first: int, step: int = 3) -> Split:
    """Every third patient: 0 for training, 1 for validation, 2 for the test."""
    inputs, targets = (array.astype(np.float32) for array in load_diabetes(return_X_y=True))
    return Split(targets[first::step], lambda chosen: inputs[first::step][chosen])


def examples(card: Card, split: Split) -> Examples:
    """There is one view, the features as they are."""

    def batch(chosen: NDArray[np.int64], view: int | None) -> Batch:
        return Batch(torch.from_numpy(split.read(chosen)), torch.from_numpy(split.labels[chosen]))

    return Examples(split.labels, batch, {"data": digest(split)})


def score(net: nn.Module, among_these: Examples, precision: str, among: World) -> float:
    """The mean absolute error."""
    batch = among_these.batch(np.arange(len(among_these)), None)
    with torch.no_grad():
        return float((net.eval()(batch.inputs)[:, 0] - batch.targets).abs().mean())


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean squared error, in units of the targets' variance."""
    return ((outputs.flatten() - targets.flatten()) ** 2).mean() / SCALE**2


@dataclass(frozen=True, kw_only=True)
class RegressorShape:
    """Number of hidden units."""

    hidden: int


class Regressor(nn.Sequential):
    """One hidden layer; (B, features) to (B, outputs)."""

    def __init__(self, shape: RegressorShape, features: int, outputs: int) -> None:
        super().__init__(nn.Linear(features, shape.hidden), nn.ReLU(), nn.Linear(shape.hidden, outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = super().forward(inputs)
        return CENTRE + SCALE * found


def both(card: Card, folder: Path | None) -> tuple[Split, Split]:
    """Training and validation."""
    return part(0), part(1)


NUMBERS = Learning(
    load=both, examine=both, require_test=lambda card, folder: None, load_test=lambda card, folder, kept: part(2),
    keep=nothing_kept, settle=as_it_is, examples=examples, weights=lambda *asked: None, score=score,
    loss=lambda outputs, targets, smoothing, weights: squared(outputs, targets),
    soft=lambda outputs, teacher, targets: squared(outputs, teacher),
)  # fmt: skip
