"""The order of the stages, and nothing else."""

import dataclasses
from pathlib import Path

import numpy as np
from torch import nn

from edgekd import units
from edgekd.bench.measure import Answers, Subject, evaluate, logits_of, measure_speed
from edgekd.bench.records import Effort
from edgekd.candidate import Shape
from edgekd.card import Budget, Card
from edgekd.console import say
from edgekd.data.arrays import digest, keep_split
from edgekd.data.examples import Examples
from edgekd.data.sources import data_marks
from edgekd.devices.device import Site
from edgekd.distill.distributed import hear, tell, together
from edgekd.distill.identity import structures
from edgekd.distill.student import How, check_networks, check_recipe, distill_student, training_summary
from edgekd.distill.tasks.known import examples_of, learning_of
from edgekd.distill.teacher import (
    check_teacher,
    given_teacher,
    more_teachers,
    refuse_long_teaching,
    teach,
    with_own_teacher,
)
from edgekd.errors import EdgekdError
from edgekd.export.onnx import cpu_logits, keep_torch_logits, parity
from edgekd.export.trial import try_teacher
from edgekd.export.variants import calibration_of, export_variants
from edgekd.figures import ModelFigures
from edgekd.judge import budget_figures, effective_budget, judge
from edgekd.nets.families import make_shapes
from edgekd.nets.folding import folded
from edgekd.nets.teachers import Teacher
from edgekd.report.run.write import write_reports
from edgekd.result import Result
from edgekd.run import Run
from edgekd.search.candidates import measure_candidates
from edgekd.search.choose import choose_shape, choose_variant
from edgekd.search.estimate import with_estimates
from edgekd.tasks.known import task_of

__all__ = ["distill", "follow", "train_teacher"]

EFFORT = Effort()
"""How much time each file's measurement gets."""


def distill(
    card: Card,
    site: Site,
    asked: Budget,
    run: Run,
    data: Path | None,
    teacher_file: Path | None,
    how: How = How(),  # noqa: B008 - frozen
) -> Result:
    """From a teacher to a judged ONNX file: the whole road, each stage resumed where the run folder has it."""
    target = site.target
    budget = effective_budget(asked, target)
    given, further = given_teacher(card, teacher_file), more_teachers(card)
    learning = learning_of(card.data)
    learning.require_test(card, data)
    train, validation = learning.examine(card, data)
    card = learning.settle(card, validation)
    if given is None and not run.teacher_weights.exists() and card.teacher.family != "self":
        refuse_long_teaching(card, len(train))
    check_networks(card, make_shapes(card, card.student), given, further, examples_of(card, train))
    if card.teacher.family != "self" and not run.exported.exists():
        try_teacher(given, card, target, validation.read(np.arange(min(64, len(validation)))), run.scratch)
    run.begin(digest(train) + digest(validation), structures(card, given is not None), data_marks(card, data))
    learning.keep(card, data, run.tokenizer)
    inputs = keep_split(validation, run.data / "validation")
    calibration = calibration_of(card, target, train)

    candidates = measure_candidates(card, site, examples_of(card, train), inputs, calibration, run)
    choice = choose_shape(candidates, budget)
    say(f"search: {choice.name} of {len(candidates)} candidates, {units.count(choice.macs)} multiply-accumulates")

    card = with_own_teacher(card, choice.shape)
    how = dataclasses.replace(how, minimum=budget.min_accuracy, teacher_minimum=budget.teacher_min_accuracy)
    examples = (examples_of(card, train), examples_of(card, validation))
    tell(Task(card, choice.shape, run.folder, data, teacher_file, how))
    with together():
        teacher, trained = train_both(card, choice.shape, given, further, examples, run, how)
    net = folded(trained, card.data)

    subjects = export_variants(card, target, teacher, net, calibration, run)
    images = np.load(inputs)[:512]
    agreement = parity(net, card, images, cpu_logits(subjects[1].file, task_of(card.data), images))
    figures = with_estimates(measure_speed(subjects, site, inputs, run.records, EFFORT), subjects, site)
    logits = [logits_of(subject, site, inputs, run.records) for subject in subjects]
    answers = Answers(labels=validation.labels, teacher=logits[0], torch=keep_torch_logits(net, card, inputs))
    known = evaluate(figures, logits, answers, site)
    variants = [model for model in known[1:] if model.precision in target.precisions]
    # A given teacher may have learnt the validation images; its accuracy on them says nothing.
    chosen, why = choose_variant(variants, None if given else known[0].accuracy, budget, site)

    models, test_images = final_figures(card, site, subjects, figures, net, run, data)
    final = next(model for model in models if model.name == chosen.name)
    verdict = judge(budget_figures(final, models[0].accuracy), budget, allow_estimated=True, examples=test_images)
    result = Result(
        card=card.name,
        target=target.name,
        verdict=verdict,
        chosen=chosen.name,
        why_chosen=why,
        models=tuple(models),
        shape=choice.shape,
        candidates=len(candidates),
        test_images=test_images,
        examples=task_of(card.data).units,
        test_reads=run.test_reads(),
        parity=dataclasses.asdict(agreement),
        training=training_summary(card.recipe, run),
        notes=site.remarks,
    )
    write_reports(result, candidates, run)
    return result


