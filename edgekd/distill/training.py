"""The trainings of a run, in which all processes of torchrun take part; the first process tells the others of each."""

import dataclasses
from pathlib import Path

from torch import nn

from edgekd.candidate import Shape
from edgekd.card import Card
from edgekd.data.examples import Examples
from edgekd.distill.distributed import broadcast, fail_together, receive
from edgekd.distill.student import TrainingOptions, check_recipe, distill_student
from edgekd.distill.tasks.known import examples_of, learning_of
from edgekd.distill.teacher import check_teacher, given_teacher, more_teachers, teach
from edgekd.errors import EdgekdError
from edgekd.nets.teachers import Teacher
from edgekd.run import Run

__all__ = ["StudentTraining", "TeacherTraining", "follow", "train_student", "train_teacher"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentTraining:
    """What the other processes are told of the training of a student, and of its teacher where none is given."""

    card: Card
    shape: Shape
    folder: Path
    data: Path | None
    teacher_file: Path | None
    options: TrainingOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherTraining:
    """What the other processes are told of the training of a teacher alone."""

    card: Card
    data: Path | None
    minimum: float
    out: Path


def train_student(
    told: StudentTraining, given: Teacher | None, further: list[Teacher], examples: tuple[Examples, Examples], run: Run
) -> tuple[Teacher, nn.Module]:
    """The teacher, trained where none is given, and the student that it and the `further` ones teach.

    Called in the first process, which tells the others. Raises BudgetError for a teacher below its minimum.
    """
    broadcast(told)
    with fail_together():
        return _train_both(told, given, further, examples, run)


def train_teacher(
    card: Card, data: Path | None, minimum: float, out: Path, track: tuple[str, ...] = ()
) -> tuple[Teacher, Examples]:
    """The card's teacher, trained into `out` or loaded from there, and the validation data."""
    train, validation = learning_of(card.data).load(card, data)
    examples = (examples_of(card, train), examples_of(card, validation))
    broadcast(TeacherTraining(card=card, data=data, minimum=minimum, out=out))
    with fail_together():
        teacher = teach(card, examples, minimum, out, track)
    return teacher, examples[1]


def follow() -> None:
    """Take part in each training that the first process tells of, until it tells that there are no more.

    The first process raises the same error and reports it; it may then begin another training.
    """
    while (told := receive()) is not None:
        try:
            with fail_together():
                _take_part(told)
        except EdgekdError as error:
            if error.final:
                raise


def _take_part(told: StudentTraining | TeacherTraining) -> None:
    train, validation = learning_of(told.card.data).load(told.card, told.data)
    examples = (examples_of(told.card, train), examples_of(told.card, validation))
    if isinstance(told, TeacherTraining):
        teach(told.card, examples, told.minimum, told.out)
        return
    given = given_teacher(told.card, told.teacher_file)
    _train_both(told, given, more_teachers(told.card), examples, Run(told.folder))


def _train_both(
    told: StudentTraining, given: Teacher | None, further: list[Teacher], examples: tuple[Examples, Examples], run: Run
) -> tuple[Teacher, nn.Module]:
    card, options = told.card, told.options
    check_recipe(card, told.shape, given, further, examples[0])
    teacher = given or teach(card, examples, options.teacher_minimum, run.teacher_weights, options.track)
    check_teacher(card, teacher, examples[1], options.teacher_minimum)
    return teacher, distill_student(card, told.shape, [teacher, *further], examples, run, options)
