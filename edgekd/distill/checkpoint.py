"""The checkpoint that a training writes after each epoch, so that an interrupted training can resume."""

import dataclasses
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from edgekd.console import say
from edgekd.devices.local import Local
from edgekd.distill.distributed import World, device, world
from edgekd.distill.optimise import computes_bf16
from edgekd.errors import ConfigError, InputError
from edgekd.files import atomic, write_json
from edgekd.recipe import Prune, Qat, Training
from edgekd.scores import ACCURACY, ScoreKind

__all__ = ["OtherConditions", "Progress", "begin", "keep"]


PARTS = ("module", "optimizer", "averaged", "history", "best", "since", "finished")
"""Keys of a checkpoint, apart from `conditions`: the machine and the recipe that it was written with."""


class OtherConditions(ConfigError):
    """A checkpoint was written on another machine, or with another recipe or network."""


@dataclass
class Progress:
    """The state of a training after an epoch: its history, the moving average and the best weights."""

    history: list[dict[str, Any]] = field(default_factory=list)
    averaged: AveragedModel | None = None
    best: dict[str, Tensor] | None = None
    """The weights of the best epoch; only kept if the recipe sets `patience`."""
    since: int = 0
    """Number of epochs since the best one."""
    finished: bool = False

    def average(self, net: nn.Module) -> None:
        """Update the moving average with the weights after a step."""
        if self.averaged is not None:
            self.averaged.update_parameters(net)

    def kept(self, net: nn.Module, among: World) -> nn.Module:
        """The module to validate: the moving average if there is one, else the network.

        With several processes, both get the running statistics (buffers) of rank 0 first.
        """
        if among.size > 1:
            for buffer in [*net.buffers(), *(self.averaged.buffers() if self.averaged else [])]:
                dist.broadcast(buffer, 0)
        return self.averaged.module if self.averaged is not None else net

    def add(self, entry: dict[str, Any], net: nn.Module, patience: int, kind: ScoreKind = ACCURACY) -> None:
        """Append an epoch's entry to the history. With `patience` > 0, also keep the weights of the best epoch, and set
        `finished` after `patience` epochs without a better one. `kind` is the score that decides which epoch is better.
        Only epochs of the last stage are compared."""
        key = kind.history_key
        reached = [before[key] for before in self.history if before.get("last_stage", True)]
        self.history.append(entry)
        if not patience or not entry.get("last_stage", True):
            return
        if not reached or kind.improves(entry[key], kind.best(reached)):
            source = self.averaged.module if self.averaged is not None else net
            self.best, self.since = {name: value.detach().clone() for name, value in source.state_dict().items()}, 0
        else:
            self.since += 1
            self.finished = self.since >= patience

    def finish(self, net: nn.Module) -> None:
        """Load the final weights into `net`: those of the best epoch, or the moving average."""
        if self.best is not None:
            net.load_state_dict(self.best)
        elif self.averaged is not None:
            net.load_state_dict(self.averaged.module.state_dict())


