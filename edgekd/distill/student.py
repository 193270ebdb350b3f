"""Distillation of one student, through the card's teacher assistants if it has any."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekd.candidate import Shape
from edgekd.card import Card, Teacher
from edgekd.console import say
from edgekd.data.examples import Examples
from edgekd.distill.cache.outputs import teaching
from edgekd.distill.checkpoint import OtherConditions
from edgekd.distill.compatibility import objective_of
from edgekd.distill.distributed import barrier, world
from edgekd.distill.loop import TrainingJob, best_score, train
from edgekd.distill.objective import needs_teacher
from edgekd.distill.sequences import rewritten
from edgekd.distill.tasks.known import learning_of
from edgekd.distill.untrained import make_student, new_student
from edgekd.files import move, read_json, write_json
from edgekd.nets.deployed import Deployed
from edgekd.nets.families import make
from edgekd.nets.start import Start
from edgekd.nets.teachers import LoadedTeacher, load_teacher_file
from edgekd.nets.weights import load_into, read_state, save_state
from edgekd.recipe import Recipe, Term
from edgekd.run import Run
from edgekd.tasks.known import task_of

__all__ = ["TrainingOptions", "assist", "distill_student", "learn", "learn_anew", "training_summary"]


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """Options of a training that come from the command line, not from the card."""

    online: bool = False
    """Run the teacher in every step instead of caching its outputs; each epoch then has its own augmented view."""
    track: tuple[str, ...] = ()
    minimum: float | None = None
    """If the score on validation data does not reach this, the student is trained again, up to `recipe.attempts` times
    in all."""
    teacher_minimum: float | None = None


def distill_student(
    card: Card,
    shape: Shape,
    teachers: Sequence[LoadedTeacher],
    data: tuple[Examples, Examples],
    run: Run,
    options: TrainingOptions = TrainingOptions(),
) -> nn.Module:
    """Distil the student of that shape with the card's recipe; if its weights file exists, only load it."""
    out = run.student_weights
    net = make_student(card, shape, card.recipe.seed)
    if not out.exists():
        chain = [*assist(card, teachers[0], data, run.teacher_weights.parent, options), *teachers[1:]]
        best, kind = None, task_of(card.data).scores[0]
        for attempt in range(card.recipe.attempts):
            longer = dataclasses.replace(card, recipe=_longer(card.recipe, 2**attempt))
            net, start = new_student(card, shape, chain[0])
            folder = out.parent / f"attempt-{attempt + 1}"
            history = learn(longer, shape, net, chain, data, folder, options, start=start)
            reached = best_score(longer.recipe, history, kind)
            if best is None or kind.improves(reached, best):
                best, chosen = reached, folder
                if world().first:
                    save_state(net, folder.with_suffix(".safetensors"), {"card": card.name})
                    write_json(folder.with_suffix(".json"), {"schema_version": 1, "epochs": history})
            if options.minimum is None or kind.reaches(best, options.minimum) or attempt + 1 == card.recipe.attempts:
                break
            epochs = longer.recipe.epochs
            say(f"student: {kind.show(best)} after {epochs} epochs, {kind.show(options.minimum)} wanted")
        if world().first:
            move(chosen.with_suffix(".json"), out.with_name("history.json"))
            move(chosen.with_suffix(".safetensors"), out)
        barrier()
    if world().first:
        for scratch in out.parent.glob("attempt-*"):
            shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()
    load_into(net, read_state(out), out)
    return net.eval()


def learn_anew(
    card: Card,
    shape: Shape,
    teachers: Sequence[LoadedTeacher],
    data: tuple[Examples, Examples],
    folder: Path,
    options: TrainingOptions = TrainingOptions(),
    name: str = "student",
    stop: Callable[[list[dict[str, Any]]], bool] | None = None,
) -> list[dict[str, Any]]:
    """Train a new student of that shape, as `learn` does, and return its history. A checkpoint that another machine
    wrote is left behind: the training begins again."""
    for again in (False, True):
        net, start = new_student(card, shape, teachers[0])
        try:
            return learn(card, shape, net, teachers, data, folder, options, name, stop, start=start)
        except OtherConditions as error:
            if again:
                raise
            say(f"{name}: {error}; it begins again")
            shutil.rmtree(folder, ignore_errors=True)
    raise AssertionError("the second training returns or raises")


