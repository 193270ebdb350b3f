"""Distillation of one student, through the card's teacher assistants if it has any."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekd.candidate import Shape, shape_name
from edgekd.card import Card, Teacher
from edgekd.console import say
from edgekd.data.examples import Examples
from edgekd.distill.cache.outputs import shapes, teaching
from edgekd.distill.checkpoint import OtherConditions
from edgekd.distill.distributed import barrier, world
from edgekd.distill.loop import TrainingJob, best_score, parts_of, train
from edgekd.distill.objective import Objective, distillation, student_layers, teacher_layers
from edgekd.distill.sequences import refuse_sequences, rewritten
from edgekd.distill.tasks.known import learning_of
from edgekd.distill.teacher import with_own_teacher
from edgekd.distill.terms.layers import probe
from edgekd.distill.trial import check_learning, check_small, shape_words
from edgekd.errors import ConfigError, ModelError
from edgekd.files import move, read_json, write_json
from edgekd.nets.deployed import Deployed
from edgekd.nets.fakequant import fake_quantized
from edgekd.nets.families import make
from edgekd.nets.published import weights_file
from edgekd.nets.ssd import SsdLite
from edgekd.nets.start import Start, describe, load_fitting
from edgekd.nets.teachers import LoadedTeacher, load_teacher_file
from edgekd.nets.weights import load_into, read_state, save_state
from edgekd.recipe import Recipe, Term
from edgekd.run import Run
from edgekd.target import Quantization
from edgekd.tasks.known import task_of

__all__ = [
    "TrainingOptions",
    "assist",
    "check_networks",
    "check_recipe",
    "check_student",
    "copy_matching",
    "distill_student",
    "learn",
    "learn_anew",
    "new_student",
    "training_summary",
]


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
    net = _new(card, shape, card.recipe.seed)
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


def new_student(card: Card, shape: Shape, teacher: LoadedTeacher) -> tuple[nn.Module, Start | None]:
    """The untrained student of that shape, initialised with the recipe's seed, and what was loaded from the card's
    `student.weights`, if it names a file. With `init_from_teacher`, the teacher's tensors of equal name and shape are
    copied into it."""
    net = _new(card, shape, card.recipe.seed)
    start = _load_start(card, shape, net)
    if start:
        say(describe("student", start, task_of(card.data).outputs(card.data)))
    if card.recipe.init_from_teacher:
        assert teacher.net is not None  # check_recipe has refused an ONNX teacher
        copied = copy_matching(teacher.net, net)
        say(f"student: {copied} of {len(net.state_dict())} tensors copied from the teacher")
    return net, start


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


def _load_start(card: Card, shape: Shape, net: nn.Module) -> Start | None:
    """Load what fits of the card's `student.weights` into the student. Raises ConfigError if nothing fits."""
    path = weights_file(card, card.student, shape)
    if path is None:
        return None
    try:
        return load_fitting(net, path)
    except ConfigError as error:
        raise ConfigError(f"{_student(card, shape)}: weights: {error}") from error


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
    objective = _objective(card, shape, whole, teachers, examples)
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


def check_networks(
    card: Card,
    shapes: Sequence[Shape],
    given: LoadedTeacher | None,
    further: Sequence[LoadedTeacher],
    examples: Examples,
) -> None:
    """Raise ConfigError if networks, layers and weights do not fit one another, before anything is measured, trained or
    written. Of the student's shapes, only the first one that can be trained is checked."""
    shape = _first_usable(card, shapes, examples)
    card = with_own_teacher(card, shape)
    trained = [] if given else [("teacher", card.teacher)]
    trained += [(f"assistants[{number}]", assistant) for number, assistant in enumerate(card.assistants)]
    for name, network in trained:
        net = make(card, network, network.shape, "teacher.shape" if name == "teacher" else "assistants")
        check_learning(net, card, _first_two(examples), f"{card.file}: {name}")
        if network.training:
            where = f"{card.file}: {name}.training"
            learning_of(card.data).weights(network.training, examples.labels, card.data, f"{where}.class_weights")
            parts_of(where, network.training, len(examples))
            check_small(net, card, _first_two(examples), network.training, f"{name}.training")
    check_recipe(card, shape, given, further, examples)
    parts_of(f"{card.file}: recipe", card.recipe, len(examples))


