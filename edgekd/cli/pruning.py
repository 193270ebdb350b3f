"""`prune`: from the command line to the pruning of a network that edgekd need not have trained."""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from edgekd import units
from edgekd.cli.exporting import NetworkOptions, require_training, wanted_network
from edgekd.cli.quantizing import numbers
from edgekd.console import out, say
from edgekd.devices.local import connect
from edgekd.errors import ConfigError, InputError, did_you_mean
from edgekd.imports import require
from edgekd.result import Result
from edgekd.tables import headline, result_items
from edgekd.target import load_target

if TYPE_CHECKING:
    from edgekd.card import Card
    from edgekd.pruning import Fits
    from edgekd.run import Run

__all__ = ["PruneOptions", "prune_model"]

EPOCHS = 8
"""Epochs after each round, where neither card nor option says it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """The options of `prune`."""

    network: NetworkOptions
    data: Path | None = None
    budget: list[str] = dataclasses.field(default_factory=list)
    out: Path | None = None
    epochs: int | None = None
    rounds: int | None = None
    importance: str = ""
    device: str = ""
    fresh: bool = False


def prune_model(source: str, target_name: str, options: PruneOptions) -> int:
    """Prune the network, show it before and after, and return the exit code of the verdict."""
    begin, target = time.perf_counter(), load_target(target_name)
    require_training("edgekd prune")
    require("torch_pruning", "prune", "edgekd prune")
    from edgekd.budget import parse_budget, refuse_others
    from edgekd.distill.student import TrainingOptions
    from edgekd.interface import named_files
    from edgekd.planning import Request
    from edgekd.pruning import Fits, prune_network, refuse_other_network
    from edgekd.run import open_run
    from edgekd.tasks.known import deciding, task_of

    card, weights = _card(source, options)
    limits = refuse_others(parse_budget(options.budget, deciding()), task_of(card.data).scores[0], "--budget")
    files = named_files(card, weights, options.data)
    folder = options.out or Path("runs", f"{card.name}-pruned@{target.name}")
    asked = Request(card=card, data=options.data, teacher=weights, budget=limits, options=TrainingOptions())
    with (
        contextlib.closing(connect(target, options.device)) as site,
        open_run(folder, card, target, card.budget(target.name, limits), files, options.fresh) as run,
    ):
        if run.result.exists() and run.model.exists():
            from edgekd.result import read_result

            refuse_other_network(card, run, options.data)
            say(f"{folder}: already done; --fresh starts again")
            found: Result | Fits = read_result(run.result)
        else:
            found = prune_network(asked, site, run)
    if isinstance(found, Fits):
        for line in _unpruned(source, found):
            out(line)
        return found.verdict.exit_code
    _show(found, run, time.perf_counter() - begin)
    return found.verdict.exit_code


def _unpruned(source: str, found: "Fits") -> list[str]:
    """Say why nothing was removed, and what is not proven by that."""
    outcome = found.verdict.outcome
    if outcome == "pass":
        words = f"meets the limits as it is ({found.words}); nothing is removed. edgekd export writes its file"
    elif outcome == "fail":
        words = "its fp32 file misses a limit, and another precision does not: nothing is removed; use edgekd quantize"
    else:
        words = (
            "misses no limit as far as is known before training; nothing is removed, and the verdict is inconclusive"
        )
    return [f"{source}: {words}", *(f"  {reason}" for reason in found.verdict.reasons)]


def _card(source: str, options: PruneOptions) -> "tuple[Card, Path | None]":
    """The card whose teacher is the network, with the settings of the pruning, and the file of the weights."""
    from edgekd.draft.network import is_function

    asked = options.network
    file = asked.weights if is_function(source) else Path(source)
    if file is not None and file.suffix == ".onnx":
        raise InputError(
            f"{file}: is an ONNX file; pruning needs the torch network, for no well-kept library turns such files into "
            "torch: give module:function with --weights, or a checkpoint; edgekd quantize takes the ONNX file as it is"
        )
    if asked.card:
        from edgekd.cli.exporting import card_of

        card, _ = card_of(source, asked)
    else:
        card = _drafted(source, options)
    return _with_settings(card, options), file


def _with_settings(card: "Card", options: PruneOptions) -> "Card":
    """The card with `[recipe.prune]`, where the options replace what the card says."""
    from edgekd.recipe import Importance, Prune

    names = get_args(Importance)
    if options.importance and options.importance not in names:
        hint = did_you_mean(options.importance, names)
        raise ConfigError(f"--importance {options.importance}: is unknown; {hint}")
    known = card.recipe.prune or Prune(epochs=EPOCHS, batch_size=card.recipe.batch_size)
    given = {key: getattr(options, key) for key in ("epochs", "rounds", "importance")}
    settings: Prune = dataclasses.replace(known, **{key: value for key, value in given.items() if value})
    return dataclasses.replace(card, recipe=dataclasses.replace(card.recipe, prune=settings))


def _drafted(source: str, options: PruneOptions) -> "Card":
    """A card for a network without one: the classes are the folders of the data, in their order."""
    from edgekd.augmentation import Augment
    from edgekd.card import Data
    from edgekd.draft.card import look_at_data
    from edgekd.draft.network import find_network, image_card

    asked = options.network
    if options.data is None:
        raise ConfigError("--data DIR: is missing; pruning trains the network again after each round")
    wanted = wanted_network(source, asked)
    data = look_at_data(options.data)
    if data.task != "image-classification":
        raise ConfigError(f"--data {options.data}: is for {data.task}; write a card for it, and give it with --card")
    classes = wanted.classes or data.classes
    if sorted(classes) != sorted(data.classes):
        raise ConfigError(f"--classes: should be the {len(data.classes)} classes of {options.data} in another order")
    found = find_network(dataclasses.replace(wanted, classes=classes))
    size = found.size
    if len(size) != 3 or size[0] not in (1, 3) or size[1] != size[2]:
        raise ConfigError(f"{source}: give the shape of one square image with --input, such as --input 3,32,32")
    mean, std = (numbers(f"--{name}", getattr(asked, name)) for name in ("mean", "std"))
    for name, given in (("mean", mean), ("std", std)):
        if given and len(given) != size[0]:
            raise ConfigError(f"--{name}: got {len(given)} numbers; the network takes {size[0]} channels")
    if std and min(std) <= 0:
        raise ConfigError("--std: should be numbers above 0")
    card = image_card(Path(source), size, classes, mean, std, found.teacher)
    values = dataclasses.asdict(card.data) | dict(data.keys)
    batch = max([one for one in (8, 16, 32, 64, 128) if one * 8 <= data.examples], default=4)
    recipe = dataclasses.replace(card.recipe, batch_size=batch, views=4)
    augment = Augment(crop_padding=max(1, size[1] // 8), flip=size[1] >= 32 and not data.grey)
    name = source.partition(":")[2] or Path(source).stem
    return dataclasses.replace(card, data=Data(**values), recipe=recipe, augment=augment, name=name)


def _show(result: Result, run: "Run", seconds: float) -> None:
    for item in result_items(result):
        out(item)
    out(f"{run.model}, {run.folder / 'report.md'} ({units.duration(seconds)})")
    out(f"{run.exported / 'pruned.pt2'}: the dense network for torch.export.load; {run.pruned_weights}: its weights")
    out(headline(result))
