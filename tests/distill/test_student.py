"""Distilling one student: what is copied from the teacher, what is kept, what is thrown away."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekd.card import Card, Student, load_card
from edgekd.data.images import Split
from edgekd.data.sources import load_train_and_validation
from edgekd.distill import student as module
from edgekd.distill.student import copy_matching, distill_student
from edgekd.nets.deployed import Deployed
from edgekd.nets.families import make
from edgekd.nets.teachers import Teacher, make_teacher_net
from edgekd.nets.weights import read_state
from edgekd.run import Run

DIGITS = load_card("digits")
SHAPE = {"channels": [4, 8], "hidden": 8}


def convnet(channels: list[int], hidden: int) -> torch.nn.Module:
    return make(DIGITS, Student(family="convnet"), {"channels": channels, "hidden": hidden}, "student.knobs")


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


@pytest.fixture(scope="module")
def data() -> tuple[Split, Split]:
    train, validation = load_train_and_validation(DIGITS, None)
    return train.subset(np.arange(200)), validation.subset(np.arange(50))


def card_of(**recipe: object) -> Card:
    changed = dataclasses.replace(DIGITS.recipe, epochs=2, views=2, **recipe)  # type: ignore[arg-type]
    teacher = dataclasses.replace(DIGITS.teacher, shape={"channels": [4, 8], "hidden": 8})
    return dataclasses.replace(DIGITS, recipe=changed, teacher=teacher)


def teacher_of(card: Card) -> Teacher:
    torch.manual_seed(11)
    return Teacher(Deployed(make_teacher_net(card), card.data).eval(), Path("teacher.safetensors"))


def test_distilling_keeps_the_student_and_its_history(
    data: tuple[Split, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, run = card_of(), Run(tmp_path)
    net = distill_student(card, SHAPE, teacher_of(card), data, run)
    assert not net.training
    stored = read_state(run.student_weights)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in stored.items())
    history = json.loads(run.student_weights.with_name("history.json").read_text())["epochs"]
    assert [entry["epoch"] for entry in history] == [1, 2]
    # The checkpoint and the teacher's logits are large, and nobody needs them again.
    assert sorted(path.name for path in run.student_weights.parent.iterdir()) == ["history.json", "student.safetensors"]
    assert not run.teacher_logits.exists()

    monkeypatch.setattr(module, "train", lambda *_: pytest.fail("it trained again"))
    again = distill_student(card, SHAPE, teacher_of(card), data, run)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in stored.items())


def test_the_student_may_begin_with_the_teachers_tensors(
    data: tuple[Split, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[dict[str, torch.Tensor]] = []

    def stop(net: torch.nn.Module, job: object) -> None:
        begun.append(net.state_dict())
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", stop)
    for init in (True, False):
        card = card_of(init_from_teacher=init)
        with pytest.raises(KeyboardInterrupt):
            distill_student(card, SHAPE, teacher_of(card), data, Run(tmp_path / str(init)))
    wanted = teacher_of(card_of()).net
    assert wanted is not None
    assert torch.equal(begun[0]["0.weight"], wanted.state_dict()["0.weight"])
    assert not torch.equal(begun[1]["0.weight"], wanted.state_dict()["0.weight"])
    assert capsys.readouterr().err == "student: 16 of 16 tensors copied from the teacher\n"
