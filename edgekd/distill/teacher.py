"""The teacher: loaded from a file, or trained here."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import torch

from edgekd.candidate import Shape
from edgekd.card import Card, Training
from edgekd.console import say
from edgekd.data.examples import Examples
from edgekd.distill.distributed import World, barrier, device, world
from edgekd.distill.loop import TrainingJob, best_score, train
from edgekd.distill.objective import plain
from edgekd.distill.tasks.known import learning_of
from edgekd.distill.trial import check_small
from edgekd.errors import BudgetError, InputError
from edgekd.files import write_json
from edgekd.nets.deployed import Deployed, count_macs
from edgekd.nets.published import weights_file
from edgekd.nets.ssd import SsdLite
from edgekd.nets.start import describe, load_all_but_head
from edgekd.nets.teachers import LoadedTeacher, load_teacher_file, make_teacher_net
from edgekd.nets.weights import save_state
from edgekd.tasks.known import task_of

__all__ = [
    "check_teacher",
    "given_teacher",
    "more_teachers",
    "refuse_long_teaching",
    "teach",
    "teacher_start",
    "validation_score",
    "with_own_teacher",
]

SMALL_TRAINING_MACS = 2e14
"""Multiply-accumulates up to which `distill` trains a teacher without being asked: about half an hour on two cores. A
forward and a backward pass together count as three forward passes."""


def given_teacher(card: Card, file: Path | None) -> LoadedTeacher | None:
    """The teacher loaded from `file` (`--teacher`) or from the card's weights file; None if neither is given."""
    path = file or weights_file(card, card.teacher, card.teacher.shape)
    if path and card.teacher.family == "self":
        raise InputError(
            f'{card.file}: teacher.family = "self" is trained here, as the student\'s own network; drop {path}, or say '
            "of which family it is"
        )
    if path is None and card.teacher.family == "onnx":
        raise InputError(f"{card.file}: teacher.weights: is missing; name the ONNX file there or with --teacher FILE")
    return load_teacher_file(card, path) if path else None


def teacher_start(card: Card, file: Path | None) -> Path | None:
    """The weights file from which the card's teacher is fine-tuned; None if no file is given or if the file holds a
    teacher that is used as it is.

    A teacher is fine-tuned if the card has both weights and [teacher.training], or if the head of the weights (also
    those of `file`, `--teacher`) must be replaced. A `file` that fits whole is used as it is.

    Raises InputError if the weights do not fit apart from their head, or if a head must be replaced and the card does
    not say how to train the teacher.
    """
    path = file or weights_file(card, card.teacher, card.teacher.shape)
    if path is None or card.teacher.family in ("self", "onnx") or path.suffix == ".onnx":
        return None
    start = load_all_but_head(make_teacher_net(card), card, path)
    if start.new and card.teacher.training is None:
        words = describe("teacher", start, task_of(card.data).outputs(card.data)).partition("; ")[0]
        raise InputError(
            f"{path}: {words.removeprefix('teacher: ')}, but the card does not say how: add [teacher.training] to "
            f"{card.file}, with epochs"
        )
    return path if start.new or (file is None and card.teacher.training) else None


def with_own_teacher(card: Card, shape: Shape) -> Card:
    """Replace a teacher of family `self` in the card by the student's own network; return other cards unchanged.

    That network is first trained without distillation: the first generation of Born-Again Networks (Furlanello et al.
    2018, arXiv 1805.04770), and the baseline that the student is compared with.
    """
    if card.teacher.family != "self":
        return card
    recipe = {field.name: getattr(card.recipe, field.name) for field in dataclasses.fields(Training)}
    family, its_shape = card.student.family_of(shape)
    own = dataclasses.replace(
        card.teacher,
        family=family.family,
        function=family.function,
        output=family.output,
        shape=its_shape,
        training=card.teacher.training or Training(**recipe),
    )
    return dataclasses.replace(card, teacher=own)


def more_teachers(card: Card) -> list[LoadedTeacher]:
    """The card's additional teachers, each loaded from its weights file."""
    found = []
    for number, further in enumerate(card.more_teachers):
        path = weights_file(card, further, further.shape)
        if path is None:
            raise InputError(f"{card.file}: more_teachers[{number}].weights: is missing; name its weights file")
        found.append(load_teacher_file(dataclasses.replace(card, teacher=further), path))
    return found


def _training(card: Card) -> Training:
    if card.teacher.training is None:
        raise InputError(
            f"{card.file}: the card has neither weights nor [teacher.training]; give the weights with --teacher FILE, "
            "or say how to train the teacher in [teacher.training]"
        )
    return card.teacher.training


