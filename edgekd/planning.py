"""The stages before a student is trained: prepare, search and rank. They choose its shape for each target."""

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import units
from edgekd.bench.instructions import require_counting
from edgekd.budget import Budget
from edgekd.candidate import Candidate, Score, Shape
from edgekd.card import Card
from edgekd.console import say
from edgekd.data.arrays import digest, keep_split
from edgekd.data.examples import Examples
from edgekd.data.images import Split
from edgekd.data.originals import keep_originals, keep_timed
from edgekd.data.sources import data_marks
from edgekd.devices.bundle import Packing
from edgekd.devices.device import Site
from edgekd.devices.host import processes
from edgekd.distill.compatibility import check_networks
from edgekd.distill.identity import structures
from edgekd.distill.pruned import check_pruning
from edgekd.distill.student import TrainingOptions, assist
from edgekd.distill.tasks.known import examples_of, learning_of
from edgekd.distill.teacher import (
    check_teacher,
    given_teacher,
    more_teachers,
    refuse_long_teaching,
    teach,
    teacher_start,
)
from edgekd.errors import BudgetError, ConfigError
from edgekd.export.onnx import refuse_free_shapes
from edgekd.export.ort import refuse_two_files
from edgekd.export.trial import try_teacher
from edgekd.export.variants import calibration_of
from edgekd.judge import effective_budget
from edgekd.nets.fakequant import refuse_scheme
from edgekd.nets.families import make_shapes
from edgekd.nets.teachers import LoadedTeacher, make_teacher_net
from edgekd.run import Run, take_over
from edgekd.search.candidates import Search, add_score, measure_candidates, measure_shape
from edgekd.search.choose import before_training, choose_shape, doubtful, fitting, in_doubt, widened
from edgekd.search.found import Found
from edgekd.search.front import MORE
from edgekd.search.packing import pack_candidates
from edgekd.search.pruning import fitting_ratio
from edgekd.search.rank import Lessons, distil_briefly, halve, learn_round, shortlist, why
from edgekd.tasks.known import task_of
from edgekd.trials import Call, Crew