def _first_usable(card: Card, shapes: Sequence[Shape], examples: Examples) -> Shape:
    errors = []
    for shape in shapes:
        try:
            check_student(card, shape, examples)
        except ConfigError as error:
            errors.append(error)
        else:
            return shape
    raise errors[0]


def check_student(card: Card, shape: Shape, examples: Examples) -> None:
    """Raise ConfigError if the student of that shape cannot be built, takes nothing from the card's `student.weights`,
    cannot be trained on the examples, or, with `[recipe.qat]`, cannot be trained for int8. Raises InputError if these
    weights cannot be read."""
    net = _new(card, shape, card.recipe.seed)
    _load_start(card, shape, net)
    inputs = _first_two(examples)
    for training, where in ((card.recipe, "recipe"), (card.recipe.qat, "recipe.qat")):
        if training:
            check_small(net, card, inputs, training, where)
    check_learning(net, card, inputs, _student(card, shape))
    if card.recipe.qat:
        _refuse_float(card, shape, net)


def _refuse_float(card: Card, shape: Shape, net: nn.Module) -> None:
    """Raise ConfigError if the student cannot be trained for int8: an operation of it would stay in float."""
    if task_of(card.data).calibration != "static":
        raise ConfigError(f"{card.file}: recipe.qat: has no effect with task = {card.task!r}, whose int8 is dynamic")
    if card.task == "detection":
        raise ConfigError(
            f"{card.file}: recipe.qat: detectors cannot be trained for int8, because what decodes their boxes stays in "
            "float; leave [recipe.qat] out"
        )
    try:
        fake_quantized(net, card.data, Quantization())
    except ModelError as error:
        raise ConfigError(f"{_student(card, shape)}: recipe.qat: {error}") from error


def _student(card: Card, shape: Shape) -> str:
    """The beginning of messages about the student of that shape."""
    return f"{card.file}: student{f': {shape_name(shape)}' if shape else ''}"


def check_recipe(
    card: Card, shape: Shape, given: LoadedTeacher | None, further: Sequence[LoadedTeacher], examples: Examples
) -> None:
    """Raise ConfigError if the recipe does not fit the networks, before anything is trained.

    A teacher that is not trained yet is built with random weights for this check.
    """
    built = card.assistants[-1] if card.assistants else card.teacher
    if card.assistants or given is None:
        net = make(card, built, built.shape, "assistants" if card.assistants else "teacher.shape")
        given = LoadedTeacher(Deployed(net, card.data), Path())
    if card.recipe.init_from_teacher and given.net is None:
        raise ConfigError(f"{card.file}: recipe.init_from_teacher: an ONNX teacher has no tensors to copy")
    whole = Deployed(_new(card, shape, card.recipe.seed), card.data)
    _objective(card, shape, whole, [given, *further], examples)


