"""Rank candidates by what they learn: successive halving with short distillations (Jamieson and Talwalkar 2016, arXiv
1502.07943), on validation data."""

import contextlib
import dataclasses
import hashlib
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgekd import units
from edgekd.candidate import Candidate, Score, Shape, shape_name
from edgekd.card import Card
from edgekd.console import say
from edgekd.data.examples import Examples
from edgekd.distill.loop import best_score
from edgekd.distill.student import TrainingOptions, learn_anew
from edgekd.distributions import wilson
from edgekd.errors import BudgetError
from edgekd.nets.teachers import LoadedTeacher
from edgekd.scores import ScoreKind
from edgekd.tasks.known import task_of
from edgekd.trials import Call, Crew, run_trials

__all__ = ["Lessons", "distil_briefly", "halve", "learn_round", "quality", "shortlist", "why", "worst_first"]

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
    """Folder of the checkpoints, which is removed at the end."""


def shortlist(candidates: Sequence[Candidate], count: int = STARTERS) -> list[Candidate]:
    """The most capable candidates, taken from the families by turns; the most capable of all comes first."""
    families: dict[Any, list[Candidate]] = {}
    for candidate in sorted(candidates, key=lambda one: one.capacity, reverse=True):
        families.setdefault(candidate.shape.get("family"), []).append(candidate)
    chosen: list[Candidate] = []
    while len(chosen) < min(count, len(candidates)):
        chosen += [queue.pop(0) for queue in families.values() if queue]
    return sorted(chosen[:count], key=lambda one: one.capacity, reverse=True)


def halve(
    shapes: Sequence[Shape],
    lessons: Lessons,
    known: Sequence[Score],
    keep: Callable[[Score], None],
    crew: Crew = Crew(),  # noqa: B008 - frozen
    away: Callable[[Shape, int], Call] | None = None,
) -> list[Score]:
    """Distil all shapes for a few epochs, keep the better half, and go on with twice the epochs; return the scores of
    all rounds, the best shape's last score at the end. The most capable shape is given first: where scores differ by
    chance alone, it is the better one (see `worst_first`). `known` scores are not trained again; `keep` is called with
    each further one.

    The distillations of a round are independent trials, which the `crew` runs at the same time; `away(shape, epochs)`
    is then the call that makes one of them in another process."""
    found: list[Score] = []
    left, kind = list(shapes), task_of(lessons.card.data).scores[0]
    for number in range(ROUNDS):
        scores = learn_round(left, lessons, known, keep, number, crew, away)
        scores = worst_first(scores, kind, len(lessons.data[1]))
        found += scores
        kept = [one.shape for one in scores[len(scores) // 2 :]]
        left = [shape for shape in left if shape in kept]
        if len(left) == 1 or number == ROUNDS - 1:
            break
    shutil.rmtree(lessons.folder, ignore_errors=True)
    return found


def learn_round(
    shapes: Sequence[Shape],
    lessons: Lessons,
    known: Sequence[Score],
    keep: Callable[[Score], None],
    number: int = 0,
    crew: Crew = Crew(),  # noqa: B008 - frozen
    away: Callable[[Shape, int], Call] | None = None,
) -> list[Score]:
    """The scores of the shapes, in their order, after the epochs of round `number`; the arguments are those of
    `halve`."""
    epochs = max(1, lessons.card.recipe.epochs // SHARE) * 2**number
    scores = {shape_name(one.shape): one for one in known if one.epochs == epochs}
    missing = [shape for shape in shapes if shape_name(shape) not in scores]
    calls = [away(shape, epochs) if away else (distil_briefly, (lessons, shape, epochs)) for shape in missing]
    with contextlib.closing(run_trials(calls, crew)) as trials:
        for _, score in trials:
            keep(score)
            scores[shape_name(score.shape)] = score
    return [scores[shape_name(shape)] for shape in shapes]


def distil_briefly(lessons: Lessons, shape: Shape, epochs: int) -> Score:
    """Distil a student of that shape for so many epochs, and return its score. An interrupted one goes on."""
    recipe, kind = lessons.card.recipe, task_of(lessons.card.data).scores[0]
    recipe = recipe.on_logits(recipe) if recipe.stages else recipe  # the terms of the last stage
    short = dataclasses.replace(
        lessons.card,
        recipe=dataclasses.replace(
            recipe, epochs=epochs, warmup_epochs=min(recipe.warmup_epochs, epochs / 4), patience=0
        ),
    )
    words = units.flat(" ".join(f"{key}={value}" for key, value in shape.items()))
    folder = lessons.folder / hashlib.sha256(f"{words} {epochs}".encode()).hexdigest()[:12]
    name = f"rank {words}"
    try:
        history = learn_anew(short, shape, lessons.teachers, lessons.data, folder / "net", lessons.options, name)
        value, seconds = best_score(short.recipe, history, kind), sum(entry["seconds"] for entry in history)
    except BudgetError:  # its loss is no longer finite, so it learns nothing with this recipe
        value, seconds = None, 0.0
    shutil.rmtree(folder, ignore_errors=True)
    told = "no finite loss" if value is None else kind.show(value)
    say(f"{name}: {told} on validation data after {epochs} epoch{'s' if epochs > 1 else ''}")
    return Score(shape, epochs, value, seconds)


def worst_first(scores: Sequence[Score], kind: ScoreKind, count: int) -> list[Score]:
    """The scores from the worst to the best one; `scores` are given by capacity, the largest first.

    Small networks learn faster at first, and short distillations on few data scatter. So scores that are worse than the
    highest one by no more than chance count as equal, and among them the larger capacity is better. What chance does
    is known for scores that are shares of `count` examples; others count as equal only if they are.
    """
    best = max(scores, key=lambda one: quality(one, kind))
    equal = [one for one in scores if not _beyond_chance(best, one, kind, count)]
    others = [one for one in scores if one not in equal]
    return [*sorted(others, key=lambda one: quality(one, kind)), *reversed(equal)]


def _beyond_chance(best: Score, other: Score, kind: ScoreKind, count: int) -> bool:
    """Whether the 95 % interval of the difference of two shares excludes 0 (Newcombe 1998, method 10). The interval is
    that of independent examples, which is too wide rather than too narrow for answers to the same ones."""
    if best.value is None or other.value is None or not kind.counted:
        return best.value != other.value
    high, low = (wilson(round(value * count), count) for value in (best.value, other.value))
    return best.value - other.value > math.hypot(high.value - high.low, low.high - low.value)


def why(scores: Sequence[Score], kind: ScoreKind) -> str:
    """Why the shape of the last score is chosen, as words behind its name."""
    last = [quality(one, kind) for one in scores if one.epochs == scores[-1].epochs]
    if quality(scores[-1], kind) == max(last):
        return "learns best"
    return "is the most capable of those that learn best (scores that differ by chance alone count as equal)"


def quality(score: Score, kind: ScoreKind) -> float:
    """The score as a number that is higher for a better one."""
    if score.value is None:
        return -math.inf
    return score.value if kind.better == "higher" else -score.value
