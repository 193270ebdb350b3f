"""How a task is learnt: its data, views, loss and score. This is the part of a task that needs torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd.card import Card
from edgekd.data.examples import Examples
from edgekd.data.images import Split
from edgekd.distill.distributed import World
from edgekd.distill.objective import Places, Rows
from edgekd.recipe import Training

__all__ = ["Learning", "Score", "as_it_is", "nothing_kept", "shares"]

Score = Callable[[nn.Module, Examples, str, World], float]
"""(network, examples, precision, the processes that share the work) -> the task's first metric."""


@dataclass(frozen=True, kw_only=True)
class Learning:
    """The functions of a task that the pipeline and the training loop call. `Path | None` is the value of `--data`."""

    load: Callable[[Card, Path | None], tuple[Split, Split]]
    """Returns the training and the validation part; raises InputError for anything wrong with the data."""
    examine: Callable[[Card, Path | None], tuple[Split, Split]]
    """The same, but also reads the test part, so that its errors are reported before training; it is not returned."""
    require_test: Callable[[Card, Path | None], None]
    """Raises InputError if the test part does not exist; does not read it."""
    load_test: Callable[[Card, Path | None, Path], Split]
    """Returns the test part; the last argument is the file that `keep` wrote."""
    keep: Callable[[Card, Path | None, Path], None]
    """Writes what a deployed model needs for its inputs, such as a tokenizer, to that file, or does nothing."""
    settle: Callable[[Card, Split], Card]
    """Returns the card, completed with values that depend on the validation data."""
    examples: Callable[[Card, Split], Examples]
    """Converts a part of the data to the type that the training loop takes."""
    loss: Callable[[Tensor, Tensor, float, Tensor | None], Tensor]
    """The loss of outputs (B, C) and targets, with label smoothing and weights if the task has them."""
    soft: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    """The term `kd` of student and teacher outputs (B, C) and targets, for tasks whose outputs are no logits; None if
    they are."""
    by_answers: Callable[[Card, tuple[int, ...]], bool] = lambda card, outputs: False
    """Whether a teacher whose outputs have this shape, which is not the student's, teaches by its final answers; then
    `soft` takes its outputs, and no other term does."""
    rows: Rows | None = None
    """Returns the rows of logits (N, C) and targets (N,) that the terms on logits are about, of outputs (B, C, …) and
    targets (B, …); None if there is one row for each example."""
    groups: int | None = None
    """How many of the teacher's most probable classes the terms `kd` and `soft_ce` tell apart, which take all others
    together; None if all, as for tasks with few classes."""
    foreground: Places | None = None
    """The weights of places for the terms on features with `where = "foreground"`; None if the task has no objects."""
    weights: Callable[[Training, NDArray[Any], Any, str], Tensor | None]
    """Returns the weights of the loss, from the training's settings, all targets and the card's `[data]`; raises
    ConfigError, whose message begins with the last argument, if they do not fit."""
    score: Score


def nothing_kept(card: Card, folder: Path | None, path: Path) -> None:
    """A `keep` that does nothing, for tasks whose models need no other file."""


def as_it_is(card: Card, validation: Split) -> Card:
    """A `settle` that returns the card unchanged, for tasks whose cards are already complete."""
    return card


def shares(count: int, among: World) -> list[NDArray[np.int64]]:
    """The positions of this process's share of `count` examples, in pieces of about 500 that fit in memory."""
    mine = np.arange(count)[among.share(count)]
    return np.array_split(mine, max(1, -(-len(mine) // 500)))
