"""What a training keeps after each epoch, so that it goes on where it was cut."""

import dataclasses
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from edgekd.console import say
from edgekd.devices.local import Local
from edgekd.distill.distributed import World, device, world
from edgekd.distill.optimise import computes_bf16
from edgekd.errors import ConfigError, InputError
from edgekd.files import atomic, write_json
from edgekd.recipe import Training

__all__ = ["Progress", "begin", "keep"]


PARTS = ("module", "optimizer", "averaged", "history", "best", "since", "finished")
"""What a checkpoint holds beside the conditions it was written under."""


@dataclass
class Progress:
    """How far a training is: its history, the moving average and the best weights."""

    history: list[dict[str, Any]] = field(default_factory=list)
    averaged: AveragedModel | None = None
    best: dict[str, Tensor] | None = None
    """With `patience`, the weights of the best epoch."""
    since: int = 0
    """Epochs since it."""
    finished: bool = False

    def average(self, net: nn.Module) -> None:
        """Take the weights after a step into the moving average."""
        if self.averaged is not None:
            self.averaged.update_parameters(net)

    def kept(self, net: nn.Module, among: World) -> nn.Module:
        """What is validated: the moving average, or the network with the running statistics of rank 0."""
        if among.size > 1:
            for buffer in [*net.buffers(), *(self.averaged.buffers() if self.averaged else [])]:
                dist.broadcast(buffer, 0)
        return self.averaged.module if self.averaged is not None else net

    def add(self, entry: dict[str, Any], net: nn.Module, patience: int) -> None:
        """One more epoch; with `patience`, keep the best and notice when there was none for so long. Only the epochs
        from the last stage's first on count."""
        reached = [before["validation_accuracy"] for before in self.history if before.get("last_stage", True)]
        self.history.append(entry)
        if not patience or not entry.get("last_stage", True):
            return
        if not reached or entry["validation_accuracy"] > max(reached):
            source = self.averaged.module if self.averaged is not None else net
            self.best, self.since = {name: value.detach().clone() for name, value in source.state_dict().items()}, 0
        else:
            self.since += 1
            self.finished = self.since >= patience

    def finish(self, net: nn.Module) -> None:
        """Give `net` the weights to keep."""
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
    """A new training, or the one in `checkpoint`, loaded into `module` (with its `net`) and `optimizer`.

    Raises InputError for a broken checkpoint, ConfigError for one of another machine, recipe, network, or `about`
    (what else must be the same). Another number of processes is said, and goes on: the result is then not the same
    bit for bit.
    """
    progress = Progress()
    if training.ema:
        decay = get_ema_multi_avg_fn(training.ema)  # type: ignore[no-untyped-call]
        net = module.get_submodule("net")  # its counter must be where the network is, to be broadcast with it
        progress.averaged = AveragedModel(net, device=device(), multi_avg_fn=decay, use_buffers=True)
    if not checkpoint.exists():
        return progress
    state = _read(checkpoint)
    processes = state["conditions"].pop("processes", 1)
    _refuse_others(checkpoint, state["conditions"], {**_conditions(training), **about}, processes)
    try:
        module.load_state_dict(state["module"])
    except RuntimeError as error:  # torch's own tells every tensor
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


def _read(checkpoint: Path) -> dict[str, Any]:
    try:
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")  # each tensor's user moves it
        state = {**state, "conditions": dict(state["conditions"])}
    except Exception as error:  # torch raises whatever a broken file leads it to
        raise InputError(f"{checkpoint}: not a readable checkpoint; remove it to train again") from error
    if missing := [part for part in PARTS if part not in state]:
        raise InputError(f"{checkpoint}: has no {missing[0]!r}; remove it to train again")
    return state


def _refuse_others(checkpoint: Path, written: Mapping[str, Any], now: Mapping[str, Any], processes: int) -> None:
    for key, value in now.items():
        if key == "threads" and processes != world().size:
            continue  # torchrun gives each process fewer
        if written.get(key) != value:
            raise ConfigError(
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
    """Write everything that `begin` needs, and `history.json` beside it."""
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
    content = io.BytesIO()  # torch writing to a full disk ends in an error that does not say so
    torch.save(state, content)
    with atomic(checkpoint) as temporary:
        temporary.write_bytes(content.getbuffer())
    write_json(checkpoint.with_name("history.json"), {"schema_version": 1, "epochs": progress.history})


def _conditions(training: Training) -> dict[str, Any]:
    """What must be the same for a resumed training to be identical: the machine, and the recipe."""
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": device().type,
        "cpu": Local().facts().model,
        "bf16": computes_bf16(training.precision),
        **{f"recipe.{key}": value for key, value in dataclasses.asdict(training).items()},
    }
