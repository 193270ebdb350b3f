"""How a task is learnt: its data, its views, its loss and its score; the part of a task that needs torch."""

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
from edgekd.recipe import Training

__all__ = ["Learning", "Score", "as_it_is", "nothing_kept", "shares"]

Score = Callable[[nn.Module, Examples, str, World], float]
"""(network, examples, precision, the processes to share the work with) -> the task's first metric."""


@dataclass(frozen=True, kw_only=True)
class Learning:
    """What the road and the training loop ask of a task. `Path | None` is the value of `--data`."""

    load: Callable[[Card, Path | None], tuple[Split, Split]]
    """The training and the validation part; InputError for anything wrong with the data."""
    examine: Callable[[Card, Path | None], tuple[Split, Split]]
    """The same, after a look at the test part, of which nothing is kept: what is wrong there is told now."""
    require_test: Callable[[Card, Path | None], None]
    """Raises InputError if the test part is not there; nothing of it is read."""
    load_test: Callable[[Card, Path | None, Path], Split]
    """The test part; the last argument is the file that `keep` wrote."""
    keep: Callable[[Card, Path | None, Path], None]
    """Writes what belongs to the data beside the model, such as a tokenizer, to that file; or nothing."""
    settle: Callable[[Card, Split], Card]
    """The card with what is known only from the validation data."""
    examples: Callable[[Card, Split], Examples]
    """A part of the data as the training loop takes it."""
    loss: Callable[[Tensor, Tensor, float, Tensor | None], Tensor]
    """The loss between outputs (B, C) and targets, with label smoothing and weights where the task has such."""
    weights: Callable[[Training, NDArray[Any], Any, str], Tensor | None]
    """Weights of the loss, from the training's settings, all targets and the card's `[data]`; ConfigError with the
    last argument where they do not fit."""
    score: Score


def nothing_kept(card: Card, folder: Path | None, path: Path) -> None:
    """For tasks whose models need no other file."""


def as_it_is(card: Card, validation: Split) -> Card:
    """For tasks whose cards say everything."""
    return card


def shares(count: int, among: World) -> list[NDArray[np.int64]]:
    """The places of this process's share of so many examples, in pieces that fit the memory."""
    mine = np.arange(count)[among.share(count)]
    return np.array_split(mine, max(1, -(-len(mine) // 500)))
