"""The stages of `distill` in their order; each stage is implemented elsewhere."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn
from torch.fx import GraphModule

from edgekd.bench.emulation import compared_words, too_much_to_emulate
from edgekd.bench.measure import References, Subject, evaluate, logits_of, measure_speed
from edgekd.bench.records import Effort
from edgekd.card import Card
from edgekd.data.arrays import keep_split
from edgekd.data.originals import keep_originals
from edgekd.devices.device import Site
from edgekd.distill.identity import structures_of
from edgekd.distill.student import training_summary
from edgekd.distill.tasks.known import learning_of
from edgekd.distill.teacher import (
    with_own_teacher,
)
from edgekd.distill.training import StudentTraining, train_student
from edgekd.errors import EdgekdError
from edgekd.export.onnx import cpu_logits, keep_torch_logits, parity
from edgekd.export.ort import as_deployed
from edgekd.export.resize import fidelity, same_answers
from edgekd.export.variants import INT8_TRAINED, export_variants
from edgekd.figures import ModelFigures
from edgekd.judge import budget_figures, judge
from edgekd.nets.folding import folded
from edgekd.nets.teachers import LoadedTeacher
from edgekd.planning import Request, Setup, TargetPlan, prepare, rank, search
from edgekd.report.run.write import write_reports
from edgekd.result import Result
from edgekd.run import Run, take_over
from edgekd.search.choose import choose_network
from edgekd.search.estimate import with_estimates
from edgekd.search.int8 import follow, settle_int8
from edgekd.search.material import Material, figures_of
from edgekd.target import Quantization, Target
from edgekd.tasks.known import task_of

__all__ = ["TrainedStudent", "conclude", "distill_all", "on_emulated_core", "own_networks"]

EFFORT = Effort()
"""The effort with which each file is measured."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TrainedStudent:
    """A trained student network and its teacher."""

    card: Card
    """The card, in which a teacher of family `self` is replaced by a network of the student's shape."""
    net: nn.Module
    teacher: LoadedTeacher
    int8: GraphModule | None = None
    """The student after its training for int8, which computes with rounded values; None if there was none."""
    pruned: nn.Module | None = None
    """The pruned teacher; None if there is none."""
    name: str = "student"
    """How the variants of `net` are called: `pruned` where there is no student, and the teacher itself was pruned."""

    def net_of(self, variant: str) -> nn.Module:
        """The PyTorch network from which the variant of that name was exported."""
        if variant == INT8_TRAINED and self.int8 is not None:
            return self.int8
        return self.pruned if variant.startswith("pruned") and self.pruned is not None else self.net


def distill_all(asked: Request, places: Sequence[tuple[Site, Run]]) -> list[Result | EdgekdError]:
    """Run all stages for several targets: first the search on each target, then the trainings. Equal trainings are done
    only once.

    If an error concerns only one target, it is returned in place of its result. Errors that concern all targets are
    raised.
    """
    setup = prepare(asked, [run for _, run in places])
    plans = [_tried(lambda site=site, run=run: search(setup, site, run)) for site, run in places]  # type: ignore[misc]
    results: list[Result | EdgekdError] = []
    for number, first in enumerate(plans):
        done = [other for other in plans[:number] if isinstance(other, TargetPlan)]
        plan = first if isinstance(first, EdgekdError) else _tried(lambda: rank(setup, first, done))  # noqa: B023
        plans[number] = plan
        results.append(plan if isinstance(plan, EdgekdError) else _tried(lambda: finish(setup, plan, done)))  # noqa: B023
    return results


def _tried(stage: Callable[[], T]) -> T | EdgekdError:
    try:
        return stage()
    except EdgekdError as error:
        if error.final:
            raise
        return error


def finish(setup: Setup, plan: TargetPlan, earlier: Sequence[TargetPlan] = ()) -> Result:
    """Train, export, measure and choose; then judge on test data."""
    plan.run.hold(structures_of(setup.card, [plan.choice.shape]))
    return conclude(setup, plan, learn(setup, plan, earlier))


