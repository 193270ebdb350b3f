"""Optimiser, gradient clipping, learning rate and autocast precision of a training."""

import itertools
import math
from collections.abc import Set as AbstractSet

import torch
from torch import nn

from edgekd.distill.distributed import device
from edgekd.distill.muon import Muon, hidden_matrices
from edgekd.recipe import Training

__all__ = ["autocast", "clip", "computes_bf16", "has_matrices", "learning_rate", "make_optimizer", "set_rate"]

RISE = 0.3
"""Share of the steps during which the learning rate of `one-cycle` rises."""
THETA = "learned.temperature.theta"
START, END = 1 / 25, 1 / 10_000
"""First and last learning rate of `one-cycle`, relative to the highest one (the defaults of torch's OneCycleLR)."""


def make_optimizer(
    module: nn.Module, training: Training, loaded: AbstractSet[str] = frozenset()
) -> torch.optim.Optimizer:
    """A new optimiser for the training; SGD uses Nesterov momentum. The learned temperature (`theta`) has no weight
    decay, which would pull it to the middle of its range for no reason. The fused optimisers read and write each value
    once: on a CPU, their step takes a third (SGD) or a quarter (AdamW) of the time.

    `loaded` are the names of the parameters that were loaded from a weights file. They are groups of their own, whose
    learning rate `set_rate` multiplies by `loaded_learning_rate_factor`. With Muon, the matrices of the network and of
    its peers are groups of their own, too; if `module` has no submodule `net`, it is the network itself.
    """
    named = dict(module.named_parameters())
    matrices = _matrices(module) if training.optimizer == "muon" else frozenset[str]()
    groups = []
    for muon, slow in itertools.product((False, True), repeat=2):
        names = [name for name in named if (name in matrices, name in loaded) == (muon, slow) and name != THETA]
        if names:
            groups.append({"params": [named[name] for name in names], **_settings(training, muon, slow)})
    if THETA in named:
        groups.append({"params": [named[THETA]], "weight_decay": 0.0})
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, training.learning_rate, weight_decay=training.weight_decay, fused=True)
    return (Muon if training.optimizer == "muon" else torch.optim.SGD)(
        groups,
        training.learning_rate,
        training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.momentum > 0,
        fused=True,
    )


def _matrices(module: nn.Module) -> set[str]:
    inside = dict(module.named_modules())
    if "net" not in inside:
        return hidden_matrices(module)
    peers = [f"learned.peers.{name}" for name, _ in inside.get("learned.peers", nn.Module()).named_children()]
    return {f"{path}.{name}" for path in ("net", *peers) for name in hidden_matrices(inside[path])}


def _settings(training: Training, matrices: bool, loaded: bool) -> dict[str, float]:
    """The settings of a group of parameters; `factor` is its learning rate as a share of `learning_rate`."""
    share = training.loaded_learning_rate_factor if loaded else 1.0
    if not matrices:
        return {"factor": share}
    factor = share * training.matrix_learning_rate / training.learning_rate
    return {"factor": factor, "weight_decay": 0.0, "matrix_weight_decay": training.matrix_weight_decay}


def has_matrices(optimizer: torch.optim.Optimizer) -> bool:
    """Whether Muon updates any parameter."""
    return any("matrix_weight_decay" in group for group in optimizer.param_groups)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group: `rate`, or the group's share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)


def clip(module: nn.Module, training: Training) -> None:
    """Clip the gradient to the norm `clip_norm`, separately for each child of `module`, so that large gradients of the
    auxiliary modules do not reduce those of the network."""
    if training.clip_norm is not None:
        for child in module.children():
            if trained := list(child.parameters()):
                nn.utils.clip_grad_norm_(trained, training.clip_norm)


def learning_rate(training: Training, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate at `step` (counted from 0) of a part that has `epochs` epochs.

    `cosine`, `linear`: a linear warm-up, then half a cosine or a straight line down to zero. `constant`: the warm-up,
    then a constant rate.
    `one-cycle`: half a cosine up over the first 30 % of the steps, then half a cosine down; no separate warm-up.
    """
    top, total = training.learning_rate, epochs * steps_per_epoch
    if training.schedule == "one-cycle":
        peak = RISE * total - 1
        if step <= peak:
            return top * _between(START, 1.0, step / peak)
        return top * _between(1.0, START * END, (step - peak) / max(1.0, total - 1 - peak))
    warmup = training.warmup_epochs * steps_per_epoch
    if step < warmup:
        return top * (step + 1) / (warmup + 1)
    if training.schedule == "constant":
        return top
    share = (step - warmup) / max(1.0, total - warmup)
    return top * ((1 - share) if training.schedule == "linear" else _between(1.0, 0.0, share))


def _between(first: float, last: float, share: float) -> float:
    """The value at `share` (0 to 1) of half a cosine from `first` to `last`."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * share))


def autocast(precision: str) -> torch.autocast:
    """Autocast to bf16 for `bf16`, and for `auto` if the hardware supports bf16; otherwise no autocast (fp32)."""
    return torch.autocast(device().type, torch.bfloat16, enabled=computes_bf16(precision))


def computes_bf16(precision: str) -> bool:
    """Whether a training with this `precision` setting uses bf16 on this machine."""
    if precision == "auto":
        if torch.cuda.is_available():
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        return bool(torch.cpu._is_avx512_bf16_supported())
    return precision == "bf16"
