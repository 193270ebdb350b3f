"""A student before its training: which of the teacher's tensors it begins with."""

import torch
from torch import nn

from edgekd.card import Student
from edgekd.distill.untrained import copy_matching
from edgekd.nets.families import make
from edgekd.tasks.known import load_card


def convnet(channels: list[int], hidden: int) -> nn.Module:
    shape = {"channels": channels, "hidden": hidden}
    return make(load_card("digits"), Student(family="convnet"), shape, "student.knobs")


def test_equal_tensors_are_copied() -> None:
    teacher, student = convnet([4, 8], 8), convnet([4, 8], 8)
    # Two convolutions, two batch norms of five tensors, two linear layers of two.
    assert copy_matching(teacher, student) == 2 + 2 * 5 + 2 * 2 == len(student.state_dict())
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, student.state_dict()[name]), name


def test_tensors_of_another_size_stay() -> None:
    teacher, student = convnet([4, 16], 8), convnet([4, 8], 8)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    # Equal: the first convolution and batch norm, the second norm's counter, the hidden bias, the last layer.
    assert copy_matching(teacher, student) == 1 + 5 + 1 + 1 + 2
    assert torch.equal(student.state_dict()["0.weight"], teacher.state_dict()["0.weight"])
    assert torch.equal(student.state_dict()["4.weight"], before["4.weight"])


def test_a_deeper_teacher_gives_what_the_student_has() -> None:
    # Names are places in the sequence: 5.bias is a batch norm's in the teacher, a layer's in the student.
    assert copy_matching(convnet([4, 8, 8], 8), convnet([4], 8)) == 1 + 5 + 1
    assert copy_matching(convnet([4, 8, 8], 8), convnet([4], 7)) == 1 + 5