def conclude(setup: Setup, plan: TargetPlan, student: TrainedStudent) -> Result:
    """Export, measure and choose; then judge on test data."""
    resizing = fidelity(setup.validation, student.card) if student.card.export.resize else None
    written = {"resize_parity": resizing.words} if resizing else {}
    kept: Any = {"calibration": plan.calibration, "run": plan.run, "notes": written, "name": student.name}
    nets: Any = {"teacher": student.teacher, "net": student.net, "trained_int8": student.int8, "pruned": student.pruned}
    subjects = export_variants(student.card, plan.site.target, **nets, **kept)
    int8 = quantize_best(setup, plan, subjects, student.name)
    some = np.load(plan.inputs)[: min(512, 4 * task_of(student.card.data).together)]
    answers = cpu_logits(subjects[1].file, task_of(student.card.data), some)
    agreement = dataclasses.asdict(parity(student.net, student.card, some, answers))
    if resizing:
        same = same_answers(subjects[1].file, setup.validation, task_of(student.card.data))
        agreement["resize"] = dataclasses.asdict(dataclasses.replace(resizing, same=same))
    counted = plan.budget.limit("instructions_m") is not None
    effort = dataclasses.replace(EFFORT, instructions="always") if counted else EFFORT
    subjects = as_deployed(subjects, plan.site.target)
    figures = measure_speed(subjects, plan.site, plan.inputs, plan.run.records, effort)
    figures = with_estimates(figures, subjects, plan.site)
    known = scored(plan, student, subjects, figures, plan.inputs)
    chosen, why = choose(setup, plan, known)
    inputs = read_test_data(setup, plan)
    models = scored(plan, student, subjects, figures, inputs)
    models, told = on_emulated_core(plan, student, subjects, models, inputs)
    result = judged(setup, plan, student, chosen, why, models, agreement, (*notes(plan, int8), *told), int8)
    write_reports(result, plan.candidates, plan.run)
    return result


def quantize_best(setup: Setup, plan: TargetPlan, subjects: list[Subject], name: str) -> dict[str, Any]:
    """Choose how the network `name` is quantised by measuring, and replace its int8 file; returns what was tried. The
    pruned teacher is quantised by the same scheme.

    Nothing is tried, and the target's own settings hold, if the target cannot be measured here.
    """
    teacher, fp32, *others = subjects
    int8 = [subject.file for subject in others if subject.file.name == f"{name}-int8.onnx"]
    if not int8 or not plan.site.measurable:
        return {}
    material = Material(
        fp32=fp32.file,
        calibration=plan.calibration,
        inputs=plan.inputs,
        targets=np.load(plan.inputs.with_suffix(".labels.npy")),
        task=task_of(setup.card.data),
        site=plan.site,
        folder=plan.run.scratch / "int8",
    )
    own = None
    if setup.given is None:  # a given teacher may have been trained on the validation data
        kept = dataclasses.replace(material, folder=plan.run.records)
        own = float(figures_of(teacher.file, kept, teacher.name).mean())
    settled = settle_int8(material, int8[0], plan.budget, own)
    for other in others:
        if other.name == "pruned int8" and other.file != int8[0]:
            follow(settled, material, other.file.with_name("pruned-fp32.onnx"), other.file)
    return settled


def learn(setup: Setup, plan: TargetPlan, earlier: Sequence[TargetPlan]) -> TrainedStudent:
    """Train the student. Networks that were trained in the same way for an earlier target are copied from there."""
    card, asked = with_own_teacher(setup.card, plan.choice.shape), setup.asked
    limits = plan.budget.minimum, plan.budget.teacher_minimum
    for other in earlier:
        same_shape = other.choice.shape == plan.choice.shape
        same = (other.budget.minimum, other.budget.teacher_minimum) == limits and same_shape
        if limits[1] == other.budget.teacher_minimum and (same_shape or setup.card.teacher.family != "self"):
            own = own_networks(other.site.target, plan.site.target)
            without = (*own, *(() if other.pruning == plan.pruning else ("pruned",)))
            take_over(other.run, plan.run, with_student=same, without=without)
    told = StudentTraining(
        card=card,
        shape=plan.choice.shape,
        folder=plan.run.folder,
        data=asked.data,
        teacher_file=asked.teacher,
        start=setup.start,
        options=dataclasses.replace(asked.options, minimum=limits[0], teacher_minimum=limits[1]),
        scheme=plan.site.target.quantization if card.recipe.qat and "int8" in plan.site.target.precisions else None,
        pruning=plan.pruning,
    )
    done = train_student(told, setup.given, setup.further, setup.examples, plan.run)
    pruned = folded(done.pruned, card.data) if done.pruned is not None else None
    net = folded(done.student, card.data)
    return TrainedStudent(card=card, net=net, teacher=done.teacher, int8=done.int8, pruned=pruned)


def own_networks(theirs: Target, ours: Target) -> tuple[str, ...]:
    """The networks trained for one target that are of no use for another one: `int8-qat`, if that one is quantised
    otherwise or not at all."""
    useful = theirs.quantization == ours.quantization and "int8" in ours.precisions
    return () if useful else ("int8-qat",)


