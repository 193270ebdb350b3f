"""A student before its training: its network, and the weights it starts from."""

import torch
from torch import nn

from edgekd.candidate import Shape, shape_name
from edgekd.card import Card
from edgekd.console import say
from edgekd.errors import ConfigError
from edgekd.nets.families import make
from edgekd.nets.published import weights_file
from edgekd.nets.start import Start, describe, load_fitting
from edgekd.nets.teachers import LoadedTeacher
from edgekd.tasks.known import task_of

__all__ = ["copy_matching", "load_start", "make_student", "message_start", "new_student"]


def make_student(card: Card, shape: Shape, seed: int) -> nn.Module:
    """The student of that shape with random weights, which depend on `seed`."""
    torch.manual_seed(seed)
    return make(card, card.student, shape, "student.knobs")


def new_student(card: Card, shape: Shape, teacher: LoadedTeacher) -> tuple[nn.Module, Start | None]:
    """The untrained student of that shape, initialised with the recipe's seed, and what was loaded from the card's
    `student.weights`, if it names a file. With `init_from_teacher`, the teacher's tensors of equal name and shape are
    copied into it."""
    net = make_student(card, shape, card.recipe.seed)
    start = load_start(card, shape, net)
    if start:
        say(describe("student", start, task_of(card.data).outputs(card.data)))
    if card.recipe.init_from_teacher:
        assert teacher.net is not None  # check_recipe has refused an ONNX teacher
        copied = copy_matching(teacher.net, net)
        say(f"student: {copied} of {len(net.state_dict())} tensors copied from the teacher")
    return net, start


def load_start(card: Card, shape: Shape, net: nn.Module) -> Start | None:
    """Load what fits of the card's `student.weights` into the student. Raises ConfigError if nothing fits."""
    path = weights_file(card, card.student, shape)
    if path is None:
        return None
    try:
        return load_fitting(net, path)
    except ConfigError as error:
        raise ConfigError(f"{message_start(card, shape)}: weights: {error}") from error


def copy_matching(teacher: nn.Module, student: nn.Module) -> int:
    """Copy the teacher's tensors of equal name and shape into the student; return their number."""
    source, own = teacher.state_dict(), student.state_dict()
    same = {name: tensor for name, tensor in source.items() if name in own and own[name].shape == tensor.shape}
    student.load_state_dict(same, strict=False)
    return len(same)


def message_start(card: Card, shape: Shape) -> str:
    """The beginning of messages about the student of that shape."""
    return f"{card.file}: student{f': {shape_name(shape)}' if shape else ''}"
