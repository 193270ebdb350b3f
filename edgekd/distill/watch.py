"""Checks that stop a training if its loss is not finite or diverges."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.distill.distributed import summed
from edgekd.errors import BudgetError
from edgekd.recipe import TEMPERED

__all__ = ["Watch", "check_epoch"]

PATIENCE = 50
"""Number of steps between two checks; a check has to wait for the device."""
DIVERGED = 10.0
"""A training counts as diverged if an epoch's mean loss is more than this factor times that of the first epoch."""


class Watch:
    """Sums the loss terms of an epoch, and raises BudgetError for the first value that is not finite; with `bf16`, its
    message also advises to train in fp32, and with `muon` to lower the learning rate of the matrices."""

    def __init__(
        self, name: str, checkpoint: Path, rate: float, epoch: int, bf16: bool = False, muon: bool = False
    ) -> None:
        self._name, self._checkpoint, self._rate, self._epoch = name, checkpoint, rate, epoch
        self._bf16, self._muon = bf16, muon
        self._names: list[str] = []
        self._waiting: list[tuple[int, Tensor]] = []
        self._totals: dict[str, float] = {}

    def add(self, step: int, terms: dict[str, Tensor], share: float) -> None:
        """Add the terms of a part of the batch, which has the weight `share` in the batch."""
        self._names = list(terms)
        self._waiting.append((step, torch.stack([term.detach() for term in terms.values()]) * share))
        if len(self._waiting) >= PATIENCE:
            self._look()

    def means(self, steps: int) -> dict[str, float]:
        """The mean of each term over the steps of the epoch, of all processes together."""
        self._look()
        totals = summed(torch.tensor(list(self._totals.values()), dtype=torch.float64)).tolist()
        return {name: total / steps for name, total in zip(self._totals, totals, strict=True)}

    def _look(self) -> None:
        if not self._waiting:
            return
        for (step, _), values in zip(
            self._waiting, torch.stack([values for _, values in self._waiting]).tolist(), strict=True
        ):
            for name, value in zip(self._names, values, strict=True):
                if not math.isfinite(value):
                    raise _stopped(
                        self._name,
                        f"the loss term {name} is {value} at epoch {self._epoch + 1}, step {step + 1}",
                        self._checkpoint,
                        self._epoch,
                        self._rate,
                        self._bf16,
                        self._muon,
                    )
                self._totals[name] = self._totals.get(name, 0.0) + value
        self._waiting.clear()


def check_epoch(
    name: str,
    checkpoint: Path,
    module: nn.Module,
    before: list[dict[str, Any]],
    entry: dict[str, Any],
    bf16: bool = False,
    muon: bool = False,
) -> None:
    """Raise BudgetError if a weight is not finite after this epoch, or if the loss is more than ten times that of the
    first epoch with the same terms (`before`). If the temperature has changed, terms with a factor T² are ignored. With
    `bf16`, the message about weights that are not finite also advises to train in fp32, and with `muon` the messages
    name the learning rate of the matrices."""
    epoch, rate = entry["epoch"] - 1, entry["learning_rate"]
    for weight, value in module.named_parameters():
        if not bool(torch.isfinite(value).all()):
            what = f"the weights {weight} are not finite after epoch {epoch + 1}"
            raise _stopped(name, what, checkpoint, epoch, rate, bf16, muon)
    if not before:
        return
    moved = before[0]["temperature"] != entry["temperature"]
    was, now = (
        {term: value for term, value in one["terms"].items() if not (moved and term in TEMPERED)}
        for one in (before[0], entry)
    )
    if 0 < sum(was.values()) * DIVERGED < sum(now.values()):
        raise _stopped(
            name,
            f"the loss was {sum(was.values()):.4g} in epoch {before[0]['epoch']} and is {sum(now.values()):.4g} in "
            f"epoch {epoch + 1}: it diverges, most in {_worst(was, now)}",
            checkpoint,
            epoch,
            rate,
            muon=muon,
        )


def _worst(before: dict[str, float], now: dict[str, float]) -> str:
    return max(now, key=lambda name: now[name] - before.get(name, 0.0))


def _stopped(
    name: str, what: str, checkpoint: Path, epoch: int, rate: float, bf16: bool = False, muon: bool = False
) -> BudgetError:
    rates = "learning_rate and matrix_learning_rate" if muon else f"the learning rate (now {rate:g})"
    exact = 'set precision = "fp32" (now it is bf16), ' if bf16 else ""
    kept = f"; the last good checkpoint is {checkpoint}, after epoch {epoch}" if epoch else ""
    return BudgetError(
        f"{name}: {what}; {exact}lower {rates}, raise warmup_epochs or set clip_norm, and train anew{kept}"
    )