def refuse_long_teaching(card: Card, images: int, start: Path | None = None) -> None:
    """Raise InputError, which names the command to run, if training the card's teacher would take too long. `start`
    are the weights from which it is fine-tuned."""
    net, training = make_teacher_net(card), _training(card)
    macs = 3 * count_macs(net, card.data) * images * training.epochs
    if macs > SMALL_TRAINING_MACS:
        what = "fine-tuning" if start else "the card has no weights and training"
        named = f" (with teacher.weights = {str(start)!r} in the card)" if start and not card.teacher.weights else ""
        raise InputError(
            f"{card.file}: {what} its teacher takes long ({macs:.1g} multiply-accumulates); run `edgekd teach`"
            f"{named} once and give its file, or your own, with --teacher FILE"
        )


def teach(
    card: Card,
    data: tuple[Examples, Examples],
    minimum: float | None,
    out: Path,
    track: tuple[str, ...] = (),
    start: Path | None = None,
) -> LoadedTeacher:
    """Train the card's teacher, from the weights `start` if they are given (see `teacher_start`), and save it to `out`
    (safetensors); if `out` exists, only load it.

    If its score on validation data does not reach `minimum`, it is trained again with twice the epochs, up to
    `teacher.attempts` times in all. Raises BudgetError if no attempt reaches `minimum`, InputError if the card does not
    say how to train a teacher.
    """
    if out.exists():
        if world().first:
            for scratch in out.parent.glob(f"{out.stem}-attempt-*"):  # a finished teacher needs no checkpoint
                shutil.rmtree(scratch)
        return load_teacher_file(card, out)
    training, kind = _training(card), task_of(card.data).scores[0]
    tried: list[float] = []
    for attempt in range(card.teacher.attempts):
        epochs = training.epochs * 2**attempt
        longer = dataclasses.replace(training, epochs=epochs)
        scratch = out.parent / f"{out.stem}-attempt-{attempt + 1}"
        reached = _attempt(card, data, longer, out, scratch, minimum, track, start)
        if minimum is None or kind.reaches(reached, minimum):
            barrier()
            return teach(card, data, minimum, out)
        tried.append(reached)
        say(f"teacher: {kind.show(reached)} after {epochs} epochs, {kind.show(minimum)} wanted")
    assert minimum is not None  # otherwise the first attempt was good enough
    raise BudgetError(
        f"the teacher reaches {kind.show(kind.best(tried))} on validation data in {card.teacher.attempts} attempts, "
        f"{kind.teacher_key} is {kind.show(minimum)}; train longer ([teacher.training] epochs), take a larger "
        f"[teacher] shape, or {'lower' if kind.better == 'higher' else 'raise'} {kind.teacher_key}"
    )


def _attempt(
    card: Card,
    data: tuple[Examples, Examples],
    training: Training,
    out: Path,
    scratch: Path,
    minimum: float | None,
    track: tuple[str, ...],
    file: Path | None,
) -> float:
    where = f"{card.file}: teacher.training.class_weights"
    learning, kind = learning_of(card.data), task_of(card.data).scores[0]
    weights = learning.weights(training, data[0].labels, card.data, where)
    torch.manual_seed(training.seed)
    net = make_teacher_net(card)
    start = load_all_but_head(net, card, file) if file else None
    if start:
        say(describe("teacher", start, task_of(card.data).outputs(card.data)))
    check_small(net, card, data[0].batch(np.arange(min(2, len(data[0]))), 0).inputs, training, "teacher.training")
    job = TrainingJob(
        name="teacher",
        train=data[0],
        validation=data[1],
        training=training,
        objective=plain(training, net.loss if isinstance(net, SsdLite) else learning.loss, weights, learning.rows),
        score=learning.score,
        kind=kind,
        views=training.epochs,
        checkpoint=scratch / "checkpoint.pt",
        log=out.parent / "log",
        track=track,
        start=start,
    )
    history = train(Deployed(net, card.data), job)
    reached = best_score(training, history, kind)
    if world().first and (minimum is None or kind.reaches(reached, minimum)):
        kept = {"schema_version": 1, "training": dataclasses.asdict(training), "epochs": history}
        write_json(out.with_name(f"{out.stem}-history.json"), kept)
        save_state(net, out, {"card": card.name})
    return reached


def validation_score(card: Card, teacher: LoadedTeacher, validation: Examples) -> float:
    """The teacher's value of the task's first metric on the validation data, in fp32."""
    teacher.module.to(device()).to(memory_format=torch.channels_last)
    result = learning_of(card.data).score(teacher.module, validation, "fp32", World())
    teacher.module.to("cpu")
    return result


def check_teacher(card: Card, teacher: LoadedTeacher, validation: Examples, minimum: float | None) -> None:
    """Raise BudgetError if the teacher's score on the validation data does not reach `minimum`."""
    kind = task_of(card.data).scores[0]
    reached = validation_score(card, teacher, validation)
    if minimum is not None and not kind.reaches(reached, minimum):
        raise BudgetError(
            f"{teacher.file}: the teacher reaches {kind.show(reached)} on validation data, "
            f"{kind.teacher_key} is {kind.show(minimum)}; are data, classes and normalization the ones it was "
            "trained with?"
        )
