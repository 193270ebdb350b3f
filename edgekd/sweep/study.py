"""The trials of a sweep, stored in a journal that several processes share.

A process that takes a trial holds a lock until it has recorded the trial's result; the system releases the lock when
the process ends. If a trial is still running in the journal but its lock is free, its process was killed: the trial
counts as failed and is tried again with the same values, from its last checkpoint. (Optuna detects dead trials by a
heartbeat, which its journal storage does not support.) A trial is given up only if it was killed several times in the
same epoch without being interrupted by the user.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import ConfigError, InputError
from edgekd.files import FileLock, held, locked
from edgekd.imports import require
from edgekd.scores import ACCURACY, ScoreKind
from edgekd.sweep.space import Axis, grid
from edgekd.sweep.table import Tried

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import FloatDistribution
    from optuna.trial import FrozenTrial

__all__ = ["SweepPlan", "abandoned", "checkpoint_folder", "open_study", "take", "tried"]

MOST_TRIES = 3
"""A trial whose process ends this often in the same epoch (perhaps for lack of memory) is not tried again."""

# History of the format of the sweep's conditions, which are stored in the journal:
# 1 - card, shape, epochs, axes, pruning, digests of data and teacher
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """The search space, and the length and number of trials."""

    space: tuple[Axis, ...]
    epochs: int
    trials: int
    """Total over all processes; a killed trial that is tried again counts once."""
    pruning: bool
    seed: int
    """The seed of the sampler."""
    kind: ScoreKind = ACCURACY
    """The score on validation data by which trials are compared."""


def open_study(folder: Path, plan: SweepPlan, conditions: dict[str, Any]) -> "Study":
    """Create or continue the study in `folder/journal.log`.

    Raises ConfigError if it began under other conditions, because its trials could not be compared with new ones.
    """
    optuna = require("optuna", "sweep", "sweep")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal = folder / "journal.log"
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=plan.epochs // 2)
    with locked(folder / "study.lock"):
        with locked(folder / "journal.lock"):
            _cut_half_line(journal)
        backend = optuna.storages.journal.JournalFileBackend(str(journal), lock_obj=FileLock(folder / "journal.lock"))
        try:
            study: Study = optuna.create_study(
                storage=optuna.storages.JournalStorage(backend),
                study_name="sweep",
                direction=f"{plan.kind.best.__name__}imize",
                load_if_exists=True,
                pruner=pruner if plan.pruning else optuna.pruners.NopPruner(),
            )
        except (ValueError, KeyError) as error:
            raise InputError(f"{journal}: not a readable journal; remove {folder} to begin again") from error
        now = {"schema_version": SCHEMA_VERSION} | conditions
        before = study.user_attrs.get("conditions", now)
        for key in sorted(before.keys() | now.keys()):
            was, given = (repr(side[key]) if key in side else "not given" for side in (before, now))
            if was != given:
                raise ConfigError(
                    f"{folder}: {key} was {was} when this sweep began and is {given} now; name another folder with "
                    "--out"
                )
        study.set_user_attr("conditions", now)
    return study


def _cut_half_line(journal: Path) -> None:
    """Remove a partial last line, left by a killed process or a full disk; lines after it would make the journal
    unreadable.
    """
    content = journal.read_bytes() if journal.exists() else b""
    if content and not content.endswith(b"\n"):
        with journal.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


@contextlib.contextmanager
def take(study: "Study", folder: Path, plan: SweepPlan) -> "Iterator[Trial | None]":
    """Yield the next trial and hold its lock until the block ends; None if all are trained or other processes train the
    rest.

    A trial that the user interrupts is tried again by the next process, without a limit.
    """
    with contextlib.ExitStack() as stack:
        with locked(folder / "study.lock"):
            _give_back_killed(study, folder)
            trial = _ask(study, plan)
            if trial is not None:
                stack.enter_context(locked(_lock_of(folder, trial.number)))
        try:
            yield trial
        except KeyboardInterrupt:
            if trial is not None:
                with contextlib.suppress(RuntimeError):  # its result had just been recorded
                    trial.set_user_attr("interrupted", True)
            raise
        if trial is not None:
            _lock_of(folder, trial.number).unlink()


def checkpoint_folder(folder: Path, trial: "Trial") -> Path:
    """Return the folder of the trial's checkpoints; a repeated trial continues in the folder of its predecessor."""
    return folder / "trials" / f"{trial.user_attrs.get('first', trial.number):04d}"


