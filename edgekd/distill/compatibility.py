"""Whether the card's recipe, its networks, their weights and the examples fit one another; if they do, the objective of
the training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgekd.candidate import Shape
from edgekd.card import Card
from edgekd.data.examples import Examples
from edgekd.distill.cache.outputs import shapes
from edgekd.distill.distributed import world
from edgekd.distill.loop import parts_of
from edgekd.distill.objective import Objective, distillation, needs_teacher, student_layers, teacher_layers
from edgekd.distill.sequences import refuse_sequences
from edgekd.distill.tasks.known import learning_of
from edgekd.distill.teacher import with_own_teacher
from edgekd.distill.terms.layers import probe
from edgekd.distill.trial import check_learning, check_small, shape_words
from edgekd.distill.untrained import load_start, make_student, message_start
from edgekd.errors import ConfigError, ModelError
from edgekd.nets.deployed import Deployed
from edgekd.nets.fakequant import fake_quantized
from edgekd.nets.families import make
from edgekd.nets.ssd import SsdLite
from edgekd.nets.teachers import LoadedTeacher
from edgekd.recipe import Recipe
from edgekd.target import Quantization
from edgekd.tasks.known import task_of

__all__ = ["check_networks", "check_recipe", "check_student", "objective_of"]


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
    net = make_student(card, shape, card.recipe.seed)
    load_start(card, shape, net)
    inputs = _first_two(examples)
    for training, where in ((card.recipe, "recipe"), (card.recipe.qat, "recipe.qat")):
        if training:
            check_small(net, card, inputs, training, where)
    check_learning(net, card, inputs, message_start(card, shape))
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
        raise ConfigError(f"{message_start(card, shape)}: recipe.qat: {error}") from error


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
    whole = Deployed(make_student(card, shape, card.recipe.seed), card.data)
    objective_of(card, shape, whole, [given, *further], examples)


def objective_of(
    card: Card, shape: Shape, whole: nn.Module, teachers: Sequence[LoadedTeacher], examples: Examples
) -> Objective:
    """The recipe's objective for these networks; the messages of errors begin with the card's file."""
    recipe = card.recipe
    peers = [
        Deployed(make_student(card, shape, recipe.seed + 7_919 * (n + 1)), card.data) for n in range(_peers(recipe))
    ]
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


def _peers(recipe: Recipe) -> int:
    return recipe.peers if any("mutual" in part.losses for part in recipe.parts()) else 0
