"""Getting a teacher: from a file, or trained; and its logits, computed once per view."""

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd import units
from edgekd.card import Card, Training
from edgekd.console import progress, say
from edgekd.data.arrays import write_array
from edgekd.data.images import Split
from edgekd.data.views import view
from edgekd.distill.loop import Job, accuracy, autocast, device, train
from edgekd.distill.losses import cross_entropy
from edgekd.errors import BudgetError, InputError
from edgekd.nets.deployed import count_macs
from edgekd.nets.teachers import Teacher, load_teacher_file, make_teacher_net
from edgekd.nets.weights import save_state
from edgekd.run import write_json

__all__ = [
    "check_teacher",
    "given_teacher",
    "refuse_long_teaching",
    "teach",
    "teacher_logits",
    "validation_accuracy",
]

SMALL_TRAINING_MACS = 2e14
"""What `distill` trains a teacher for by itself: about half an hour on two cores (forward and backward
count as three forward passes)."""


def given_teacher(card: Card, file: Path | None) -> Teacher | None:
    """The teacher in `file` (`--teacher`) or in the card's weights file; None if neither is named."""
    path = file or (card.resolve(card.teacher.weights) if card.teacher.weights else None)
    if path is None and card.teacher.family == "onnx":
        raise InputError(f"{card.file}: teacher.weights: is missing; name the ONNX file there or with --teacher FILE")
    return load_teacher_file(card, path) if path else None


def _training(card: Card) -> Training:
    if card.teacher.training is None:
        raise InputError(
            f"{card.file}: the card has neither weights nor [teacher.training]; give the weights with --teacher FILE"
        )
    return card.teacher.training


def refuse_long_teaching(card: Card, images: int) -> None:
    """Raise InputError with the command to run where the card's teacher cannot be trained in minutes."""
    training = _training(card)
    macs = 3 * count_macs(make_teacher_net(card), card.data) * images * training.epochs
    if macs > SMALL_TRAINING_MACS:
        raise InputError(
            f"{card.file}: the card has no weights and training its teacher takes long ({macs:.1g} multiply-"
            "accumulates); run `edgekd teach` once and give its file, or your own, with --teacher FILE"
        )


def teach(card: Card, data: tuple[Split, Split], minimum: float | None, out: Path) -> Teacher:
    """Train the card's teacher into `out` (safetensors); a finished one is only loaded.

    Below `minimum` validation accuracy it trains again with twice the epochs, `teacher.attempts` times in
    all. Raises BudgetError if none is good enough, InputError if the card has no recipe for a teacher.
    """
    if out.exists():
        for scratch in out.parent.glob(f"{out.stem}-attempt-*"):  # a finished teacher needs no checkpoint
            shutil.rmtree(scratch)
        return load_teacher_file(card, out)
    training = _training(card)
    best = 0.0
    for attempt in range(card.teacher.attempts):
        epochs = training.epochs * 2**attempt
        longer = dataclasses.replace(training, epochs=epochs)
        reached = _attempt(card, data, longer, out, out.parent / f"{out.stem}-attempt-{attempt + 1}", minimum)
        if minimum is None or reached >= minimum:
            return teach(card, data, minimum, out)
        best = max(best, reached)
        say(f"teacher: {units.accuracy(reached)} after {epochs} epochs, {units.accuracy(minimum)} wanted")
    assert minimum is not None  # otherwise the first attempt was good enough
    raise BudgetError(
        f"the teacher reaches {units.accuracy(best)} on validation data in {card.teacher.attempts} attempts, "
        f"teacher_min_accuracy is {units.accuracy(minimum)}; train longer ([teacher.training] epochs), take a larger "
        "[teacher] shape, or lower teacher_min_accuracy"
    )


def _attempt(
    card: Card, data: tuple[Split, Split], training: Training, out: Path, scratch: Path, minimum: float | None
) -> float:
    torch.manual_seed(training.seed)
    net = make_teacher_net(card)
    job = Job(
        name="teacher",
        data=card.data,
        augment=card.augment,
        train=data[0],
        validation=data[1],
        training=training,
        loss=cross_entropy(training),
        teacher_logits=None,
        views=training.epochs,
        checkpoint=scratch / "checkpoint.pt",
    )
    history = train(net, job)
    reached: float = history[-1]["validation_accuracy"]
    if minimum is None or reached >= minimum:
        write_json(out.with_name(f"{out.stem}-history.json"), {"schema_version": 1, "epochs": history})
        save_state(net, out, {"card": card.name})
    return reached


def validation_accuracy(teacher: Teacher, validation: Split) -> float:
    """Share of the validation images the teacher classifies correctly, in fp32."""
    teacher.module.to(device()).to(memory_format=torch.channels_last)
    result = accuracy(teacher.module, validation, "fp32")
    teacher.module.to("cpu")
    return result


def check_teacher(teacher: Teacher, validation: Split, minimum: float | None) -> None:
    """Raise BudgetError if the teacher stays below `minimum` on validation data."""
    reached = validation_accuracy(teacher, validation)
    if minimum is not None and reached < minimum:
        raise BudgetError(
            f"{teacher.file}: the teacher reaches {units.accuracy(reached)} on validation data, "
            f"teacher_min_accuracy is {units.accuracy(minimum)}; are data, classes and normalization the ones it was "
            "trained with?"
        )


def teacher_logits(card: Card, teacher: Teacher, images: Split, folder: Path) -> Callable[[int], NDArray[np.float32]]:
    """A function of k: the teacher's logits (n, C) for view k of all images, computed once, then kept.

    Each view is one file of `folder`, written atomically, so that an interrupted run loses one view at most.
    """

    def logits_of_view(k: int) -> NDArray[np.float32]:
        path = folder / f"view-{k:03d}.npy"
        if not path.exists():
            begin = time.perf_counter()
            values = _compute(card, teacher, images, k)
            if (seconds := time.perf_counter() - begin) > 5:
                say(f"teacher: logits of view {k + 1}/{card.recipe.views} in {units.duration(seconds)}")
            write_array(path, values.shape, values.dtype, [values])
        logits: NDArray[np.float32] = np.load(path, mmap_mode="r")
        return logits

    return logits_of_view


def _compute(card: Card, teacher: Teacher, images: Split, k: int) -> NDArray[np.float32]:
    where, recipe, size = device(), card.recipe, 500
    teacher.module.to(where).to(memory_format=torch.channels_last)
    out = np.empty((len(images), len(card.data.classes)), dtype=np.float32)
    with torch.no_grad(), autocast(recipe.precision), progress() as bar:
        for start in bar.track(range(0, len(images), size), description=f"teacher's logits, view {k + 1}"):
            chosen = np.arange(start, min(start + size, len(images)))
            seen = view(torch.from_numpy(images.read(chosen)), chosen, k, recipe.seed, card.augment)
            out[chosen] = teacher.module(seen.to(where)).float().cpu().numpy()
    teacher.module.to("cpu")
    return out