__all__ = ["Request", "Setup", "TargetPlan", "begin", "distil_elsewhere", "pack", "prepare", "rank", "search", "survey"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """The user's request, which is the same for every target."""

    card: Card
    data: Path | None = None
    """Folder of the data, which replaces the card's."""
    teacher: Path | None = None
    """Weights file of the teacher, which replaces the card's."""
    budget: Budget = Budget()  # noqa: RUF009 - frozen
    """Limits that replace the card's."""
    allow_estimated: bool = False
    """Whether an estimated latency may decide the verdict."""
    options: TrainingOptions = TrainingOptions()  # noqa: RUF009 - frozen
    crew: Crew = Crew()  # noqa: RUF009 - frozen
    """How many short distillations that rank candidates run at the same time, and where."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything that is the same for every target. It is checked before anything is measured or trained."""

    asked: Request
    card: Card
    """The card, completed with the settings that depend on the data."""
    given: LoadedTeacher | None
    """The teacher, if its weights are given; None if it is to be trained."""
    start: Path | None
    """The weights from which the teacher is fine-tuned; None if it is given, or trained from new."""
    further: list[LoadedTeacher]
    train: Split
    validation: Split
    digest: str
    """SHA-256 of the training and validation data."""
    networks: dict[str, str]
    """The structure of each network that is trained, as SHA-256."""
    marks: str
    """SHA-256 of the names, sizes and times of the data's files."""

    @property
    def examples(self) -> tuple[Examples, Examples]:
        """Training and validation data as the training loop takes them."""
        return examples_of(self.card, self.train), examples_of(self.card, self.validation)


@dataclass(frozen=True, kw_only=True)
class TargetPlan:
    """The student's shape chosen for one target, and the measurements on which the choice is based."""

    site: Site
    run: Run
    budget: Budget
    inputs: Path
    """Validation inputs (.npy), which workers map into memory."""
    calibration: NDArray[np.uint8] | None
    trial: Search
    """What the candidates are tried with."""
    found: Found
    choice: Candidate
    pruning: float | None = None
    """The share of the teacher's channels that are removed, so that it meets the budget; None if it is not pruned."""

    @property
    def candidates(self) -> list[Candidate]:
        """The measured and the predicted candidates."""
        return self.found.candidates


def prepare(asked: Request, runs: Sequence[Run]) -> Setup:
    """Load and check the data and the teachers. All errors in them are raised here, before anything is measured."""
    card, learning = asked.card, learning_of(asked.card.data)
    start = teacher_start(card, asked.teacher)
    given, further = None if start else given_teacher(card, asked.teacher), more_teachers(card)
    learning.require_test(card, asked.data)
    train, validation = learning.examine(card, asked.data)
    card = learning.settle(card, validation)
    _check_rank(card)
    taught = any(run.teacher_weights.exists() for run in runs)
    if given is None and not taught and card.teacher.family != "self":
        refuse_long_teaching(card, len(train), start)
    if card.recipe.prune:
        check_pruning(card, given)
    check_networks(card, make_shapes(card, card.student), given, further, examples_of(card, train))
    return Setup(
        asked=asked,
        card=card,
        given=given,
        start=start,
        further=further,
        train=train,
        validation=validation,
        digest=digest(train) + digest(validation),
        networks=structures(card, given is not None),
        marks=data_marks(card, asked.data),
    )


def _check_rank(card: Card) -> None:
    """Raise ConfigError if the candidates cannot be ranked by learning."""
    if card.student.rank == "learning" and card.teacher.family == "self":
        raise ConfigError(
            f'{card.file}: student.rank: "learning" needs one teacher for all shapes, not family = "self"'
        )
    if card.student.rank == "learning" and processes() > 1:
        raise ConfigError(f'{card.file}: student.rank: "learning" runs in one process; run without torchrun')


def explore(setup: Setup, site: Site, run: Run) -> tuple[Search, Found, Budget]:
    """Measure or predict the untrained candidates on the target; return them with what they were tried with, and the
    limits on this target."""
    trial, budget = _ready(setup, site, run)
    return trial, measure_candidates(trial), budget


def pack(asked: Request, site: Site, device: Packing, run: Run, path: Path) -> int:
    """Write a bundle of all candidates, and return how many there are. `device` is the site's own."""
    trial, _ = _ready(prepare(asked, [run]), site, run)
    count = pack_candidates(trial, device, path)
    shutil.rmtree(run.scratch, ignore_errors=True)
    return count


def _ready(setup: Setup, site: Site, run: Run) -> tuple[Search, Budget]:
    """Check that candidates can be measured on the target, and return what they are tried with, and the limits."""
    card = setup.card
    budget = effective_budget(card.budget(site.target.name, setup.asked.budget), site.target)
    refuse_free_shapes(card, site.target)
    refuse_two_files(card, site.target)
    require_counting(budget, site)
    if card.recipe.qat and "int8" in site.target.precisions:
        refuse_scheme(site.target.quantization, site.target.file)
    if card.teacher.family != "self" and not run.exported.exists():
        some = setup.validation.read(np.arange(min(64, len(setup.validation))))
        try_teacher(setup.given, card, site.target, some, run.scratch)
    return begin(setup, site, run, budget), budget


def begin(setup: Setup, site: Site, run: Run, budget: Budget) -> Search:
    """Assign the run folder to this run, and keep in it the inputs of measurements; returns what candidates are tried
    with."""
    card = setup.card
    run.begin(setup.digest, setup.networks, setup.marks)
    learning_of(card.data).keep(card, setup.asked.data, run.tokenizer)
    inputs = keep_split(setup.validation, run.data / "validation")
    if card.export.resize:
        keep_originals(setup.validation, run.data / "validation.originals.npy")
        keep_timed(setup.validation, card, run.data / "timed.npy")
    return Search(
        card=card,
        site=site,
        examples=setup.examples[0],
        inputs=inputs,
        calibration=calibration_of(card, site.target, setup.train),
        memory=budget.limit("peak_memory_mb") is not None,
        # They cost seconds for each file, so a search that limits nothing by them counts them only if an emulated
        # board was named.
        instructions=budget.limit("instructions_m") is not None or bool(site.device.facts().emulator),
        run=run,
    )


def search(setup: Setup, site: Site, run: Run) -> TargetPlan:
    """Measure the untrained candidates on the target, and choose the most capable one that meets the budget."""
    trial, found, budget = explore(setup, site, run)
    plan = _choose_capable(trial, _settled(trial, found, budget), budget)
    return dataclasses.replace(plan, pruning=_pruning(setup, plan)) if setup.card.recipe.prune else plan


def _pruning(setup: Setup, plan: TargetPlan) -> float | None:
    """The share of the teacher's channels that must be removed to meet the budget; None if none is enough."""
    whole = setup.given.net if setup.given else make_teacher_net(setup.card)
    assert whole is not None  # prepare has refused an ONNX teacher
    return fitting_ratio(setup.card, whole, plan.site, plan.budget, plan.inputs, plan.calibration, plan.run)


def survey(asked: Request, site: Site, run: Run) -> tuple[Found, Budget, Candidate | None]:
    """Search without training a student to the end: return the candidates with their figures and scores, the limits on
    this target, and the candidate that `distill` would train; None if none meets the limits."""
    setup = prepare(asked, [run])
    trial, found, budget = explore(setup, site, run)
    found = _settled(trial, found, budget)
    try:
        plan = _choose_capable(trial, found, budget)
    except BudgetError:
        return found, before_training(budget), None
    plan = rank(setup, plan, wider=MORE)
    return plan.found, before_training(budget), plan.choice


def _choose_capable(trial: Search, found: Found, budget: Budget) -> TargetPlan:
    choice = choose_shape(found.candidates, budget)
    say(f"search: {choice.name} of {len(found.candidates)} candidates, {units.count(choice.macs)} multiply-accumulates")
    kept: dict[str, Any] = {"inputs": trial.inputs, "calibration": trial.calibration, "trial": trial, "found": found}
    return TargetPlan(site=trial.site, run=trial.run, budget=budget, choice=choice, **kept)


def _settled(trial: Search, found: Found, budget: Budget) -> Found:
    """The candidates, of which the one that will be chosen is measured on the run's own device. What may meet the limit
    of the time or miss it is measured again before the choice."""
    while True:
        if doubts := _doubts(trial, found, budget):
            found = _measured_again(trial, found, doubts[0], budget)
            continue
        try:
            choice = choose_shape(found.candidates, budget)
        except BudgetError:  # the caller meets it again
            return found
        if choice.measured_here:
            return found
        found = measure_shape(trial, found, choice.shape)


def _doubts(trial: Search, found: Found, budget: Budget) -> list[Candidate]:
    """The candidates to measure again; none after a training or the short distillations have begun, because a run that
    is continued must keep its choice."""
    if trial.run.student_weights.parent.exists() or found.scores:
        return []
    return in_doubt(found.candidates, budget, every=trial.card.student.rank != "capacity")


def _measured_again(trial: Search, found: Found, candidate: Candidate, budget: Budget) -> Found:
    say(f"search: {_doubt(candidate, budget)}: it is measured again")
    found = measure_shape(trial, found, candidate.shape, again=True)
    for one in found.candidates:
        if one.shape == candidate.shape and doubtful(one, budget):
            say(f"search: {_doubt(one, budget)}: the median counts, because this machine is busy or its times vary")
    return found


def _doubt(candidate: Candidate, budget: Budget) -> str:
    """What the measured times of a candidate leave open."""
    limit = before_training(budget).limit("latency_p50_ms") or 0.0
    times = [
        f"{precision} {units.milliseconds(one.value or 0.0)} ({one.low:.3g} … {one.high:.3g})"
        for precision, one in ((name, figures["latency_p50_ms"]) for name, figures in candidate.precisions.items())
        if one.low is not None and one.high is not None
    ]
    return f"{candidate.name} may meet {limit:g} ms or miss it ({', '.join(times)})"


def rank(setup: Setup, plan: TargetPlan, earlier: Sequence[TargetPlan] = (), wider: float = 1.0) -> TargetPlan:
    """Choose among the candidates that meet the budget by what they learn in short distillations, if the card says so;
    otherwise return the plan unchanged. Candidates that meet only limits `wider` times as large get a score of the
    first round, and are not chosen."""
    card, asked, run = setup.card, setup.asked, plan.run
    if card.student.rank == "capacity" or (run.student_weights.parent.exists() and plan.found.scores == []):
        return plan
    for other in earlier:
        if other.budget.teacher_minimum == plan.budget.teacher_minimum:
            take_over(other.run, run, with_student=False)
    lessons = _lessons(setup, run, plan.budget.teacher_minimum)
    found, budgets = plan.found, (plan.budget, widened(plan.budget, wider))
    while others := [one for one in _starters(found, budgets) if not one.measured_here]:
        found = measure_shape(plan.trial, found, others[0].shape)
        found = _settled(plan.trial, found, plan.budget)
    starters = shortlist(fitting(found.candidates, plan.budget))
    near = [one.shape for one in _starters(found, budgets) if one not in starters]

    def keep(score: Score) -> None:
        nonlocal found
        found = add_score(plan.trial, found, score)

    def away(shape: Shape, epochs: int) -> Call:
        return distil_elsewhere, (asked, run.folder.absolute(), plan.budget.teacher_minimum, shape, epochs)

    elsewhere = None if asked.crew.alone else away
    learn_round(near, lessons, found.scores, keep, crew=asked.crew, away=elsewhere)
    scores = halve([one.shape for one in starters], lessons, found.scores, keep, asked.crew, elsewhere)
    choice = next(one for one in starters if one.shape == scores[-1].shape)
    how = why(scores, task_of(card.data).scores[0])
    say(f"search: {choice.name} {how} of {len(starters)} that fit; capacity alone would take {plan.choice.name}")
    return dataclasses.replace(plan, found=found, choice=choice)


def _starters(found: Found, budgets: Sequence[Budget]) -> list[Candidate]:
    """The candidates that take part because they meet one of the budgets."""
    chosen = [one for budget in budgets for one in shortlist(fitting(found.candidates, budget))]
    return [one for place, one in enumerate(chosen) if one not in chosen[:place]]


def _lessons(setup: Setup, run: Run, minimum: float | None) -> Lessons:
    """What the short distillations share; the teacher and the assistants are trained if that is not done yet."""
    card, asked = setup.card, setup.asked
    options = dataclasses.replace(asked.options, track=())
    track, start = asked.options.track, setup.start
    teacher = setup.given or teach(card, setup.examples, minimum, run.teacher_weights, track, start)
    check_teacher(card, teacher, setup.examples[1], minimum)
    chain = [*assist(card, teacher, setup.examples, run.teacher_weights.parent, options), *setup.further]
    return Lessons(card=card, teachers=chain, data=setup.examples, options=options, folder=run.ranking)


_loaded: dict[Path, Lessons] = {}
"""The lessons of the run for which this process distils, by the run's folder; a process loads them once."""


def distil_elsewhere(asked: Request, folder: Path, minimum: float | None, shape: Shape, epochs: int) -> Score:
    """Make one short distillation of a run in this process, which another one started."""
    if folder not in _loaded:
        run = Run(folder)
        _loaded[folder] = _lessons(prepare(asked, [run]), run, minimum)
    return distil_briefly(_loaded[folder], shape, epochs)
