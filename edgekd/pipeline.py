"""The order of the stages, and nothing else."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgekd import host, units
from edgekd.bench.measure import Effort, Subject, evaluate, logits_of, measure_speed
from edgekd.card import Budget, Card
from edgekd.check.judge import budget_figures, judge
from edgekd.console import say
from edgekd.data.arrays import keep_split
from edgekd.data.images import Split
from edgekd.data.sources import load_test, load_train_and_validation
from edgekd.distill.student import distill_student
from edgekd.distill.teacher import given_teacher, teach_if_small, validation_accuracy
from edgekd.errors import BudgetError
from edgekd.export.onnx import export, parity
from edgekd.export.teacher import export_teacher
from edgekd.export.variants import make_variant
from edgekd.figures import Figure, ModelFigures
from edgekd.nets.deployed import count_macs, count_params
from edgekd.nets.teachers import Teacher
from edgekd.report.plot import plot_run
from edgekd.report.tables import markdown_report
from edgekd.result import Result, write_result
from edgekd.run import Run, atomic
from edgekd.search.candidates import Candidate, measure_candidates
from edgekd.search.choose import choose_shape, choose_variant, effective_budget
from edgekd.search.estimate import with_estimates
from edgekd.target import Target

__all__ = ["distill"]

EFFORT = Effort()
"""How much time each file's measurement gets."""


def distill(
    card: Card, target: Target, asked: Budget, run: Run, data: Path | None, teacher_file: Path | None
) -> Result:
    """From a teacher to a judged ONNX file: the whole road, each stage resumed where the run folder has it."""
    budget = effective_budget(asked, target)
    teacher = given_teacher(card, teacher_file)
    train, validation = load_train_and_validation(card, data)
    inputs = keep_split(validation, run.data / "validation")
    calibration = calibration_images(train, target.quantization.calibration_images)

    candidates = measure_candidates(card, target, inputs, calibration, run)
    choice = choose_shape(candidates, budget)
    say(f"search: {choice.name} of {len(candidates)} candidates, {units.count(choice.macs)} multiply-accumulates")

    teacher = teacher or teach_if_small(card, (train, validation), budget.teacher_min_accuracy, run.teacher_weights)
    teacher_accuracy = check_teacher(teacher, validation, budget)
    net = distill_student(card, choice.shape, teacher, (train, validation), run)

    subjects = export_variants(card, target, teacher, net, calibration, run)
    figures = with_estimates(measure_speed(subjects, target, inputs, run.records, EFFORT), subjects, target)
    logits = [logits_of(subject, target, inputs, run.records) for subject in subjects]
    agreement = parity(net, card, np.load(inputs)[:512], logits[1][:512])
    on_validation = evaluate(figures, logits, validation.labels, logits[0], target)
    variants = [model for model in on_validation[1:] if model.precision in target.precisions]
    chosen, why = choose_variant(variants, on_validation[0].accuracy, budget, target)

    models, test_images = final_figures(card, target, subjects, figures, run, data)
    final = next(model for model in models if model.name == chosen.name)
    known = budget_figures(final, models[0].accuracy)
    known["teacher_min_accuracy"] = Figure(teacher_accuracy, "measured")
    verdict = judge(known, judged_budget(budget, final), allow_estimated=True)
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
        test_reads=run.test_reads(),
        parity=dataclasses.asdict(agreement),
        notes=saturation(target),
    )
    write_reports(result, candidates, run)
    return result


def calibration_images(train: Split, count: int) -> NDArray[np.uint8]:
    """`count` training images, spread evenly over the set."""
    return train.read(np.linspace(0, len(train) - 1, min(count, len(train))).astype(np.int64))


def check_teacher(teacher: Teacher, validation: Split, budget: Budget) -> float:
    """The teacher's accuracy on validation data; BudgetError below `teacher_min_accuracy`."""
    accuracy = validation_accuracy(teacher, validation)
    if accuracy < (budget.teacher_min_accuracy or 0):
        raise BudgetError(
            f"{teacher.file}: the teacher reaches {units.accuracy(accuracy)} on validation data, "
            f"teacher_min_accuracy is {units.accuracy(budget.teacher_min_accuracy or 0)}; are data, classes and "
            "normalization the ones it was trained with? Otherwise --budget teacher_min_accuracy=…"
        )
    return accuracy


def export_variants(
    card: Card, target: Target, teacher: Teacher, net: nn.Module, calibration: NDArray[np.uint8], run: Run
) -> list[Subject]:
    """The teacher, the student in fp32, and the student in every other precision of the target."""
    teacher_onnx, fp32 = run.exported / "teacher-fp32.onnx", run.exported / "student-fp32.onnx"
    export_teacher(teacher, card, target, teacher_onnx)
    if not fp32.exists():
        export(net, card, target, fp32, {"trained": "distilled", "teacher": teacher.file.name})
    known = {"params": count_params(net), "macs": count_macs(net, card.data)}
    subjects = [
        Subject(
            name="teacher",
            file=teacher_onnx,
            precision="fp32",
            params=count_params(teacher.net) if teacher.net else None,
            macs=count_macs(teacher.net, card.data) if teacher.net else None,
        ),
        Subject(name="student fp32", file=fp32, precision="fp32", **known),
    ]
    for precision in target.precisions:
        if precision != "fp32":
            file = run.exported / f"student-{precision}.onnx"
            if not file.exists():
                make_variant(fp32, precision, target, calibration, file)
            subjects.append(Subject(name=f"student {precision}", file=file, precision=precision, **known))
    return subjects


def final_figures(
    card: Card,
    target: Target,
    subjects: list[Subject],
    figures: list[ModelFigures],
    run: Run,
    data: Path | None,
) -> tuple[list[ModelFigures], int]:
    """The figures with accuracy on test data, read here and nowhere else; and the number of test images."""
    inputs, labels = run.data / "test.npy", run.data / "test.labels.npy"
    if not (inputs.exists() and labels.exists()):
        run.test_reads(add=1)
        keep_split(load_test(card, data), run.data / "test")
    logits = [logits_of(subject, target, inputs, run.records) for subject in subjects]
    truth = np.load(labels)
    return evaluate(figures, logits, truth, logits[0], target), len(truth)


def saturation(target: Target) -> tuple[str, ...]:
    """A hint where int8 may lose accuracy to this CPU's arithmetic rather than to quantization."""
    eight_bits = "int8" in target.precisions and not target.quantization.reduce_range
    if not (target.measurable and eight_bits and host.machine().saturates_int8):
        return ()
    return ("this CPU has no VNNI, so 8-bit weights can saturate; target cpu-x86-avx2 keeps them to 7 bits",)


def judged_budget(budget: Budget, model: ModelFigures) -> Budget:
    """The budget without latency where latency is unknown: `distill` says «not judged» instead."""
    unknown = {key: None for key in ("latency_p50_ms", "latency_p95_ms") if getattr(model, key).value is None}
    return dataclasses.replace(budget, **unknown)


def write_reports(result: Result, candidates: list[Candidate], run: Run) -> None:
    """The chosen file, the picture, `report.md` and, last, `result.json`."""
    chosen = next(model for model in result.models if model.name == result.chosen)
    with atomic(run.model) as temporary:
        shutil.copyfile(run.exported / chosen.file, temporary)
    title = f"{result.card} on {result.target}: {result.verdict.outcome}"
    plot_run(result.models, candidates, title, run.folder / "figures.png")
    with atomic(run.folder / "report.md") as temporary:
        temporary.write_text(markdown_report(result, "figures.png"), encoding="utf-8")
    write_result(result, run.result)
