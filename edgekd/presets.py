"""Presets of trainings: named sets of settings, as plain data, which the card's own settings override one by one."""

from collections.abc import Iterator, Mapping
from typing import Any

from edgekd.recipe import TEMPERED, Preset

__all__ = ["PRESETS", "with_presets"]

PRESETS: dict[Preset, dict[str, dict[str, Any]]] = {
    # Few epochs: the settings of the CIFAR-10 speedrun airbench94 (Jordan 2024, arXiv 2404.00498) that do not depend on
    # its network, and smaller images in the first epochs (progressive resizing).
    "fast": {
        "training": {
            "epochs": 15,
            "batch_size": 256,
            "learning_rate": 0.3,
            "momentum": 0.85,
            "weight_decay": 1.2e-3,
            "schedule": "linear",
            "ema": 0.995,
            "precision": "auto",
        },
        "teacher": {"label_smoothing": 0.2},
        "images": {"small_share": 0.6},
    },
    # "Function matching" (Beyer et al. 2022, arXiv 2106.05237): the teacher labels each mixed view, the student sees no
    # other labels, and the training is long.
    "long": {
        "training": {
            "epochs": 300,
            "learning_rate": 0.1,
            "weight_decay": 1e-4,
            "schedule": "cosine",
            "precision": "auto",
        },
        "student": {"alpha": 1.0, "temperature": 2.0, "views": 30},
        "augment": {"mixup": 1.0},
    },
}
"""For each preset the settings of all trainings, and further ones: of a `teacher`'s training, which learns from the
labels, of a `student`'s, of both for `images`, and of `[augment]` for images, if the student's recipe has the preset
and the card names no way of mixing."""

RATE_BATCH = {"fast": 256, "long": 128}
"""The batch size that the learning rate of each preset is for. It is scaled to the batch size of the training."""

WARMUP = {"fast": 0.2, "long": 0.02}
"""The `warmup_epochs` of each preset, as a share of the epochs."""


def with_presets(tables: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of a card in which each training that names a `preset` is completed with the settings of the preset.

    Values that cannot be a card's, such as an unknown preset, are left to the checks of the card.
    """
    card, images = dict(tables), "size" in _table(tables, "data")
    preset = _table(card, "recipe").get("preset")
    if preset in PRESETS:
        card["recipe"] = _completed(card["recipe"], "student", images)
        augment = _table(card, "augment")
        if images and not augment.keys() & {"mixup", "cutmix"}:
            card["augment"] = {**PRESETS[preset].get("augment", {}), **augment}
    if _table(_table(card, "teacher"), "training").get("preset") in PRESETS:
        card["teacher"] = card["teacher"] | {"training": _completed(card["teacher"]["training"], "teacher", images)}
    if isinstance(given := card.get("assistants"), list | tuple):
        card["assistants"] = [_assistant(one, images) for one in given]
    return card


def _assistant(given: Any, images: bool) -> Any:
    """The table of an assistant, whose training is a distillation; other values are returned unchanged."""
    if not isinstance(given, Mapping) or _table(given, "training").get("preset") not in PRESETS:
        return given
    return {**given, "training": _completed(given["training"], "", images)}


def _completed(given: Mapping[str, Any], role: str, images: bool) -> dict[str, Any]:
    """The settings `given`, and those of the preset that are not given and have an effect beside them."""
    preset = PRESETS[given["preset"]]
    kinds = ["training", role, *(["images"] if images else [])]
    idle = set(_idle(given))
    named = {key: value for kind in kinds for key, value in preset.get(kind, {}).items() if key not in idle}
    settings = named | dict(given)
    if "learning_rate" not in given and _is_number(batch := settings.get("batch_size", 128)):
        settings["learning_rate"] *= batch / RATE_BATCH[given["preset"]]
    if settings.get("schedule") != "one-cycle" and "warmup_epochs" not in given and _is_number(settings["epochs"]):
        stages = [stage["epochs"] for stage in _stages(given) if _is_number(stage.get("epochs"))]
        settings["warmup_epochs"] = min([WARMUP[given["preset"]] * settings["epochs"], *stages])
    return settings


def _idle(given: Mapping[str, Any]) -> Iterator[str]:
    """The settings of presets that have no effect beside those `given`; the card would refuse them."""
    if given.get("optimizer") == "adamw":
        yield "momentum"
    weighted = [_table(given, "losses"), *(_table(stage, "losses") for stage in _stages(given))]
    if any(weighted) or _stages(given):
        yield "alpha"
        if not TEMPERED & {term for losses in weighted for term in losses}:
            yield "temperature"
    elif given.get("alpha") == 0:
        yield "temperature"


def _stages(given: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    stages = given.get("stages")
    return [stage for stage in stages if isinstance(stage, Mapping)] if isinstance(stages, list | tuple) else []


def _table(tables: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = tables.get(key)
    return found if isinstance(found, Mapping) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
