"""`sweep`: run the trials that the command line describes, and print their table."""

import dataclasses
import json
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.card import Card
from edgekd.console import out as show
from edgekd.console import say
from edgekd.devices.host import processes
from edgekd.distill.cache.files import require_cache
from edgekd.errors import ConfigError, ExitCode
from edgekd.external import file_digest
from edgekd.files import locked
from edgekd.imports import require
from edgekd.interface import digests_of_more
from edgekd.recipe import Training
from edgekd.scratch import require_scratch
from edgekd.sweep.space import grid, make_space
from edgekd.sweep.study import SweepPlan
from edgekd.sweep.table import Tried, best_of, recipe_lines, trial_rows, value_rows
from edgekd.tables import rich_table
from edgekd.tasks.known import load_card, task_of
from edgekd.trials import crew_of

if TYPE_CHECKING:
    from optuna import Study

    from edgekd.candidate import Shape
    from edgekd.sweep.sweep import TrialSetup

__all__ = ["SweepJob", "SweepOptions", "chosen_shape", "sweep_card", "train_elsewhere"]

TRIALS = 24
"""The default number of trials if a range is to be tried."""


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """The options of `sweep`."""

    temperatures: str = ""
    alphas: str = ""
    weights: str = ""
    """The ranges or values to try; for these three options see `sweep.space.make_space`."""
    seeds: int = 1
    trials: int | None = None
    epochs: int | None = None
    shape: tuple[str, ...] = ()
    pruning: bool = True
    jobs: int | None = None
    ray: str = ""


def sweep_card(card_name: str, wanted: SweepOptions, data: Path | None, teacher: Path | None, out: Path | None) -> int:
    """Try the recipes and print the table. Returns the exit code, which is 1 if no trial could be trained to the
    end."""
    card = load_card(card_name)
    for module, extra in (("torch", "train,cpu"), ("torchvision", "train,cpu"), ("optuna", "sweep")):
        require(module, extra, "sweep")
    if processes() > 1:
        raise ConfigError("sweep: trains each trial in one process; start the same command several times, not torchrun")
    crew = crew_of(wanted.jobs, wanted.ray, card.trials.cpus, card.trials.gpus)
    folder = out or Path("sweeps", card.name)
    require_scratch()
    require_cache()
    from edgekd.sweep.sweep import sweep

    job = SweepJob(card_name, wanted, folder, data, teacher)
    ready = _prepared(job)
    away = None if crew.alone else (train_elsewhere, (job,))
    trials = sweep(ready.study, ready.setup, ready.plan, folder, crew, away)
    _show(trials, card, folder)
    return ExitCode.PASS if any(trial.state == "complete" for trial in trials) else ExitCode.FAIL


def _plan(card: Card, wanted: SweepOptions) -> SweepPlan:
    recipe = card.recipe
    if wanted.epochs and recipe.stages:
        raise ConfigError(f"--epochs {wanted.epochs}: the stages of {card.file} have epochs of their own")
    try:
        space = make_space(recipe, wanted.temperatures, wanted.alphas, wanted.weights, wanted.seeds)
    except ConfigError as error:
        raise ConfigError(f"{card.file}: {error}") from None
    if space[0].name != "temperature":
        say(f"{card.file}: no term of the recipe uses a temperature; none is tried")
    for problem in Training.unused_settings(dataclasses.replace(recipe, epochs=wanted.epochs)) if wanted.epochs else ():
        raise ConfigError(f"{card.file}: recipe.{problem} (--epochs {wanted.epochs})")
    points = len(grid(space))
    listed = all(axis.values for axis in space)
    if listed and wanted.trials and wanted.trials > points:
        raise ConfigError(f"--trials {wanted.trials}: the values make {points} combinations; give more, or a range")
    return SweepPlan(
        space=space,
        epochs=wanted.epochs or recipe.epochs,
        trials=wanted.trials or (points if listed else max(TRIALS, points)),
        pruning=wanted.pruning and wanted.seeds == 1,  # several seeds are compared by their mean
        seed=recipe.seed,
        kind=task_of(card.data).scores[0],
    )


