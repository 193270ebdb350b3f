"""Try temperatures and weights: each trial trains the card's student from scratch and is scored by validation
accuracy.
"""

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.candidate import Shape
from edgekd.card import Card
from edgekd.console import say
from edgekd.data.examples import Examples
from edgekd.distill.loop import best_score
from edgekd.distill.student import learn_anew
from edgekd.errors import BudgetError
from edgekd.files import atomic, locked
from edgekd.nets.teachers import LoadedTeacher
from edgekd.sweep.plot import plot_sweep
from edgekd.sweep.space import recipe_at
from edgekd.sweep.study import SweepPlan, abandoned, checkpoint_folder, open_study, take, tried
from edgekd.sweep.table import Tried, sweep_csv, sweep_markdown
from edgekd.tasks.known import task_of
from edgekd.trials import Call, Crew, run_trials

if TYPE_CHECKING:
    from optuna import Study, Trial

__all__ = ["TrialSetup", "begin", "sweep", "train_one"]

ORPHANED_S = 30
"""Seconds to wait at the end for trials that other processes still train, in case that these processes are lost."""


@dataclass(frozen=True, kw_only=True)
class TrialSetup:
    """The student, teachers and data that all trials share."""

    card: Card
    shape: Shape
    teachers: Sequence[LoadedTeacher]
    """The teachers, in the form that `learn` takes."""
    data: tuple[Examples, Examples]
    """The training and validation data."""


def begin(card: Card, shape: Shape, digests: dict[str, str], plan: SweepPlan, folder: Path) -> "Study":
    """Create or continue the study in `folder`; `digests` are those of the data and of the teachers' files.

    Raises ConfigError if the folder holds a sweep with other conditions.
    """
    return open_study(folder, plan, _conditions(card, shape, digests, plan))


def sweep(
    study: "Study",
    setup: TrialSetup,
    plan: SweepPlan,
    folder: Path,
    crew: Crew = Crew(),  # noqa: B008 - frozen
    away: Call | None = None,
) -> list[Tried]:
    """Train the remaining trials of the plan and return all trials; several processes may do so at the same time.

    The `crew` trains several trials at the same time; `away` is then the call that does in another process what
    `train_one` does in this one. After each trial, `trials.csv`, `trials.md` and `sweep.png` are written to `folder`.
    """
    call = away or (train_one, (study, setup, plan, folder))
    _train_left(study, setup, plan, folder, crew, call)
    for _ in range(0 if crew.alone else ORPHANED_S):
        if not any(trial.state == "running" for trial in tried(study)):
            break
        time.sleep(1)  # a process of a lost node may need a moment to end
        if abandoned(study, folder):
            _train_left(study, setup, plan, folder, crew, call)
    write_tables(setup, plan, study, folder)
    return tried(study)


def _train_left(study: "Study", setup: TrialSetup, plan: SweepPlan, folder: Path, crew: Crew, call: Call) -> None:
    """Repeat the call, which trains one trial, until it says that none is left."""
    left = True

    def calls() -> Iterator[Call]:
        while left:
            yield call

    with contextlib.closing(run_trials(calls(), crew)) as done:
        for _, trained in done:
            left = left and trained
            write_tables(setup, plan, study, folder)


def train_one(study: "Study", setup: TrialSetup, plan: SweepPlan, folder: Path) -> bool:
    """Train one trial; returns False if all are trained, or other processes train the rest."""
    with take(study, folder, plan) as trial:
        if trial is None:
            return False
        _train(setup, plan, study, trial, folder)
    return True


def _conditions(card: Card, shape: Shape, digests: dict[str, str], plan: SweepPlan) -> dict[str, Any]:
    """Return the conditions that must remain the same, as JSON; the number of trials may increase."""
    parts = {"data": card.data, "augment": card.augment, "teacher": card.teacher, "recipe": card.recipe}
    parts |= {f"more_teachers[{number}]": further for number, further in enumerate(card.more_teachers)}
    parts |= {f"assistants[{number}]": assistant for number, assistant in enumerate(card.assistants)}
    conditions = {key: value for part, thing in parts.items() for key, value in _given(part, thing).items()}
    del conditions["recipe.epochs"]
    if card.student.function is not None:
        conditions["student.function"] = card.student.function
    conditions |= {"student.family": card.student.family, "epochs": plan.epochs, "pruning": plan.pruning}
    conditions |= {f"shape.{key}": value for key, value in shape.items()} | digests
    conditions |= {f"axes.{axis.name}": axis.values or (axis.low, axis.high) for axis in plan.space}
    plain: dict[str, Any] = json.loads(json.dumps(conditions))
    return plain


def _given(part: str, thing: Any) -> dict[str, Any]:
    """Return the values that differ from their defaults, so that a key added by a later edgekd does not count as a
    change.
    """
    defaults = {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(thing)
    }
    values = {name: getattr(thing, name) for name in defaults}
    plain = dataclasses.asdict(thing)
    return {f"{part}.{name}": plain[name] for name, value in values.items() if value != defaults[name]}


def _train(setup: TrialSetup, plan: SweepPlan, study: "Study", trial: "Trial", folder: Path) -> None:
    """Train one trial and report its result to the study."""
    from optuna.trial import TrialState

    card = dataclasses.replace(setup.card, recipe=recipe_at(setup.card.recipe, trial.params, plan.epochs))
    scratch = checkpoint_folder(folder, trial)
    name = f"trial {trial.number + 1}"
    reported, hopeless = 0, False

    def report(history: list[dict[str, Any]]) -> None:
        nonlocal reported
        for entry in history[reported:]:  # more than one entry if a trial continues
            trial.report(entry[plan.kind.history_key], entry["epoch"])
        reported = len(history)

    def stop(history: list[dict[str, Any]]) -> bool:
        nonlocal hopeless
        report(history)
        hopeless = trial.should_prune()
        return hopeless

    values = ", ".join(f"{key} {value:.3g}" for key, value in trial.params.items())
    try:
        history = learn_anew(card, setup.shape, setup.teachers, setup.data, scratch / "net", name=name, stop=stop)
    except BudgetError as error:  # the loss is no longer finite, but it may be with other values
        trial.set_user_attr("failed", str(error))
        study.tell(trial, state=TrialState.FAIL)
        say(f"{name}: {values}: failed: {error}")
    else:
        report(history)
        trial.set_user_attr("seconds", sum(entry["seconds"] for entry in history))
        score = best_score(card.recipe, history, plan.kind)
        if hopeless:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, score)
        ended = f"pruned after epoch {len(history)}" if hopeless else f"{len(history)} epochs"
        say(f"{name} of {plan.trials}: {values}: validation {plan.kind.show(score)}, {ended}")
    shutil.rmtree(scratch, ignore_errors=True)


def write_tables(setup: TrialSetup, plan: SweepPlan, study: "Study", folder: Path) -> None:
    """Write the tables and the picture of all trials so far."""
    with locked(folder / "study.lock"):
        trials, about = tried(study), (len(setup.data[1]), task_of(setup.card.data).units)
        title = f"Sweep of {setup.card.name}"
        along, *others = (axis.name for axis in plan.space)  # the first axis is the temperature, if a term uses it
        colour_by = next((name for name in others if name != "seed"), "")
        plot_sweep(trials, colour_by, about, title, folder / "sweep.png", along, plan.kind)
        losses = {str(name): weight for name, weight in setup.card.recipe.losses.items()}
        for name, text in {
            "trials.csv": sweep_csv(trials, plan.kind),
            "trials.md": sweep_markdown(trials, losses, title, about, "sweep.png", plan.kind),
        }.items():
            with atomic(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
