"""Make the tables of a first card from what was found, and write them as TOML with comments."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgekd.draft.facts import DataFacts, Proposal, Scale, TeacherFacts
from edgekd.target import Target

__all__ = ["for_channels", "image_size", "student_for", "tables_for", "toml_text"]

SIZES = (32, 48, 64, 96, 128, 160, 224)
"""Sizes in pixels from which one is chosen if neither data nor teacher decide it."""
LARGEST_OWN = 128
"""Largest size in pixels of a network that is trained from nothing; larger ones take hours on a CPU."""
STEPS = 1_500
"""About this many steps of the optimiser are proposed for a training."""

_LENGTHS = {
    "segmentation": (16, 600),
    "detection": (4, 2_300),
    "keyword-spotting": (64, 1_500),
    "translation": (64, 5_000),
}
"""The largest batch size, and about how many steps of the optimiser are proposed for a training of these tasks."""

Tables = dict[str, dict[str, Any]]

_GPU = ("CUDAExecutionProvider", "TensorrtExecutionProvider")

_COMMENTS = {
    "data.path": "relative to this card; --data DIR takes another folder",
    "data.size": "pixels, height and width of the network's input",
    "data.height": "pixels of the network's input; images are scaled to fit inside",
    "data.channels": "3 is RGB, 1 is grey",
    "data.classes": "in the order of the network's outputs",
    "data.mean": "per channel, pixels scaled to 0–1",
    "data.max_length": "tokens; what is longer is cut off",
    "data.vocabulary": "tokens that the network knows, the special ones included",
    "data.values": "what stands for each class in the masks",
    "data.ignored": "what is neither learnt nor judged",
    "data.rate": "samples per second",
    "data.seconds": "length of a clip; zeros are added to shorter ones",
    "data.beam": "hypotheses of the beam search; 1 is greedy search",
    "data.test": "name of its files without the language",
    "augment.crop_padding": "shifts the image by up to so many pixels",
    "augment.flip": "mirrors left and right; false where that changes the class",
    "augment.crop": "learns from squares of so many pixels",
    "augment.turn": "turns images by quarters, with their masks or boxes",
    "augment.noise": "share of the clips to which noise is added",
    "augment.time_mask": "frames that a mask hides, at most",
    "augment.frequency_mask": "bins that a mask hides, at most",
    "augment.word_dropout": "share of the words that each view leaves out",
    "teacher.training.epochs": "passes over the training examples",
    "student.knobs": "every combination is a candidate, measured before anything is trained",
    "recipe.temperature": "softens the teacher's answers",
    "recipe.losses": "weights of the terms; kd is learnt from the teacher, ce from the data",
    "recipe.alpha": "weight of the teacher's answers; the labels have the rest",
    "recipe.views": "augmented versions of each example for which the teacher's answers are kept",
    "budget.size_kb": "the model's file, kB of 1,000 B",
    "budget.max_accuracy_drop": "points below the teacher",
    "budget.max_miou_drop": "points below the teacher",
    "budget.max_map50_drop": "points below the teacher",
    "budget.max_bleu_drop": "BLEU below the teacher",
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
    elif data.proposal is not None:
        return _proposed(tables, data, teacher, data.proposal)
    else:
        tables["data"] |= {"classes": list(data.classes), **teacher.data}
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
    return tables, [*guesses, _recipe(tables, data)]


def _proposed(tables: Tables, data: DataFacts, teacher: TeacherFacts, proposal: Proposal) -> tuple[Tables, list[str]]:
    """The tables of a card for which the data propose all but the length of the training."""
    found = tables["data"] | ({"classes": list(data.classes)} if data.classes else {}) | dict(teacher.data)
    if "channels" in found:
        found |= {key: for_channels(found[key], found["channels"]) for key in ("mean", "std")}
    tables["data"] = found
    hidden = {"crop"} if "size" in teacher.data else set()  # a teacher of one size takes no smaller squares
    hidden |= set() if teacher.masks else {"time_mask", "frequency_mask"}
    tables["augment"] = {key: value for key, value in proposal.augment.items() if key not in hidden}
    tables["teacher"] = dict(teacher.keys)
    if not teacher.trained:
        tables["teacher.training"] = _length(data) | dict(proposal.training)
    tables["student"] = {"family": proposal.student}
    tables["student.knobs"] = dict(proposal.knobs)
    guesses = list(proposal.guesses)
    if data.task == "detection" and teacher.trained:
        own = _grids(teacher, found)
        tables["student.knobs"] |= own
        if "strides" in own:
            why = f"strides: {own['strides'][0]}, as the teacher has, because the student learns from it place by place"
            guesses = [why if one.startswith("strides:") else one for one in guesses]
    tables["recipe"] = _length(data) | dict(proposal.recipe)
    return {name: table for name, table in tables.items() if table}, [*guesses, _recipe(tables, data)]


def _grids(teacher: TeacherFacts, keys: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The knobs of a student with the grids of its teacher, for images of the card's height and width."""
    strides = teacher.strides or teacher.keys.get("shape", {}).get("strides", ())
    deepest = max((one for one in (4, 8, 16, 32) if not keys["height"] % one and not keys["width"] % one), default=32)
    return ({"strides": [list(strides)]} if strides else {}) | ({"deepest": [deepest]} if deepest < 32 else {})


def for_channels(values: Sequence[float], channels: int) -> list[float]:
    """Means or deviations of other images, for images of so many channels."""
    return list(values) if len(values) == channels else [round(sum(values) / len(values), 4)] * channels


def _recipe(tables: Tables, data: DataFacts) -> str:
    epochs, batch = tables["recipe"]["epochs"], tables["recipe"]["batch_size"]
    return f"recipe: {epochs} epochs in batches of {batch} for {data.examples:,} training examples"


def _length(data: DataFacts) -> dict[str, Any]:
    """Epochs and batch size for that number of examples."""
    most, steps = _LENGTHS.get(data.task, (128, STEPS))
    batch = max([size for size in (8, 16, 32, 64, 128) if size * 8 <= data.examples and size <= most], default=4)
    return {"epochs": min(60, max(6, round(steps * batch / max(1, data.examples)))), "batch_size": batch}


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
