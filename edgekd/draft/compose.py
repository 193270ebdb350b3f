"""Make the tables of a first card from what was found, and write them as TOML with comments."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgekd.draft.facts import DataFacts, Scale, TeacherFacts
from edgekd.target import Target

__all__ = ["image_size", "student_for", "tables_for", "toml_text"]

SIZES = (32, 48, 64, 96, 128, 160, 224)
"""Sizes in pixels from which one is chosen if neither data nor teacher decide it."""
LARGEST_OWN = 128
"""Largest size in pixels of a network that is trained from nothing; larger ones take hours on a CPU."""
STEPS = 1_500
"""About this many steps of the optimiser are proposed for a training."""

Tables = dict[str, dict[str, Any]]

_GPU = ("CUDAExecutionProvider", "TensorrtExecutionProvider")

_COMMENTS = {
    "data.path": "relative to this card; --data DIR takes another folder",
    "data.size": "pixels, height and width of the network's input",
    "data.channels": "3 is RGB, 1 is grey",
    "data.classes": "in the order of the network's outputs",
    "data.mean": "per channel, pixels scaled to 0–1",
    "data.max_length": "tokens; what is longer is cut off",
    "data.vocabulary": "words and signs that the network knows, with padding and [UNK]",
    "augment.crop_padding": "shifts the image by up to so many pixels",
    "augment.flip": "mirrors left and right; false where that changes the class",
    "augment.word_dropout": "share of the words that each view leaves out",
    "teacher.training.epochs": "passes over the training examples",
    "student.knobs": "every combination is a candidate, measured before anything is trained",
    "recipe.temperature": "softens the teacher's answers",
    "recipe.alpha": "weight of the teacher's answers; the labels have the rest",
    "recipe.views": "augmented versions of each example for which the teacher's answers are kept",
    "budget.size_kb": "the model's file, kB of 1,000 B",
    "budget.max_accuracy_drop": "points below the teacher",
}


def image_size(data: DataFacts, teacher: TeacherFacts) -> tuple[int, str]:
    """Height and width in pixels for a card, and the sentence that says why."""
    if teacher.size:
        return teacher.size, f"size: {teacher.size} pixels, which the teacher takes"
    limit = data.side if teacher.trained or data.side <= SIZES[0] else min(data.side, LARGEST_OWN)
    size = data.side if data.side <= SIZES[0] else max(one for one in SIZES if one <= limit)
    middle = f"the median of the shorter sides is {data.side}"
    return size, f"size: {size} pixels, because {middle}" + (
        ", and larger networks take long to train" if limit < data.side else ""
    )


def student_for(size: int, channels: int, target: Target) -> tuple[str, dict[str, list[Any]], str]:
    """Family and knobs of an image student for the target, and the sentence that says why."""
    provider = target.provider.name
    if size <= 16:
        knobs: dict[str, list[Any]] = {"channels": [[8, 16], [16, 32], [24, 48], [32, 64]], "hidden": [32]}
        return "convnet", knobs, f"student: convnet, a small plain network for images of {size} pixels"
    if size <= 64 or channels == 1:
        why = f"dense 3×3 convolutions for images of {size} pixels, which int8 suits"
        return "cifar-resnet", {"depth": [8, 14, 20], "width": [8, 16]}, f"student: cifar-resnet, {why}"
    if provider in _GPU:
        why = "depthwise convolutions gain little on a GPU, so one network with dense ones is among them"
        return "torchvision", {"model": ["resnet18", "mobilenet_v3_small"]}, f"student: torchvision's networks; {why}"
    why = f"few operations at {size} pixels, for {provider.removesuffix('ExecutionProvider')}"
    return "mobilenet-v2", {"width": [0.25, 0.35, 0.5, 0.75]}, f"student: mobilenet-v2, {why}"


def tables_for(
    title: str, path: str, data: DataFacts, teacher: TeacherFacts, target: Target, scale: Scale | None
) -> tuple[Tables, list[str]]:
    """The tables of a card without its budget, and what was guessed for them. `scale` is for images."""
    guesses: list[str] = []
    tables: Tables = {"": {"title": title, "task": data.task}}
    tables["data"] = {"source": data.keys["source"], "path": path, **_without(data.keys, "source")}
    if data.task == "image-classification":
        assert scale is not None  # the caller measured it
        size, why = image_size(data, teacher)
        guesses.append(why)
        tables["data"] |= {"size": size, "channels": len(scale.mean), "classes": list(data.classes)}
        tables["data"] |= {"mean": list(scale.mean), "std": list(scale.std)}
        shift = max(1, size // 8)
        photographs = size >= 32 and not data.grey
        tables["augment"] = {"crop_padding": shift, "flip": photographs}
        guesses.append(
            f"augment: shifts by up to {shift} pixel{'s' if shift > 1 else ''}"
            + (" and mirrors, which photographs allow" if photographs else ", no mirror, which can change a class")
        )
        family, knobs, why = student_for(size, len(scale.mean), target)
    else:
        tables["data"]["classes"] = list(data.classes)
        if teacher.vocabulary:
            tables["data"]["vocabulary"] = teacher.vocabulary
        tables["augment"] = {"word_dropout": 0.2}
        family, knobs = "bag-of-words", {"embedding": [8, 16, 32], "hidden": [16]}
        why = "student: bag-of-words, the fastest family for sentences; text-cnn is more accurate and slower"
    guesses.append(why)
    tables["teacher"] = dict(teacher.keys)
    training = _training(data, family if teacher.trained else teacher.keys["family"])
    if not teacher.trained:
        tables["teacher.training"] = training
    tables["student"] = {"family": family}
    tables["student.knobs"] = knobs
    tables["recipe"] = _training(data, family) | {"temperature": 4.0, "alpha": 0.9, "views": 4}
    epochs, batch = tables["recipe"]["epochs"], tables["recipe"]["batch_size"]
    guesses.append(f"recipe: {epochs} epochs in batches of {batch} for {data.examples:,} training examples")
    return tables, guesses


def _without(keys: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if key != name}


def _training(data: DataFacts, family: str) -> dict[str, Any]:
    """Epochs, batch size and optimiser for that number of examples."""
    batch = max([size for size in (8, 16, 32, 64, 128) if size * 8 <= data.examples], default=4)
    epochs = min(60, max(10, round(STEPS * batch / max(1, data.examples))))
    found: dict[str, Any] = {"epochs": epochs, "batch_size": batch}
    if family in ("convnet", "mlp", "cifar-resnet"):
        return found | {"learning_rate": 0.05 if batch >= 64 else 0.02}
    return found | {"optimizer": "adamw", "learning_rate": 0.002, "weight_decay": 0.01}


def toml_text(head: Sequence[str], tables: Tables, comments: Mapping[str, str]) -> str:
    """The tables as TOML. `head` are comment lines before them; `comments` are added to those that every card has, by
    `table.key` or by `table`."""
    told = _COMMENTS | dict(comments)
    lines = [f"# {line}".rstrip() for line in head]
    for name, table in tables.items():
        lines.append("")
        if name:
            lines.append(_with(f"[{name}]", told.get(name, "")))
        width = max((len(f"{key} = {_value(value)}") for key, value in table.items() if _short(value)), default=0)
        for key, value in table.items():
            text = f"{key} = {_value(value)}"
            note = told.get(f"{name}.{key}", "")
            if note and len(text) > 60:
                lines.append(f"# {key}: {note}")
                note = ""
            lines.append(_with(text.ljust(min(width, 44)) if note else text, note))
    return "\n".join(lines) + "\n"


def _short(value: Any) -> bool:
    return len(_value(value)) <= 40


def _with(text: str, note: str) -> str:
    return f"{text}  # {note}" if note else text


def _value(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
