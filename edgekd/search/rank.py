"""Rank candidates by what they learn: successive halving with short distillations (Jamieson and Talwalkar 2016, arXiv
1502.07943), on validation data."""

import dataclasses
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgekd import units
from edgekd.candidate import Candidate, Score, Shape
from edgekd.card import Card
from edgekd.console import say
from edgekd.data.examples import Examples
from edgekd.distill.loop import best_score
from edgekd.distill.student import TrainingOptions, learn, new_student
from edgekd.errors import BudgetError
from edgekd.nets.teachers import LoadedTeacher
from edgekd.scores import ScoreKind
from edgekd.tasks.known import task_of

__all__ = ["Lessons", "halve", "quality", "shortlist"]

STARTERS = 6
"""Number of candidates that are distilled in the first round."""

ROUNDS = 3
"""Number of rounds; each keeps half of the candidates and doubles the epochs."""

SHARE = 8
"""The first round has this part of the recipe's epochs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lessons:
    """What the short distillations share."""

    card: Card
    teachers: Sequence[LoadedTeacher]
    data: tuple[Examples, Examples]
    options: TrainingOptions
    folder: Path
    """Folder of the checkpoints, which is emptied."""


def shortlist(candidates: Sequence[Candidate], count: int = STARTERS) -> list[Candidate]:
    """The most capable candidates (by multiply-accumulates, then parameters), taken from the families by turns."""
    families: dict[Any, list[Candidate]] = {}
    for candidate in sorted(candidates, key=lambda one: (one.macs, one.params), reverse=True):
        families.setdefault(candidate.shape.get("family"), []).append(candidate)
    chosen: list[Candidate] = []
    while len(chosen) < min(count, len(candidates)):
        chosen += [queue.pop(0) for queue in families.values() if queue]
    return chosen[:count]


def halve(
    shapes: Sequence[Shape], lessons: Lessons, known: Sequence[Score], keep: Callable[[Score], None]
) -> list[Score]:
    """Distil all shapes for a few epochs, keep the better half, and go on with twice the epochs; return the scores of
    all rounds, the best shape's last score at the end. `known` scores are not trained again; `keep` is called with each
    further one."""
    found: list[Score] = []
    left, kind = list(shapes), task_of(lessons.card.data).scores[0]
    epochs = max(1, lessons.card.recipe.epochs // SHARE)
    for number in range(ROUNDS):
        scores = []
        for shape in left:
            before = next((one for one in known if one.shape == shape and one.epochs == epochs), None)
            scores.append(before or _score(shape, epochs, lessons))
            if before is None:
                keep(scores[-1])
        scores.sort(key=lambda one: quality(one, kind))
        found += scores
        left = [one.shape for one in scores[len(scores) // 2 :]]
        if len(left) == 1 or number == ROUNDS - 1:
            break
        epochs *= 2
    return found


def _score(shape: Shape, epochs: int, lessons: Lessons) -> Score:
    recipe, kind = lessons.card.recipe, task_of(lessons.card.data).scores[0]
    recipe = recipe.on_logits(recipe) if recipe.stages else recipe  # the terms of the last stage
    short = dataclasses.replace(
        lessons.card,
        recipe=dataclasses.replace(
            recipe, epochs=epochs, warmup_epochs=min(recipe.warmup_epochs, epochs / 4), patience=0
        ),
    )
    net, start = new_student(short, shape, lessons.teachers[0])
    shutil.rmtree(lessons.folder, ignore_errors=True)
    name = f"rank {units.flat(' '.join(f'{key}={value}' for key, value in shape.items()))}"
    try:
        history = learn(
            short,
            shape,
            net,
            lessons.teachers,
            lessons.data,
            lessons.folder / "net",
            lessons.options,
            name,
            start=start,
        )
        value, seconds = best_score(short.recipe, history, kind), sum(entry["seconds"] for entry in history)
    except BudgetError:  # its loss is no longer finite, so it learns nothing with this recipe
        value, seconds = None, 0.0
    shutil.rmtree(lessons.folder, ignore_errors=True)
    told = "no finite loss" if value is None else kind.show(value)
    say(f"{name}: {told} on validation data after {epochs} epoch{'s' if epochs > 1 else ''}")
    return Score(shape, epochs, value, seconds)


def quality(score: Score, kind: ScoreKind) -> float:
    """The score as a number that is higher for a better one."""
    if score.value is None:
        return -math.inf
    return score.value if kind.better == "higher" else -score.value