def learn(
    card: Card,
    shape: Shape,
    net: nn.Module,
    teachers: Sequence[LoadedTeacher],
    data: tuple[Examples, Examples],
    folder: Path,
    options: TrainingOptions = TrainingOptions(),
    name: str = "student",
    stop: Callable[[list[dict[str, Any]]], bool] | None = None,
    log: Path | None = None,
    start: Start | None = None,
) -> list[dict[str, Any]]:
    """Train `net`, which has the student's family and `shape`, in place with the card's recipe; return its history.

    `start` says what was loaded into `net` before. The checkpoint is written to `folder`, the log to `log`, by default
    a folder beside `folder`. Raises ConfigError if the recipe does not fit the networks.
    """
    recipe, (examples, validation) = card.recipe, data
    examples = rewritten(card, teachers[0], examples)
    whole = Deployed(net, card.data)
    objective = objective_of(card, shape, whole, teachers, examples)
    needed = teachers if needs_teacher(recipe) else ()
    with teaching(card, needed, examples, objective.teacher_layers, options.online) as outputs:
        job = TrainingJob(
            name=name,
            train=examples,
            validation=validation,
            training=recipe,
            objective=objective,
            teacher=outputs,
            score=learning_of(card.data).score,
            kind=task_of(card.data).scores[0],
            views=recipe.epochs if options.online else recipe.views,
            checkpoint=folder / "checkpoint.pt",
            log=log or folder.parent / "log",
            track=options.track,
            start=start,
            stop=stop,
        )
        return train(whole, job)


def assist(
    card: Card, teacher: LoadedTeacher, data: tuple[Examples, Examples], folder: Path, options: TrainingOptions
) -> list[LoadedTeacher]:
    """A list with the student's teacher: the last of the card's teacher assistants, or `teacher` if there are none.

    Each assistant is distilled from the one before it, the first one from `teacher` (Mirzadeh et al. 2020, arXiv
    1902.03393). The weights of the assistants are saved in `folder`, and only loaded if they exist.
    """
    for number, assistant in enumerate(card.assistants):
        out = folder / f"assistant-{number + 1}.safetensors"
        if not out.exists():
            torch.manual_seed(card.recipe.seed)
            net = make(card, assistant, assistant.shape, "assistants")
            pupil = dataclasses.replace(card, recipe=_for_assistant(card.recipe, assistant))
            scratch = folder / f"assistant-{number + 1}"
            name, log = f"assistant {number + 1}", folder / f"assistant-{number + 1}-log"
            history = learn(pupil, assistant.shape, net, [teacher], data, scratch, options, name, log=log)
            if world().first:
                write_json(out.with_name(f"{out.stem}-history.json"), {"schema_version": 1, "epochs": history})
                save_state(net, out, {"card": card.name})
                shutil.rmtree(scratch)
            barrier()
        teacher = load_teacher_file(dataclasses.replace(card, teacher=assistant), out)
    return [teacher]


def training_summary(card: Card, run: Run, name: str = "student") -> dict[str, Any]:
    """Number of epochs and seconds of the training of the student, or of the `pruned` teacher, and the score of its
    final weights on validation data."""
    kind = task_of(card.data).scores[0]
    history = "history.json" if name == "student" else f"{name}-history.json"
    epochs = read_json(run.student_weights.with_name(history))["epochs"]
    training = card.recipe if name == "student" or card.recipe.prune is None else card.recipe.prune
    return {
        "epochs": len(epochs),
        "seconds": sum(epoch["seconds"] for epoch in epochs),
        kind.history_key: best_score(training, epochs, kind),
    }


def _longer(recipe: Recipe, times: int) -> Recipe:
    stages = tuple(dataclasses.replace(stage, epochs=stage.epochs * times) for stage in recipe.stages)
    return dataclasses.replace(recipe, epochs=recipe.epochs * times, stages=stages)


def _for_assistant(recipe: Recipe, assistant: Teacher) -> Recipe:
    """The recipe for an assistant: the terms on logits of the student recipe's last stage.

    Terms on features are dropped, because their layers are the student's, and `mutual`, because an assistant has no
    peers. It learns from one teacher. If no remaining term uses the teacher, plain KD replaces them. The assistant's
    own [training] section, if it has one, overrides the settings of the recipe.
    """
    losses: dict[Term, float] = {name: weight for name, weight in recipe.parts()[-1].losses.items() if name != "mutual"}
    if not losses.keys() - {"ce"}:
        losses = {}
    plain = dataclasses.replace(
        recipe, alpha=Recipe.alpha, losses=losses, features=(), stages=(), teacher_weights=(), peers=1
    )
    if assistant.training is None:
        return plain
    settings = {field.name: getattr(assistant.training, field.name) for field in dataclasses.fields(assistant.training)}
    return dataclasses.replace(plain, **settings)