def chosen_shape(card: Card, given: tuple[str, ...]) -> "Shape":
    """The student's shape: the values given as KEY=VALUE (in TOML), and for each other knob its only value.

    Raises ConfigError if a knob has several values and none is given, and for values that the family does not accept.
    """
    from edgekd.nets.families import make

    shape: Shape = {}
    for text in given:
        key, _, value = text.partition("=")
        try:
            shape[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            raise ConfigError(f"--shape {text!r}: it should be KEY=VALUE, such as depth=8 or channels=[8,16]") from None
    for key, values in _knobs(card, shape).items():
        if key not in shape and len(values) > 1:
            options = " or ".join(f"'{key}={json.dumps(value, separators=(',', ':'))}'" for value in values)
            raise ConfigError(
                f"{card.file}: student.knobs.{key}: has {len(values)} values; choose with --shape {options}"
            )
        shape.setdefault(key, values[0])
    make(card, card.student, shape, "--shape")
    return shape


def _knobs(card: Card, shape: "Shape") -> dict[str, list[Any]]:
    """The knobs of the student; of several families, those of the family that the shape names."""
    names = [one.family for one in card.student.families]
    if len(names) > 1 and shape.get("family") not in names:
        return {"family": names}
    return card.student.family_of(shape)[0].knobs


@dataclass(frozen=True)
class SweepJob:
    """All that another process must know to train trials of this sweep."""

    card: str
    wanted: SweepOptions
    folder: Path
    data: Path | None
    teacher: Path | None


@dataclass(frozen=True)
class _Ready:
    """A sweep whose teacher is trained."""

    study: "Study"
    setup: "TrialSetup"
    plan: SweepPlan


@cache
def _kept(job: SweepJob) -> _Ready:
    """The sweep, which a process that trains several trials loads once."""
    return _prepared(job)


def train_elsewhere(job: SweepJob) -> bool:
    """Train one trial in this process, which another one started; returns False if none is left."""
    from edgekd.sweep.sweep import train_one

    ready = _kept(job)
    return train_one(ready.study, ready.setup, ready.plan, job.folder)


def _prepared(job: SweepJob) -> _Ready:
    """Load and check everything, open the study, and train the teacher if that is not done yet."""
    from edgekd.data.arrays import digest
    from edgekd.distill.compatibility import check_networks
    from edgekd.distill.student import TrainingOptions, assist
    from edgekd.distill.tasks.known import examples_of, learning_of
    from edgekd.distill.teacher import (
        check_teacher,
        given_teacher,
        more_teachers,
        refuse_long_teaching,
        teach,
        teacher_start,
        with_own_teacher,
    )
    from edgekd.sweep.sweep import TrialSetup, begin

    card, folder = load_card(job.card), job.folder
    plan, shape = _plan(card, job.wanted), chosen_shape(card, job.wanted.shape)
    start = teacher_start(card, job.teacher)
    given = None if start else given_teacher(card, job.teacher)
    learning = learning_of(card.data)
    train, validation = learning.load(card, job.data)
    card = learning.settle(card, validation)
    minimum, weights = card.budget("").teacher_minimum, folder / "teacher" / "teacher.safetensors"
    if given is None and not weights.exists() and card.teacher.family != "self":
        refuse_long_teaching(card, len(train), start)
    examples = (examples_of(card, train), examples_of(card, validation))
    further = more_teachers(card)
    check_networks(card, [shape], given, further, examples[0])
    card = with_own_teacher(card, shape)
    begins = given.file if given else start
    digests = {
        "SHA-256 of the data": f"{digest(train)[:12]}, {digest(validation)[:12]}",
        "SHA-256 of the teacher": file_digest(begins)[:12] if begins else "none given",
    } | {f"SHA-256 of {name}": content[:12] for name, content in digests_of_more(card).items()}
    # This is done before a teacher is trained, so that a teacher in the folder always belongs to this card and data.
    study = begin(card, shape, digests, plan, folder)
    with locked(folder / "teacher.lock", "teacher: another process is at it; waiting"):
        first = given or teach(card, examples, minimum, weights, start=start)
        check_teacher(card, first, examples[1], minimum)
        last = assist(card, first, examples, weights.parent, TrainingOptions())
    return _Ready(study, TrialSetup(card=card, shape=shape, teachers=[*last, *further], data=examples), plan)


def _show(trials: list[Tried], card: Card, folder: Path) -> None:
    kind = task_of(card.data).scores[0]
    for header, rows in (trial_rows(trials, kind), value_rows(trials, kind)):
        if rows:
            show(rich_table(header, rows, f"Sweep of {card.name}, validation data"))
    if (best := best_of(trials, kind)) is not None:
        show("best, for the card's [recipe]:")
        for line in recipe_lines(best[0], {str(name): weight for name, weight in card.recipe.losses.items()}):
            show(f"  {line}")
    show(f"{folder / 'trials.md'}, {folder / 'trials.csv'}, {folder / 'sweep.png'}")
