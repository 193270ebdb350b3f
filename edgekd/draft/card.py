"""Write a first card for a data folder, a teacher and a target."""

import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.card import Card, check_card
from edgekd.data.sources import require_test
from edgekd.data.text import load_text_training, require_test_text, settled
from edgekd.devices.device import Site
from edgekd.draft.compose import Tables, image_size, tables_for, toml_text
from edgekd.draft.facts import DataFacts, Scale, TeacherFacts
from edgekd.draft.fit import best_fit
from edgekd.draft.images import look_at_folder, look_at_parquet, measured_scale, pixels_of
from edgekd.draft.limits import limits_from
from edgekd.draft.sentences import look_at_sentences
from edgekd.draft.teachers import look_at_teacher, own_teacher
from edgekd.errors import InputError, shown
from edgekd.scratch import scratch
from edgekd.tasks.known import build_card
from edgekd.tasks.text_classification import trimmed

__all__ = ["Draft", "draft_card"]

SOME = 1_000
"""Number of files that tell whether a folder holds sound; a folder of images can have millions."""


@dataclass(frozen=True)
class Draft:
    """A first card."""

    text: str
    """The card's TOML."""
    guesses: tuple[str, ...]
    """What was guessed, and why: one sentence each."""


def draft_card(folder: Path, teacher: str, site: Site, timed: bool, out: Path, told: Callable[[str], None]) -> Draft:
    """A card for the data in `folder`, to be written to `out`, for the target of `site`.

    `teacher` is as for `look_at_teacher`, or empty for one to train; `timed` says whether the target's latency can be
    measured here. `told` is called with each step that takes time.
    Raises EdgekdError for data or a teacher that no card can use.
    """
    told(f"looking at {folder}")
    data = look_at_data(folder)
    seen = look_at_teacher(teacher, data, out.parent) if teacher else own_teacher(data)
    path = os.path.relpath(folder, out.parent)

    def card_of(tables: Tables) -> Card:
        nested = {"budgets": {"": {}}, "name": out.stem, "file": str(out)}
        return check_card(build_card(_nested(tables) | nested, str(out)))

    told("looking at the teacher")
    if data.task == "image-classification":
        data, scale, inputs, said = _fitted(
            data, seen, lambda own, one: card_of(tables_for(out.stem, path, own, seen, site.target, one)[0])
        )
    else:
        scale, inputs, said = None, None, []
    tables, more = tables_for(out.stem, path, data, seen, site.target, scale)
    card = card_of(tables)
    if inputs is None:
        require_test_text(card, None)
        train, validation = load_text_training(card, None)
        card = settled(card, validation)
        ids: Any = train.read(np.arange(min(64, len(train))))  # token ids; see load_text
        inputs = trimmed(ids)[:, : card.data.timed_length]
    else:
        require_test(card, None)
    told(f"measuring the teacher and the smallest student for {site.target.name}, about 20 seconds")
    with scratch() as temporary:
        limits = limits_from(card, site, timed, inputs, data, temporary)
    tables["budget"] = limits.always
    if limits.here:
        tables[f"budget.{site.target.name}"] = limits.here
    card_of(tables)  # every key is one that a card may have
    guesses = (*data.guesses, *seen.guesses, *said, *more, *limits.guesses)
    head = [
        f"Drafted by edgekd init for {site.target.name}. What it guessed, and why:",
        *(f"  {one}" for one in guesses),
    ]
    return Draft(toml_text(head, tables, {"budget": "asked on every target"}), guesses)


def look_at_data(folder: Path) -> DataFacts:
    """Facts of a data folder of any kind that edgekd reads. Raises InputError for another kind."""
    if not folder.is_dir():
        raise InputError(f"--data {folder}: no such folder")
    if any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet")):
        return look_at_parquet(folder)
    if (folder / "train.tsv").is_file():
        return look_at_sentences(folder)
    _refuse_others(folder)
    if any(path.is_dir() for path in folder.iterdir()):
        return look_at_folder(folder)
    if array := next((path for path in sorted(folder.iterdir()) if path.suffix in (".npz", ".npy")), None):
        raise InputError(
            f"--data {folder}: holds arrays ({shown(array.name)}), for which edgekd init makes no card; a function of "
            'yours gives them to a card with [data] source = "import" (docs/your-own.md)'
        )
    some = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    raise InputError(
        f"--data {folder}: holds {some}; edgekd init knows folders of images by class, parquet files (train*, test*) "
        "and sentences (train.tsv, test.tsv)"
    )


def _refuse_others(folder: Path) -> None:
    """Raise InputError for data of which edgekd knows the task, or what it lacks, but for which init makes no card."""
    copy = "for which edgekd init makes no card; copy the one that `edgekd models {}` names"
    first = [path for path in itertools.islice(folder.rglob("*"), SOME) if path.is_file()]
    if sound := next((path for path in first if path.suffix.lower() in (".wav", ".flac")), None):
        raise InputError(f"--data {folder}: holds clips of sound ({sound.name}), {copy.format('speech-commands')}")
    if (folder / "Annotations").is_dir() or any(path.name.startswith("instances_") for path in first):
        raise InputError(f"--data {folder}: holds images with boxes, and edgekd has no task for detection")
    texts = [path.name.removesuffix(".gz") for path in first if path.parent == folder]
    sides = Counter(name.rpartition(".")[0] for name in texts if len(name.rpartition(".")[2]) == 2)
    if sides["train"] == 2:
        raise InputError(f"--data {folder}: holds pairs of texts, {copy.format('multi30k')}")


def _fitted(
    data: DataFacts, seen: TeacherFacts, card_with: Callable[[DataFacts, Scale], Card]
) -> tuple[DataFacts, Scale, np.ndarray[Any, Any], list[str]]:
    """The data with the teacher's order of classes, the normalisation, the sampled images as the network takes them,
    and what was guessed."""
    channels = seen.channels or (1 if data.grey else 3)
    images = pixels_of(data, image_size(data, seen)[0], channels)
    measured = measured_scale(images)
    said = [
        f"channels: {channels}, "
        + (
            "which the teacher takes"
            if seen.channels
            else "for the images are grey"
            if channels == 1
            else "for the images have colours"
        )
    ]
    if seen.trained:
        fit = best_fit(data, images, measured, seen.labels, lambda scale: card_with(data, scale))
        labels = tuple(fit.classes.index(data.classes[label]) for label in data.labels)
        data = dataclasses.replace(data, classes=fit.classes, labels=labels)
        return data, fit.scale, images, [*said, fit.guess]
    if seen.scale and "weights" in seen.keys:
        return data, seen.scale, images, [*said, f"mean, std: {seen.scale.words}, which the weights were trained with"]
    return data, measured, images, [*said, f"mean, std: {measured.words}"]


def _nested(tables: Tables) -> dict[str, Any]:
    """The tables as nested dictionaries, made from their dotted names, without the budget."""
    found: dict[str, Any] = dict(tables[""])
    for name, table in tables.items():
        place, *rest = name.split(".", 1)
        if name and place != "budget":
            (found.setdefault(place, {}) if rest else found)[rest[0] if rest else place] = dict(table)
    return found
