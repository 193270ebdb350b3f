"""The pruned teacher: channels are removed in several rounds, and after each round it learns from the whole teacher."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.card import Card
from edgekd.data.examples import Examples
from edgekd.distill.distributed import barrier, world
from edgekd.distill.student import TrainingOptions, learn
from edgekd.distill.tasks.known import learning_of
from edgekd.distill.trial import check_small
from edgekd.errors import ConfigError, ModelError
from edgekd.files import read_json, write_json
from edgekd.nets.deployed import Deployed, noise_inputs
from edgekd.nets.pruning import narrowed, prunable, pruned, require_pruning, widths_of
from edgekd.nets.teachers import LoadedTeacher, make_teacher_net
from edgekd.nets.weights import load_into, read_state, save_state
from edgekd.run import Run

__all__ = ["check_pruning", "distill_pruned", "load_pruned"]

TRIED = 0.5
"""The share of the channels that are removed to try out whether a network can be pruned."""

BATCH = 128
"""Number of examples from which the importance `taylor` is computed."""


def check_pruning(card: Card, given: LoadedTeacher | None) -> None:
    """Raise ConfigError if the card's teacher cannot be pruned, and UnavailableError if torch-pruning is missing."""
    where = f"{card.file}: recipe.prune"
    require_pruning()
    if card.teacher.family == "self":
        raise ConfigError(f"{where}: has no effect with teacher.family = 'self', which is no larger than the student")
    net = given.net if given else make_teacher_net(card)
    if net is None:
        raise ConfigError(f"{where}: an ONNX teacher cannot be pruned; give the teacher's torch weights")
    try:
        whole = prunable(net)
        multiple = card.recipe.prune.multiple if card.recipe.prune else 1
        smaller = pruned(whole, card.data, widths_of(whole), TRIED, multiple=multiple)
    except ModelError as error:
        raise ConfigError(f"{where}: {error}") from error
    if card.recipe.prune:
        check_small(smaller, card, noise_inputs(card.data, 2), card.recipe.prune, "recipe.prune")
    if widths_of(smaller) == widths_of(whole):
        raise ConfigError(f"{where}: no layer of the network has more than {multiple} channels, so none can be removed")


def distill_pruned(
    card: Card,
    teachers: Sequence[LoadedTeacher],
    data: tuple[Examples, Examples],
    run: Run,
    ratio: float,
    options: TrainingOptions,
) -> nn.Module:
    """The first teacher without the share `ratio` of its channels, trained by `[recipe.prune]`; if its weights file
    exists, it is only loaded.

    In round n of N the share n / N of `ratio` is removed. Raises ModelError if the network cannot be pruned.
    """
    settings, out, whole = card.recipe.prune, run.pruned_weights, teachers[0].net
    assert settings is not None and whole is not None  # prepare has refused an ONNX teacher
    if not out.exists():
        tuned = dataclasses.replace(card, recipe=card.recipe.on_logits(settings))
        net = prunable(whole)
        sizes, epochs = widths_of(net), list[dict[str, Any]]()
        for number in range(1, settings.rounds + 1):
            net = pruned(
                net,
                card.data,
                sizes,
                ratio * number / settings.rounds,
                importance=settings.importance,
                multiple=settings.multiple,
                loss=_loss_of(card, data[0]) if settings.importance == "taylor" else None,
            )
            name, log = f"pruning, round {number} of {settings.rounds}", out.with_name("pruned-log")
            epochs += learn(tuned, {}, net, teachers, data, _scratch(out, number), options, name, log=log)
        if world().first:
            write_json(out.with_name("pruned-history.json"), {"schema_version": 1, "epochs": epochs})
            write_json(out.with_suffix(".json"), {"schema_version": 1, "ratio": ratio, "widths": widths_of(net)})
            save_state(net, out, {"card": card.name})
        barrier()
    if world().first:
        for number in range(1, settings.rounds + 1):
            shutil.rmtree(_scratch(out, number), ignore_errors=True)
    return load_pruned(whole, out)


def load_pruned(whole: nn.Module, weights: Path) -> nn.Module:
    """Build the pruned network from `whole`, the network before pruning, and from the two files that describe it: its
    weights, and the sizes of its layers in the JSON file beside them. torch-pruning is not needed.

    Raises InputError or ModelError for files of another network.
    """
    net = narrowed(prunable(whole), read_json(weights.with_suffix(".json"))["widths"])
    load_into(net, read_state(weights), weights)
    return net.eval()


def _scratch(out: Path, number: int) -> Path:
    return out.with_name(f"pruned-attempt-{number}")


def _loss_of(card: Card, examples: Examples) -> Callable[[nn.Module], Tensor]:
    batch = examples.batch(np.linspace(0, len(examples) - 1, min(BATCH, len(examples))).astype(np.int64), 0)

    def loss(net: nn.Module) -> Tensor:
        with torch.enable_grad():
            outputs = Deployed(net, card.data)(batch.inputs)
            learning = learning_of(card.data)
            rows, targets = learning.rows(outputs, batch.targets) if learning.rows else (outputs, batch.targets)
            return learning.loss(rows, targets, 0.0, None)

    return loss