def tried(study: "Study") -> list[Tried]:
    """Return all trials so far, in the order in which they began."""
    return [_row(trial) for trial in study.get_trials(deepcopy=False)]


def _lock_of(folder: Path, number: int) -> Path:
    return folder / "trials" / f"{number:04d}.lock"


def _row(trial: "FrozenTrial") -> Tried:
    values, attributes = trial.intermediate_values, trial.user_attrs
    last = values[max(values)] if values else None
    state, note = trial.state.name.lower(), attributes.get("failed", "")
    if state == "fail" and not note and _tries(trial) >= MOST_TRIES:
        note = f"its process was killed {MOST_TRIES} times in epoch {_reached(trial) + 1}"
    if state == "fail":
        state = "failed" if note else "killed"
    return Tried(
        number=trial.number + 1,
        point=attributes.get("point", {}) | trial.params,
        state=state,
        score=trial.value if state == "complete" else last,
        epochs=max(values, default=0),
        seconds=attributes.get("seconds", 0.0),
        note=note,
    )


def _tries(trial: "FrozenTrial") -> int:
    """Return how often a killed trial was tried without completing one more epoch than the try before."""
    before: int = trial.user_attrs.get("tries", 0)
    if trial.user_attrs.get("interrupted"):
        return before
    return 0 if _reached(trial) > trial.user_attrs.get("reached", 0) else before + 1


def _reached(trial: "FrozenTrial") -> int:
    """Return the number of epochs that were trained, in this try or an earlier one."""
    return max(trial.intermediate_values, default=trial.user_attrs.get("reached", 0))


def abandoned(study: "Study", folder: Path) -> bool:
    """Whether a trial that is said to run has no process any more."""
    from optuna.trial import TrialState

    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return any(not held(_lock_of(folder, trial.number)) for trial in running)


def _give_back_killed(study: "Study", folder: Path) -> None:
    """Mark the trials of dead processes as failed and queue them again. The caller must hold the study's lock."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if held(_lock_of(folder, trial.number)):
            continue
        point, first = _row(trial).point, trial.user_attrs.get("first", trial.number)
        study.tell(trial.number, state=TrialState.FAIL)
        if (tries := _tries(trial)) < MOST_TRIES:
            carried = {"point": point, "first": first, "tries": tries, "reached": _reached(trial)}
            study.enqueue_trial(point, user_attrs=carried)
        _lock_of(folder, trial.number).unlink(missing_ok=True)


def _ask(study: "Study", plan: SweepPlan) -> "Trial | None":
    """Return a waiting trial, or a new one if there are too few. The caller must hold the study's lock."""
    from optuna.samplers import TPESampler

    rows = [row for row in tried(study) if row.state != "killed"]
    waiting = any(row.state == "waiting" for row in rows)
    if not waiting and len(rows) >= plan.trials:
        return None
    # Each trial has its own sampler, so that a continued sweep draws the same values as an uninterrupted one.
    study.sampler = TPESampler(seed=(plan.seed * 1_000_003 + len(rows)) % 2**32)
    if not waiting and (fixed := _least_tried(plan, rows)):
        study.enqueue_trial(fixed, user_attrs={"point": fixed})
    return study.ask({axis.name: _distribution(axis) for axis in plan.space})


def _least_tried(plan: SweepPlan, rows: list[Tried]) -> dict[str, float]:
    """Return the combination of listed values that has been tried least often; empty if all axes are ranges."""
    points = grid(plan.space)
    return min(points, key=lambda point: sum(row.point.items() >= point.items() for row in rows))


def _distribution(axis: Axis) -> "FloatDistribution":
    from optuna.distributions import FloatDistribution

    return FloatDistribution(axis.low, axis.high, log=axis.log)