def begin(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    name: str,
    checkpoint: Path,
    training: Training,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> Progress:
    """Start a new training, or load `checkpoint` into `module`, which has a submodule `net`, and into `optimizer`.

    `about` holds further conditions that must not have changed. Raises InputError for a broken checkpoint, ConfigError
    for one that was written on another machine or with another recipe, network or `about`. A different number of
    processes is allowed: a message says that the result is then not bit-for-bit the same.
    """
    progress = Progress()
    if training.ema:
        net = module.get_submodule("net")  # on the network's device, since its buffers are broadcast, too
        progress.averaged = AveragedModel(net, device=device(), multi_avg_fn=_moving(training.ema), use_buffers=True)
    if not checkpoint.exists():
        return progress
    state = _read(checkpoint)
    processes = state["conditions"].pop("processes", 1)
    _refuse_others(checkpoint, state["conditions"], {**_conditions(training), **about}, processes)
    try:
        module.load_state_dict(state["module"])
    except RuntimeError as error:  # torch's own message lists every tensor
        raise ConfigError(
            f"{checkpoint}: is of another network; resume as it began, or remove {checkpoint.parent} to train again"
        ) from error
    try:
        optimizer.load_state_dict(state["optimizer"])
        if progress.averaged is not None:
            progress.averaged.load_state_dict(state["averaged"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{checkpoint}: its state of the training does not fit; remove it to train again") from error
    progress.history, progress.best = state["history"], state["best"]
    progress.since, progress.finished = state["since"], state["finished"]
    if len(progress.history) < training.epochs and not progress.finished:
        say(f"{name}: resumed after epoch {len(progress.history)} of {training.epochs}")
    if processes != world().size:
        say(f"{name}: begun with {processes} processes, goes on with {world().size}; not the same bit for bit")
    return progress


def _moving(decay: float) -> Callable[[Any, Any, Any], None]:
    """Update of a moving average. Its decay rises to `decay`, so that the random weights of the beginning are forgotten
    in a short training, too: after n steps it is at most (1 + n) / (10 + n), as in TensorFlow's average."""

    @torch.no_grad()
    def update(averaged: list[Tensor], values: list[Tensor], count: Tensor | int) -> None:
        share = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, values, share)
        else:  # counters
            torch._foreach_copy_(averaged, values)

    return update


def _read(checkpoint: Path) -> dict[str, Any]:
    try:
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")  # load_state_dict moves it
        state = {**state, "conditions": dict(state["conditions"])}
    except Exception as error:  # a broken file can make torch raise almost any exception
        raise InputError(f"{checkpoint}: not a readable checkpoint; remove it to train again") from error
    if missing := [part for part in PARTS if part not in state]:
        raise InputError(f"{checkpoint}: has no {missing[0]!r}; remove it to train again")
    return state


def _refuse_others(checkpoint: Path, written: Mapping[str, Any], now: Mapping[str, Any], processes: int) -> None:
    for key, value in now.items():
        if key == "threads" and processes != world().size:
            continue  # torchrun gives each process fewer threads
        if written.get(key) != value:
            raise OtherConditions(
                f"{checkpoint}: was written with {key} = {written.get(key)!r}, now it is {value!r}; resume as it "
                f"began, or remove {checkpoint.parent} to train again"
            )


def keep(
    progress: Progress,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    checkpoint: Path,
    training: Training,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write the checkpoint that `begin` reads, and `history.json` in the same folder."""
    state = {
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "averaged": progress.averaged.state_dict() if progress.averaged is not None else None,
        "history": progress.history,
        "best": progress.best,
        "since": progress.since,
        "finished": progress.finished,
        "conditions": {**_conditions(training), **about, "processes": world().size},
    }
    content = io.BytesIO()  # if torch writes to a full disk, its error does not name the cause
    torch.save(state, content)
    with atomic(checkpoint) as temporary:
        temporary.write_bytes(content.getbuffer())
    write_json(checkpoint.with_name("history.json"), {"schema_version": 1, "epochs": progress.history})


def _conditions(training: Training) -> dict[str, Any]:
    """The machine and the recipe: they must not change, or a resumed training gives another result."""
    recipe = dataclasses.asdict(training)
    # Checkpoints of earlier versions lack these settings.
    if recipe["loaded_learning_rate_factor"] == Training.loaded_learning_rate_factor:
        del recipe["loaded_learning_rate_factor"]
    for one, kind in ((recipe, type(training)), (recipe.get("qat"), Qat), (recipe.get("prune"), Prune)):
        for name in ("matrix_learning_rate", "matrix_weight_decay"):
            if one and one[name] == getattr(kind, name):
                del one[name]
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": device().type,
        "cpu": Local().facts().model,
        "bf16": computes_bf16(training.precision),
        **{f"recipe.{key}": value for key, value in recipe.items()},
    }
