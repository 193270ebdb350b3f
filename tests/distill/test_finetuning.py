"""Teachers and students that start from weights: when they are fine-tuned, at which rate, and that a kill changes
nothing."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgekd.card import Card, Student, Teacher, Training
from edgekd.data.examples import Examples
from edgekd.distill.compatibility import check_networks, check_student
from edgekd.distill.student import distill_student, learn
from edgekd.distill.teacher import refuse_long_teaching, teach, teacher_start
from edgekd.distill.untrained import new_student
from edgekd.errors import ConfigError, InputError
from edgekd.nets.deployed import Deployed
from edgekd.nets.teachers import LoadedTeacher, load_teacher_file, make_teacher_net
from edgekd.nets.weights import read_state, save_state
from edgekd.recipe import Recipe
from edgekd.run import Run
from edgekd.tasks.known import load_card

DIGITS = load_card("digits")
SHAPE = {"channels": [4, 8], "hidden": 8}
Digits = tuple[Examples, Examples]


def card_of(tmp_path: Path, weights: str = "", student: str = "", **training: Any) -> Card:
    """A card in `tmp_path` whose teacher and student are tiny convnets; they start from these files."""
    settings = {"epochs": 1, "batch_size": 50, "learning_rate": 0.05, "warmup_epochs": 0.0} | training
    return dataclasses.replace(
        DIGITS,
        teacher=Teacher(family="convnet", shape=SHAPE, weights=weights, training=Training(**settings)),
        student=Student(family="convnet", knobs={name: [value] for name, value in SHAPE.items()}, weights=student),
        recipe=Recipe(**settings, views=1),
        file=str(tmp_path / "card.toml"),
    )


def file_of(tmp_path: Path, classes: int = 10, **shape: Any) -> Path:
    """The weights of a network for that many classes."""
    card = card_of(tmp_path)
    data = dataclasses.replace(card.data, classes=tuple(map(str, range(classes))))
    other = dataclasses.replace(card, data=data, teacher=dataclasses.replace(card.teacher, shape=SHAPE | shape))
    torch.manual_seed(classes)
    path = tmp_path / f"{classes}{''.join(shape)}.safetensors"
    save_state(make_teacher_net(other), path, {})
    return path


def untrained(card: Card) -> LoadedTeacher:
    torch.manual_seed(9)
    return LoadedTeacher(Deployed(make_teacher_net(card), card.data).eval(), Path("untrained.safetensors"))


def after(epochs: int) -> Callable[[list[dict[str, Any]]], bool]:
    """Ends a training after that many epochs, as a kill between two of them would."""
    return lambda history: len(history) >= epochs


# --- when a teacher is fine-tuned ---


def test_weights_and_training_in_the_card_are_fine_tuning(tmp_path: Path) -> None:
    file = file_of(tmp_path)
    card = card_of(tmp_path, file.name)
    assert teacher_start(card, None) == file
    alone = dataclasses.replace(card, teacher=dataclasses.replace(card.teacher, training=None))
    assert teacher_start(alone, None) is None
    assert teacher_start(card_of(tmp_path), None) is None


def test_a_file_of_the_command_line_is_used_as_it_is_if_it_fits(tmp_path: Path) -> None:
    whole, other = file_of(tmp_path), file_of(tmp_path, 12)
    assert teacher_start(card_of(tmp_path), whole) is None
    assert teacher_start(card_of(tmp_path), other) == other
    assert teacher_start(card_of(tmp_path), tmp_path / "teacher.onnx") is None


def test_a_head_that_nobody_says_how_to_train(tmp_path: Path) -> None:
    file, card = file_of(tmp_path, 12), card_of(tmp_path)
    card = dataclasses.replace(card, teacher=dataclasses.replace(card.teacher, training=None))
    with pytest.raises(InputError) as caught:
        teacher_start(card, file)
    assert str(caught.value) == (
        f"{file}: the head of 12 outputs is replaced by one of 10, trained from new, but the card does not say how: "
        f"add [teacher.training] to {card.file}, with epochs"
    )


def test_weights_of_another_architecture_are_told_at_once(tmp_path: Path) -> None:
    file = file_of(tmp_path, 12, channels=[4, 9])
    with pytest.raises(InputError, match=r"weights of another architecture: .*4.weight is .9, 4, 3, 3."):
        teacher_start(card_of(tmp_path, file.name), None)
    with pytest.raises(InputError, match="no such weights file"):
        teacher_start(card_of(tmp_path, "gone.pt"), None)


def test_a_long_fine_tuning_is_not_begun_without_being_asked(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        refuse_long_teaching(card_of(tmp_path, epochs=10**6), 10**6, Path("any.pt"))
    assert f"{tmp_path / 'card.toml'}: fine-tuning its teacher takes long (" in str(caught.value)


# --- training ---


def test_a_teacher_is_fine_tuned_with_a_new_head(
    digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its loaded layers move, but less far than those of a teacher that is trained from new with the same settings."""
    file = file_of(tmp_path, 12)
    card = card_of(tmp_path, file.name, epochs=12)
    before = read_state(file)
    teacher = teach(card, digits, None, tmp_path / "out" / "teacher.safetensors", start=file)
    assert (
        "teacher: the head of 12 outputs is replaced by one of 10, trained from new; 5 of 6" in capsys.readouterr().err
    )
    after = read_state(teacher.file)
    assert after["11.weight"].shape == (10, 8)
    assert not torch.equal(after["0.weight"], before["0.weight"])
    fresh = teach(card_of(tmp_path, epochs=12), digits, None, tmp_path / "fresh" / "teacher.safetensors")
    torch.manual_seed(0)
    initial = make_teacher_net(card).state_dict()
    moved = float((after["0.weight"] - before["0.weight"]).norm())
    assert moved < 0.5 * float((read_state(fresh.file)["0.weight"] - initial["0.weight"]).norm())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_resumed_fine_tuning_equals_an_undisturbed_one(digits: Digits, tmp_path: Path, optimizer: str) -> None:
    file = file_of(tmp_path, 12)
    settings: dict[str, Any] = {} if optimizer == "adamw" else {"momentum": 0.9}
    card = card_of(tmp_path, student=file.name, epochs=4, optimizer=optimizer, **settings)
    teacher = untrained(card)

    def trained(folder: Path, *ends: int) -> dict[str, Tensor]:
        for end in ends:  # each begins as a new process would: with a new student from the file
            net, start = new_student(card, SHAPE, teacher)
            learn(card, SHAPE, net, [teacher], digits, folder, start=start, stop=after(end))
        return net.state_dict()

    undisturbed, resumed = trained(tmp_path / "one", 4), trained(tmp_path / "two", 1, 3, 4)
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    fresh = dataclasses.replace(card, recipe=dataclasses.replace(card.recipe, loaded_learning_rate_factor=1.0))
    net, start = new_student(fresh, SHAPE, teacher)
    learn(fresh, SHAPE, net, [teacher], digits, tmp_path / "three", start=start)
    assert not torch.equal(net.state_dict()["0.weight"], undisturbed["0.weight"])