def _objective(
    card: Card, shape: Shape, whole: nn.Module, teachers: Sequence[LoadedTeacher], examples: Examples
) -> Objective:
    """The recipe's objective for these networks; the messages of errors begin with the card's file."""
    recipe = card.recipe
    peers = [Deployed(_new(card, shape, recipe.seed + 7_919 * (n + 1)), card.data) for n in range(_peers(recipe))]
    found = probe(whole, _first_two(examples), student_layers(recipe), f"{card.file}: recipe.features: student")
    _require_outputs(card, found, examples, "student")
    if isinstance(whole, Deployed) and isinstance(whole.net, SsdLite):
        raise ConfigError(f"{card.file}: student.family: ssdlite is for teachers; take detector")
    try:
        learning = learning_of(card.data)
        _check_terms(recipe, teachers)
        refuse_sequences(card, teachers[0], examples)
        if learning.soft is not None:
            _refuse_terms_on_logits(recipe)
        weights = learning.weights(recipe, examples.labels, card.data, "recipe.class_weights")
        torch.manual_seed(recipe.seed)
        theirs = shapes(teachers[0], examples, teacher_layers(recipe)) if needs_teacher(recipe) else {}
        if learning.soft is not None and theirs and theirs["logits"] != found["logits"]:
            if not learning.by_answers(card, tuple(theirs["logits"])):
                _refuse_other_places(found["logits"], theirs["logits"])
            _refuse_all_but_answers(recipe, teachers)

        def hard(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return learning.loss(outputs, targets, recipe.label_smoothing, weights)

        own = (learning.soft, learning.rows, learning.foreground, learning.groups)
        return distillation(recipe, found, theirs, len(examples), hard, peers, *own)
    except ConfigError as error:
        raise ConfigError(f"{card.file}: {error}") from error


def _check_terms(recipe: Recipe, teachers: Sequence[LoadedTeacher]) -> None:
    """Raise ConfigError if the recipe's terms do not fit the teachers."""
    if recipe.teacher_weights and len(recipe.teacher_weights) != len(teachers):
        raise ConfigError(
            f"recipe.teacher_weights: got {len(recipe.teacher_weights)} weights; there are {len(teachers)} teachers"
        )
    if teachers[0].net is None and teacher_layers(recipe):
        raise ConfigError(
            "recipe.features: teacher: an ONNX teacher has no layers to learn from, only logits; leave `teacher` out, "
            "or give the teacher's torch weights"
        )
    if world().size > 1 and any(feature.term == "crd" for part in recipe.parts() for feature in part.features):
        raise ConfigError("recipe.features: crd keeps its memory in one process; run without torchrun")


def _refuse_terms_on_logits(recipe: Recipe) -> None:
    """Raise ConfigError if the recipe needs logits of classes, which the outputs of the task are not."""
    used = {str(name) for part in recipe.parts() for name in part.losses}
    if wrong := sorted(used - {"ce", "kd", "mse"}):
        raise ConfigError(f"recipe.losses: {wrong[0]}: needs logits of classes; this task has ce, kd and mse")
    given = {"sampling": recipe.sampling != "none", "standardize": recipe.standardize}
    if others := [name for name, used_here in given.items() if used_here]:
        raise ConfigError(f"recipe.{others[0]}: needs logits of classes, which the outputs of this task are not")


def _refuse_other_places(mine: torch.Size, theirs: torch.Size) -> None:
    raise ConfigError(
        f"recipe.losses: kd: the student gives {shape_words(tuple(mine))} outputs and the teacher "
        f"{shape_words(tuple(theirs))}; both should have the same places, which `strides` in their shapes say"
    )


def _refuse_all_but_answers(recipe: Recipe, teachers: Sequence[LoadedTeacher]) -> None:
    """Raise ConfigError if the recipe needs more of a teacher that looks at other places than its detections."""
    used = {str(name) for part in recipe.parts() for name in part.losses}
    if "mse" in used:
        raise ConfigError(
            "recipe.losses: mse: compares places one by one, and the teacher has others; kd learns from its detections"
        )
    if len(teachers) > 1:
        raise ConfigError("more_teachers: kd from detections takes one teacher, whose places are not the student's")


def _require_outputs(card: Card, found: dict[str, torch.Size], examples: Examples, name: str) -> None:
    """Raise ConfigError if the network does not have as many outputs as the task needs."""
    task = task_of(card.data)
    given = tuple(_first_two(examples).shape)
    if not task.gives(found["logits"], card.data, given):
        raise ConfigError(
            f"{card.file}: {name}: the network gives {tuple(found['logits'])} outputs for {task.targets(card.data)}; "
            f"its last layer should give {shape_words(task.shape(card.data, given)[1:])}"
        )


def _first_two(examples: Examples) -> torch.Tensor:
    """The inputs of the first two examples, to try out a network."""
    return examples.batch(np.arange(min(2, len(examples))), 0).inputs


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


def needs_teacher(recipe: Recipe) -> bool:
    """Whether any term of the recipe uses a teacher's outputs."""
    return any(part.features or part.losses.keys() - {"ce", "mutual"} for part in recipe.parts())


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


def copy_matching(teacher: nn.Module, student: nn.Module) -> int:
    """Copy the teacher's tensors of equal name and shape into the student; return their number."""
    source, own = teacher.state_dict(), student.state_dict()
    same = {name: tensor for name, tensor in source.items() if name in own and own[name].shape == tensor.shape}
    student.load_state_dict(same, strict=False)
    return len(same)


def _new(card: Card, shape: Shape, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make(card, card.student, shape, "student.knobs")


def _peers(recipe: Recipe) -> int:
    return recipe.peers if any("mutual" in part.losses for part in recipe.parts()) else 0


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
