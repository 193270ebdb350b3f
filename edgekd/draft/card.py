"""Write a first card for a data folder, a teacher and a target."""

import dataclasses
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.card import Card
from edgekd.card_checks import check_card
from edgekd.data.examples import Examples
from edgekd.data.images import Split
from edgekd.data.sources import require_test
from edgekd.devices.device import Site
from edgekd.distill.tasks.known import learning_of
from edgekd.draft.boxes import boxes_in, look_at_boxes
from edgekd.draft.clips import SOUND, look_at_clips
from edgekd.draft.compose import Tables, for_channels, image_size, tables_for, toml_text
from edgekd.draft.facts import DataFacts, Option, Scale, TeacherFacts
from edgekd.draft.fit import best_fit, best_reading, scales
from edgekd.draft.images import look_at_folder, look_at_parquet, measured_scale, pixels_of
from edgekd.draft.limits import limits_from
from edgekd.draft.masks import look_at_masks, masks_in
from edgekd.draft.pairs import languages_in, look_at_pairs
from edgekd.draft.sentences import look_at_sentences
from edgekd.draft.teachers import look_at_teacher, own_teacher
from edgekd.errors import InputError, shown
from edgekd.export.onnx import refuse_free_shapes
from edgekd.scratch import scratch
from edgekd.tasks.known import build_card, task_of
from edgekd.tasks.text_classification import trimmed

__all__ = ["Draft", "draft_card"]

SOME = 1_000
"""Number of files that tell whether a folder holds sound; a folder of images can have millions."""
SHOWN = 64
"""Number of examples that the teacher answers, and of those that are given to the bench."""


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
    inputs = None
    scale, said = None, list[str]()
    if data.task == "image-classification":
        data, scale, inputs, said = _fitted(
            data, seen, lambda own, one: card_of(tables_for(out.stem, path, own, seen, site.target, one)[0])
        )
    elif data.proposal is not None and seen.trained:
        seen, said = _read(data, seen, lambda one: card_of(tables_for(out.stem, path, data, one, site.target, None)[0]))
    tables, more = tables_for(out.stem, path, data, seen, site.target, scale)
    card = card_of(tables)
    refuse_free_shapes(card, site.target)
    if inputs is None:
        card, inputs = _some_inputs(card)
    else:
        require_test(card, None)
    told(f"measuring the teacher and the smallest student for {site.target.name}, about 20 seconds")
    with scratch() as temporary:
        limits = limits_from(card, site, timed, inputs, data, temporary)
    tables["budget"] = limits.always
    if limits.here:
        tables[f"budget.{site.target.name}"] = limits.here
    card_of(tables)  # every key is one that a card may have
    own = [one for one in data.guesses if not {*one.partition(":")[0].split(", ")} <= seen.data.keys()]
    guesses = (*own, *seen.guesses, *said, *more, *limits.guesses)
    head = [
        f"Drafted by edgekd init for {site.target.name}. What it guessed, and why:",
        *(f"  {one}" for one in guesses),
    ]
    comments = {"budget": "asked on every target"}
    comments |= {"data.mean": "of the features"} if data.task == "keyword-spotting" else {}
    return Draft(toml_text(head, tables, comments), guesses)


def _some_inputs(card: Card) -> tuple[Card, np.ndarray[Any, Any]]:
    """The card, settled by its validation data, and some training examples as the exported files take them."""
    how, generates = learning_of(card.data), task_of(card.data).generates
    how.require_test(card, None)
    train, validation = how.load(card, None)
    card = how.settle(card, validation)
    inputs: Any = train.read(np.arange(min(SHOWN, len(train))))
    if not generates and task_of(card.data).calibration == "static":
        return card, inputs
    return card, trimmed(inputs)[:, : card.data.timed_length]  # token ids


def _read(
    data: DataFacts, seen: TeacherFacts, card_with: Callable[[TeacherFacts], Card]
) -> tuple[TeacherFacts, list[str]]:
    """The teacher's facts with what its file does not show, as its answers tell it, and what was guessed."""

    def changed(option: Option) -> TeacherFacts:
        shape = dict(seen.keys.get("shape", {})) | dict(option.shape)
        keys = dict(seen.keys) | ({"shape": shape} if shape else {})
        return dataclasses.replace(seen, keys=keys, data=dict(seen.data) | dict(option.data))

    loaded: dict[Any, Split] = {}

    def examples_of(card: Card) -> Examples:
        how, order = learning_of(card.data), getattr(card.data, "classes", ())
        if order not in loaded:
            _, held = how.load(card, None)
            some = np.linspace(0, len(held) - 1, min(SHOWN, len(held))).astype(np.int64)
            loaded[order] = held.subset(some)
        return how.examples(card, loaded[order])

    best, sentence = best_reading(_options(data, seen), examples_of, lambda option: card_with(changed(option)))
    return changed(best), [sentence]


def _options(data: DataFacts, seen: TeacherFacts) -> list[Option]:
    """The readings of a teacher's file that are tried."""
    found = list(seen.options) or [Option(words="")]
    if data.task in ("segmentation", "detection"):
        channels = seen.channels or data.keys["channels"]
        own = {key: tuple(for_channels(data.keys[key], channels)) for key in ("mean", "std")}
        tried = scales(Scale(words="mean and std of the training images", mean=own["mean"], std=own["std"]))
        further = [Option(words=one.words, data={"mean": list(one.mean), "std": list(one.std)}) for one in tried]
    elif data.task == "keyword-spotting":
        known = sorted(seen.labels) == sorted(data.classes)
        orders = [seen.labels] if known else list(dict.fromkeys([data.classes, tuple(sorted(data.classes))]))
        words = ["" if len(orders) == 1 else "keywords by number", "keywords by name"]
        further = [Option(words=one, data={"classes": list(order)}) for one, order in zip(words, orders, strict=False)]
    else:
        return found
    return [
        Option(words=", ".join(filter(None, (a.words, b.words))), data=b.data, shape=a.shape)
        for a, b in itertools.product(found, further)
    ]


def look_at_data(folder: Path) -> DataFacts:
    """Facts of a data folder of any kind that edgekd reads. Raises InputError for another kind."""
    if not folder.is_dir():
        raise InputError(f"--data {folder}: no such folder")
    if any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet")):
        return look_at_parquet(folder)
    if (folder / "train.tsv").is_file():
        return look_at_sentences(folder)
    if boxes_in(folder):
        return look_at_boxes(folder)
    if masks_in(folder) is not None:
        return look_at_masks(folder)
    if len(languages_in(folder).get("train", ())) > 1:
        return look_at_pairs(folder)
    first = [path for path in itertools.islice(folder.rglob("*"), SOME) if path.is_file()]
    if any(path.suffix.lower() in SOUND for path in first):
        return look_at_clips(folder)
    if any(path.is_dir() for path in folder.iterdir()):
        return look_at_folder(folder)
    if array := next((path for path in sorted(folder.iterdir()) if path.suffix in (".npz", ".npy")), None):
        raise InputError(
            f"--data {folder}: holds arrays ({shown(array.name)}), for which edgekd init makes no card; a function of "
            'yours gives them to a card with [data] source = "import" (docs/your-own.md)'
        )
    some = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    raise InputError(
        f"--data {folder}: holds {some}; edgekd init knows folders of images by class, images with masks (images/, "
        "masks/) or boxes (Pascal VOC, COCO), parquet files (train*, test*), clips of sound by keyword, sentences "
        "(train.tsv, test.tsv) and pairs of texts (train.en, train.de)"
    )


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