def test_a_training_does_not_go_on_from_other_weights(digits: Digits, tmp_path: Path) -> None:
    first, second = file_of(tmp_path, 12), file_of(tmp_path, 13)
    card = card_of(tmp_path, student=first.name, epochs=2)
    teacher = untrained(card)
    net, start = new_student(card, SHAPE, teacher)
    learn(card, SHAPE, net, [teacher], digits, tmp_path / "folder", start=start, stop=after(1))
    other = dataclasses.replace(card, student=dataclasses.replace(card.student, weights=second.name))
    net, start = new_student(other, SHAPE, teacher)
    with pytest.raises(ConfigError, match="was written with SHA-256 of the weights to start from = "):
        learn(other, SHAPE, net, [teacher], digits, tmp_path / "folder", start=start)


def test_a_student_starts_from_its_weights(digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = file_of(tmp_path, 12)
    card = card_of(tmp_path, student=file.name, learning_rate=1e-9)
    run = Run(tmp_path / "run")
    net = distill_student(card, SHAPE, [untrained(card)], digits, run)
    assert f"student: 5 of 6 layers are loaded from {file}; trained from new: 11" in capsys.readouterr().err
    assert torch.allclose(net.get_parameter("4.weight"), read_state(file)["4.weight"], atol=1e-6)
    assert load_teacher_file(card, run.student_weights).net is not None


# --- mistakes that are found before anything is trained ---


def test_weights_that_do_not_fit_a_student(digits: Digits, tmp_path: Path) -> None:
    file = file_of(tmp_path, channels=[5, 9], hidden=7)
    card = card_of(tmp_path, student=file.name)
    for call in (
        lambda: check_student(card, SHAPE, digits[0]),
        lambda: check_networks(card, [SHAPE], untrained(card), [], digits[0]),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert str(caught.value).startswith(
            f"{card.file}: student: channels=[4, 8] hidden=8: weights: {file}: no layer fits the network: "
        )


def test_missing_weights_of_a_student(digits: Digits, tmp_path: Path) -> None:
    card = card_of(tmp_path, student="gone.safetensors")
    with pytest.raises(InputError, match=r"gone.safetensors: no such weights file"):
        check_networks(card, [SHAPE, SHAPE], untrained(card), [], digits[0])