def scored(
    plan: TargetPlan, student: TrainedStudent, subjects: list[Subject], figures: list[ModelFigures], inputs: Path
) -> list[ModelFigures]:
    """The figures of all models with their scores on `inputs` (.npy), whose targets lie beside them."""
    task = task_of(student.card.data)
    outputs = [logits_of(subject, plan.site, inputs, plan.run.records, task) for subject in subjects]
    targets = np.load(inputs.with_suffix(".labels.npy"))
    by_net = {
        net: keep_torch_logits(net, student.card, inputs, name)
        for name, net in (("student", student.net), ("int8-qat", student.int8), ("pruned", student.pruned))
        if net is not None
    }
    found = []
    for model, answers in zip(figures, outputs, strict=True):
        mine = by_net[student.net_of(model.name)]
        references = References(task=task, targets=targets, teacher=outputs[0], torch=mine)
        found += evaluate([model], [answers], references, plan.site)
    return found


def on_emulated_core(
    plan: TargetPlan, student: TrainedStudent, subjects: list[Subject], models: list[ModelFigures], inputs: Path
) -> tuple[list[ModelFigures], tuple[str, ...]]:
    """The figures with the scores of the emulated board that goes with the target, and notes on what this machine
    answers instead; the figures as they are without such a board, if the target asks for the answers of this machine or
    another device gives them, or if the board would need too long for these data.
    """
    board, target = plan.site.companion, plan.site.target
    if board is None or plan.site.measurable or target.device or target.accuracy_on == "host":
        return models, ()
    if problem := too_much_to_emulate(models, len(np.load(inputs.with_suffix(".labels.npy")))):
        return models, (problem,)
    emulated = dataclasses.replace(plan, site=Site(target, board))
    renamed = [dataclasses.replace(subject, name=f"{subject.name} emulated") for subject in subjects]
    found = scored(emulated, student, renamed, models, inputs)
    task = task_of(student.card.data)
    pairs = [
        [logits_of(one, site.site, inputs, plan.run.records, task) for one, site in ((here, plan), (there, emulated))]
        for here, there in zip(subjects, renamed, strict=True)
    ]
    return found, (compared_words(models, pairs, task),)


def choose(setup: Setup, plan: TargetPlan, known: list[ModelFigures]) -> tuple[str, str]:
    """Choose the file to ship by its figures on validation data; returns its name and the reason."""
    teacher, *variants = known
    fitting = [model for model in variants if model.precision in plan.site.target.precisions]
    # A given teacher may have been trained on the validation data, so its score on them is not used.
    chosen, why = choose_network(fitting, None if setup.given else teacher.score, plan.budget, plan.site)
    return chosen.name, why


def read_test_data(setup: Setup, plan: TargetPlan) -> Path:
    """The kept test inputs (.npy), with their targets beside them. No other stage reads the test data for a figure."""
    run = plan.run
    inputs, targets, originals = (run.data / f"test{end}.npy" for end in ("", ".labels", ".originals"))
    resize = setup.card.export.resize
    if not (inputs.exists() and targets.exists() and (originals.exists() or not resize)):
        run.test_reads(add=1)
        test = learning_of(setup.card.data).load_test(setup.card, setup.asked.data, run.tokenizer)
        keep_split(test, run.data / "test")
        if resize:
            keep_originals(test, originals)
    return inputs


def judged(
    setup: Setup,
    plan: TargetPlan,
    student: TrainedStudent,
    chosen: str,
    why: str,
    models: list[ModelFigures],
    agreement: dict[str, Any],
    told: tuple[str, ...],
    int8: dict[str, Any],
) -> Result:
    """Judge the chosen model by its figures on test data."""
    card, run = student.card, plan.run
    count = len(np.load(run.data / "test.labels.npy"))
    shipped = next(model for model in models if model.name == chosen)
    figures = budget_figures(shipped, models[0].score)
    return Result(
        card=card.name,
        target=plan.site.target.name,
        verdict=judge(figures, plan.budget, allow_estimated=setup.asked.allow_estimated, examples=count),
        chosen=chosen,
        why_chosen=why,
        models=tuple(models),
        shape=plan.choice.shape,
        candidates=len(plan.candidates),
        test_examples=count,
        examples=task_of(card.data).units,
        test_reads=run.test_reads(),
        parity=agreement,
        training=training_summary(card, run, student.name),
        notes=(*told, *task_of(card.data).remarks(card.data, shipped)),
        int8=int8,
    )


def notes(plan: TargetPlan, int8: dict[str, Any]) -> tuple[str, ...]:
    """What readers of the result should know of the device's arithmetic, and why int8 is as it is."""
    if not int8:
        return plan.site.remarks
    target = plan.site.target
    if "scheme" in int8:
        as_chosen = Quantization(**int8["scheme"])
    else:  # a record of version 1
        as_chosen = dataclasses.replace(target.quantization, reduce_range=int8["reduce_range"])
    remarks = dataclasses.replace(target, quantization=as_chosen).remarks(plan.site.device.facts())
    fallback = [f"int8: {int8['fallback']['why']}"] if int8["fallback"] else []
    return (*remarks, f"int8: {int8['why']}", *fallback)