def train_both(
    card: Card,
    shape: Shape,
    given: Teacher | None,
    further: list[Teacher],
    examples: tuple[Examples, Examples],
    run: Run,
    how: How,
) -> tuple[Teacher, nn.Module]:
    """The teacher, trained where none is given, and the student that it and `further` ones teach."""
    check_recipe(card, shape, given, further, examples[0])
    teacher = given or teach(card, examples, how.teacher_minimum, run.teacher_weights, how.track)
    check_teacher(card, teacher, examples[1], how.teacher_minimum)
    return teacher, distill_student(card, shape, [teacher, *further], examples, run, how)


def train_teacher(
    card: Card, data: Path | None, minimum: float, out: Path, track: tuple[str, ...] = ()
) -> tuple[Teacher, Examples]:
    """The card's teacher, trained into `out` or loaded from there, and the validation data."""
    train, validation = learning_of(card.data).load(card, data)
    examples = (examples_of(card, train), examples_of(card, validation))
    tell(TeacherTask(card, data, minimum, out))
    with together():
        teacher = teach(card, examples, minimum, out, track)
    return teacher, examples[1]


@dataclasses.dataclass(frozen=True)
class TeacherTask:
    """What the processes after the first one are told of a teacher's training."""

    card: Card
    data: Path | None
    minimum: float
    out: Path


@dataclasses.dataclass(frozen=True)
class Task:
    """What they are told of a teacher's and a student's."""

    card: Card
    shape: Shape
    folder: Path
    data: Path | None
    teacher_file: Path | None
    how: How


def follow() -> None:
    """Take this process's share in the trainings that the first one tells of, until it tells of no more.

    An error that the first process raises as well is the first one's to tell, which may then have another training.
    """
    while (task := hear()) is not None:
        try:
            with together():
                _share(task)
        except EdgekdError as error:
            if error.final:
                raise


def _share(task: Task | TeacherTask) -> None:
    train, validation = learning_of(task.card.data).load(task.card, task.data)
    examples = (examples_of(task.card, train), examples_of(task.card, validation))
    if isinstance(task, TeacherTask):
        teach(task.card, examples, task.minimum, task.out)
        return
    given = given_teacher(task.card, task.teacher_file)
    train_both(task.card, task.shape, given, more_teachers(task.card), examples, Run(task.folder), task.how)


def final_figures(
    card: Card,
    site: Site,
    subjects: list[Subject],
    figures: list[ModelFigures],
    net: nn.Module,
    run: Run,
    data: Path | None,
) -> tuple[list[ModelFigures], int]:
    """The figures with accuracy on test data, which the road reads here and nowhere else; the number of images."""
    inputs, labels = run.data / "test.npy", run.data / "test.labels.npy"
    if not (inputs.exists() and labels.exists()):
        run.test_reads(add=1)
        keep_split(learning_of(card.data).load_test(card, data, run.tokenizer), run.data / "test")
    logits = [logits_of(subject, site, inputs, run.records) for subject in subjects]
    answers = Answers(labels=np.load(labels), teacher=logits[0], torch=keep_torch_logits(net, card, inputs))
    return evaluate(figures, logits, answers, site), len(answers.labels)
