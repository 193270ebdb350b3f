"""The trainings of a run under torchrun: rank 0 broadcasts each training, and all processes take part in it."""

import dataclasses
from pathlib import Path

from torch import nn
from torch.fx import GraphModule

from edgekd.candidate import Shape
from edgekd.card import Card
from edgekd.data.examples import Examples
from edgekd.distill.compatibility import check_recipe
from edgekd.distill.distributed import broadcast, fail_together, receive
from edgekd.distill.pruned import distill_pruned
from edgekd.distill.qat import train_for_int8
from edgekd.distill.student import TrainingOptions, distill_student
from edgekd.distill.tasks.known import examples_of, learning_of
from edgekd.distill.teacher import check_teacher, given_teacher, more_teachers, teach, teacher_start
from edgekd.errors import EdgekdError
from edgekd.nets.teachers import LoadedTeacher
from edgekd.run import Run
from edgekd.target import Quantization

__all__ = ["StudentTraining", "TeacherTraining", "Trained", "follow", "train_student", "train_teacher"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentTraining:
    """A training of a student, and of its teacher if none is given, as rank 0 broadcasts it to the other processes."""

    card: Card
    shape: Shape
    folder: Path
    data: Path | None
    teacher_file: Path | None
    start: Path | None
    """The weights from which the teacher is fine-tuned."""
    options: TrainingOptions
    scheme: Quantization | None = None
    """The scheme for which the student is trained after the distillation; None if it is not."""
    pruning: float | None = None
    """The share of the teacher's channels that are removed; None if it is not pruned."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """The networks of a run after its trainings."""

    teacher: LoadedTeacher
    student: nn.Module
    int8: GraphModule | None
    """The student after its training for int8, which computes with rounded values; None if there was none."""
    pruned: nn.Module | None
    """The pruned teacher; None if there is none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherTraining:
    """A training of a teacher alone, as rank 0 broadcasts it to the other processes."""

    card: Card
    data: Path | None
    minimum: float | None
    out: Path
    start: Path | None
    """The weights from which the teacher is fine-tuned."""


def train_student(
    task: StudentTraining,
    given: LoadedTeacher | None,
    further: list[LoadedTeacher],
    examples: tuple[Examples, Examples],
    run: Run,
) -> Trained:
    """Train a student from the teacher `given`, or from one that is trained first, and from `further` teachers, and the
    networks that compete with it.

    Call this on rank 0 only: it broadcasts the training. Raises BudgetError if the teacher is below its minimum.
    """
    broadcast(task)
    with fail_together():
        return _train_both(task, given, further, examples, run)


def train_teacher(
    card: Card, data: Path | None, minimum: float | None, out: Path, track: tuple[str, ...] = ()
) -> tuple[LoadedTeacher, Examples]:
    """On rank 0: train the card's teacher and save it to `out`, or load it; return it and the validation data."""
    train, validation = learning_of(card.data).load(card, data)
    examples = (examples_of(card, train), examples_of(card, validation))
    start = teacher_start(card, None)
    broadcast(TeacherTraining(card=card, data=data, minimum=minimum, out=out, start=start))
    with fail_together():
        teacher = teach(card, examples, minimum, out, track, start)
    return teacher, examples[1]


def follow() -> None:
    """On all other ranks: take part in each training that rank 0 broadcasts, until it broadcasts None.

    An error that all processes raise is ignored here: rank 0 reports it, and may then start another training.
    """
    while (task := receive()) is not None:
        try:
            with fail_together():
                _take_part(task)
        except EdgekdError as error:
            if error.final:
                raise


def _take_part(task: StudentTraining | TeacherTraining) -> None:
    train, validation = learning_of(task.card.data).load(task.card, task.data)
    examples = (examples_of(task.card, train), examples_of(task.card, validation))
    if isinstance(task, TeacherTraining):
        teach(task.card, examples, task.minimum, task.out, start=task.start)
        return
    given = None if task.start else given_teacher(task.card, task.teacher_file)
    _train_both(task, given, more_teachers(task.card), examples, Run(task.folder))


def _train_both(
    task: StudentTraining,
    given: LoadedTeacher | None,
    further: list[LoadedTeacher],
    examples: tuple[Examples, Examples],
    run: Run,
) -> Trained:
    card, options = task.card, task.options
    check_recipe(card, task.shape, given, further, examples[0])
    teacher = given or teach(card, examples, options.teacher_minimum, run.teacher_weights, options.track, task.start)
    check_teacher(card, teacher, examples[1], options.teacher_minimum)
    teachers = [teacher, *further]
    net, int8, pruned = distill_student(card, task.shape, teachers, examples, run, options), None, None
    if task.scheme is not None:
        int8 = train_for_int8(card, task.shape, net, teachers, examples, run, task.scheme, options)
    if task.pruning is not None:
        pruned = distill_pruned(card, teachers, examples, run, task.pruning, options)
    return Trained(teacher=teacher, student=net, int8=int8, pruned=pruned)
