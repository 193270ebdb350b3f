"""The tasks that edgekd supports, and the card type of each."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from edgekd.augmentation import Augment
from edgekd.budget import read_budget
from edgekd.card import Card, card_tables, read_tables
from edgekd.card_checks import check_card
from edgekd.errors import ConfigError, did_you_mean, shown
from edgekd.presets import with_presets
from edgekd.scores import ScoreKind
from edgekd.settings import Setting, built_with
from edgekd.spec import build
from edgekd.tasks.detection import DETECTION
from edgekd.tasks.image_classification import IMAGE_CLASSIFICATION
from edgekd.tasks.keyword_spotting import KEYWORD_SPOTTING
from edgekd.tasks.segmentation import SEGMENTATION
from edgekd.tasks.task import Task
from edgekd.tasks.text_classification import TEXT_CLASSIFICATION
from edgekd.tasks.translation import TRANSLATION

__all__ = ["TASKS", "build_card", "deciding", "load_card", "task_named", "task_of"]

TASKS: dict[str, Task] = {
    task.name: task
    for task in (IMAGE_CLASSIFICATION, TEXT_CLASSIFICATION, KEYWORD_SPOTTING, DETECTION, SEGMENTATION, TRANSLATION)
}
"""The tasks by the name that a card gives as `task`."""


def task_of(data: Any) -> Task:
    """Return the task whose cards have a `[data]` of this type."""
    return next(task for task in TASKS.values() if type(data) is task.data)


def task_named(name: str) -> Task:
    """Return the task of that name. Raises ConfigError, with the most similar name, if there is none."""
    if name not in TASKS:
        raise ConfigError(f"task {shown(name)}: {did_you_mean(name[:60], TASKS)}")
    return TASKS[name]


def deciding() -> tuple[ScoreKind, ...]:
    """Return the deciding score of each task, without repetition; that of the default task comes first."""
    first = [TASKS[Card.task], *TASKS.values()]
    return tuple(dict.fromkeys(task.scores[0] for task in first))


def load_card(name: str, settings: Sequence[Setting] = ()) -> Card:
    """Load the bundled card `name`, or the card file at that path, with the values that `settings` replace.

    Raises ConfigError for any mistake in it, with file (or option), key, value, rule and nearest name.
    """
    return built_with(settings, *read_tables(name), lambda tables, path: check_card(_read_card(tables, path)))


def _read_card(tables: dict[str, Any], path: str) -> Card:
    return build_card(card_tables(tables, path), path)


def build_card(tables: dict[str, Any], where: str) -> Card:
    """Build a card of its task's type from these tables. Raises ConfigError that begins with `where` for any
    mistake.
    """
    task = tables.get("task", Card.task)
    if not isinstance(task, str) or task not in TASKS:
        raise ConfigError(f"{where}: task: got {shown(task)}; {did_you_mean(str(task)[:60], TASKS)}")
    kinds = TASKS[task].scores[:1]
    budgets = {
        target: read_budget(limits, f"{where}: [budget.{target}]" if target else f"{where}: [budget]", kinds)
        for target, limits in tables["budgets"].items()
    }
    card = build(_card_type(TASKS[task]), with_presets(tables), where)
    # A plain Card: processes send it to one another, and a class that is made here cannot be pickled.
    plain = {field.name: getattr(card, field.name) for field in dataclasses.fields(Card)}
    return Card(**plain | {"budgets": budgets})


def _card_type(task: Task) -> type[Card]:
    """Make a card type for one task only, so that error messages name only the keys of this task."""

    @dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
    class CardOfTask(Card):
        data: task.data  # type: ignore[name-defined]  # known when the card is read

        @model_validator(mode="after")
        def _check(self) -> "CardOfTask":
            if problem := _foreign_augment(self.augment, task) or task.problem(self.data, self.augment):
                raise ValueError(problem)
            return self

    return CardOfTask


def _foreign_augment(augment: Augment, task: Task) -> str:
    """Describe the first key set in `[augment]` that belongs to another task, and how to correct it; empty if none
    does.
    """
    for field in dataclasses.fields(Augment):
        if field.name in task.augment | {"seed"} or getattr(augment, field.name) == field.default:
            continue
        owners = [other.units for other in TASKS.values() if field.name in other.augment]
        instead = f", {task.units} have {min(task.augment)}" if len(task.augment) == 1 else ""
        whose = f"is for {owners[0]}" if owners else "is for another task"
        return f"augment.{field.name}: {whose}, the task is {task.name}; drop it{instead}"
    return ""
