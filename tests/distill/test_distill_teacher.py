"""Training a teacher until it is good enough, and finding those that are given."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd.card import Card, Teacher, Training
from edgekd.data.examples import Examples
from edgekd.data.sources import load_train_and_validation
from edgekd.distill.tasks.known import examples_of
from edgekd.distill.teacher import (
    check_teacher,
    given_teacher,
    more_teachers,
    refuse_long_teaching,
    teach,
    validation_score,
    with_own_teacher,
)
from edgekd.errors import BudgetError, ConfigError, InputError
from edgekd.nets.teachers import LoadedTeacher, make_teacher_net
from edgekd.nets.weights import save_state
from edgekd.tasks.known import load_card

DIGITS = load_card("digits")


def small_card(epochs: int, attempts: int = 2) -> Card:
    assert DIGITS.teacher.training is not None
    training = dataclasses.replace(DIGITS.teacher.training, epochs=epochs, batch_size=20)
    teacher = Teacher(
        family="convnet", shape={"channels": [8], "hidden": 16, "grid": 4}, training=training, attempts=attempts
    )
    return dataclasses.replace(DIGITS, teacher=teacher)


@pytest.fixture(scope="module")
def data() -> tuple[Examples, Examples]:
    train, validation = load_train_and_validation(DIGITS, None)
    return examples_of(DIGITS, train.subset(np.arange(300))), examples_of(DIGITS, validation)


def epochs_of(history: Path) -> list[float]:
    return [entry["validation_accuracy"] for entry in json.loads(history.read_text())["epochs"]]


class Always(nn.Module):
    """A teacher that sees nothing but threes."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot(torch.full((len(images),), 3), 10).float()


def test_validation_accuracy_counts_by_hand(data: tuple[Examples, Examples], tmp_path: Path) -> None:
    labels = data[1].labels
    given = validation_score(DIGITS, LoadedTeacher(Always(), tmp_path), data[1])
    assert given == pytest.approx((labels == 3).sum() / len(labels))


def test_a_given_teacher_below_the_minimum(data: tuple[Examples, Examples]) -> None:
    teacher = LoadedTeacher(Always(), Path("threes.safetensors"))
    share = (data[1].labels == 3).sum() / len(data[1].labels)
    check_teacher(DIGITS, teacher, data[1], None)
    check_teacher(DIGITS, teacher, data[1], share)
    with pytest.raises(BudgetError) as caught:
        check_teacher(DIGITS, teacher, data[1], 0.97)
    assert str(caught.value).startswith(
        f"threes.safetensors: the teacher reaches {100 * share:.2f} % on validation data, "
        "teacher_min_accuracy is 97.00 %; "
    )


# --- teaching ---


@pytest.fixture(scope="module")
def not_enough(data: tuple[Examples, Examples], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the message of a teacher that never is good enough."""
    out = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    with pytest.raises(BudgetError) as caught:
        teach(small_card(1), data, 1.5, out)
    return out, str(caught.value)


def test_below_the_minimum_it_trains_again_with_twice_the_epochs(not_enough: tuple[Path, str]) -> None:
    out, message = not_enough
    histories = [epochs_of(out.parent / f"teacher-attempt-{n}" / "history.json") for n in (1, 2)]
    assert [len(history) for history in histories] == [1, 2]
    assert not (out.parent / "teacher-attempt-3").exists()
    assert not out.exists()
    best = max(history[-1] for history in histories)
    assert message.startswith(f"the teacher reaches {100 * best:.2f} % on validation data in 2 attempts, ")
    assert "teacher_min_accuracy is 150.00 %" in message
    for advice in ("[teacher.training] epochs", "[teacher] shape", "lower teacher_min_accuracy"):
        assert advice in message


def test_the_second_attempt_may_be_good_enough(
    not_enough: tuple[Path, str], data: tuple[Examples, Examples], tmp_path: Path
) -> None:
    reached = [epochs_of(not_enough[0].parent / f"teacher-attempt-{n}" / "history.json")[-1] for n in (1, 2)]
    assert reached[0] < reached[1]
    out = tmp_path / "teacher.safetensors"
    teacher = teach(small_card(1), data, reached[1], out)
    assert validation_score(DIGITS, teacher, data[1]) == pytest.approx(reached[1])
    assert epochs_of(tmp_path / "teacher-history.json")[-1] == reached[1]
    assert teacher.file == out
    assert not (tmp_path / "teacher-attempt-2").exists()


def test_a_finished_teacher_is_only_loaded(data: tuple[Examples, Examples], tmp_path: Path) -> None:
    card, out = small_card(1), tmp_path / "teacher.safetensors"
    torch.manual_seed(7)
    net = make_teacher_net(card)
    save_state(net, out, {})
    before = out.read_bytes()
    teacher = teach(card, data, 1.5, out)
    assert teacher.net is not None
    assert torch.equal(teacher.net.state_dict()["0.weight"], net.state_dict()["0.weight"])
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.safetensors"]


def test_a_card_without_weights_and_without_training(data: tuple[Examples, Examples], tmp_path: Path) -> None:
    card = dataclasses.replace(DIGITS, teacher=dataclasses.replace(DIGITS.teacher, training=None))
    for call in (lambda: teach(card, data, None, tmp_path / "t.safetensors"), lambda: refuse_long_teaching(card, 9)):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == (
            f"{card.file}: the card has neither weights nor [teacher.training]; give the weights with --teacher FILE, "
            "or say how to train the teacher in [teacher.training]"
        )


def test_a_misspelt_family_is_told_first() -> None:
    card = dataclasses.replace(DIGITS, teacher=Teacher(family="convnett"))
    with pytest.raises(ConfigError, match=r"teacher\.family: unknown family 'convnett'; did you mean 'convnet'"):
        refuse_long_teaching(card, 9)


def test_a_teacher_that_takes_hours_is_not_trained_by_the_way() -> None:
    card = load_card("cifar10")  # ResNet-56, 160 epochs
    with pytest.raises(InputError, match=r"training its teacher takes long \(3e\+15 .*`edgekd teach`.*--teacher FILE"):
        refuse_long_teaching(card, 45_000)
    refuse_long_teaching(DIGITS, 1_222)


def test_a_given_file_wins_over_the_cards(tmp_path: Path) -> None:
    assert given_teacher(DIGITS, None) is None
    card = dataclasses.replace(
        DIGITS,
        teacher=dataclasses.replace(DIGITS.teacher, weights="mine.safetensors"),
        file=str(tmp_path / "card.toml"),
    )
    for seed, name in enumerate(("mine.safetensors", "other.safetensors")):
        torch.manual_seed(seed)
        save_state(make_teacher_net(card), tmp_path / name, {})
    files = [given_teacher(card, file) for file in (None, tmp_path / "other.safetensors")]
    assert [teacher.file.name for teacher in files if teacher] == ["mine.safetensors", "other.safetensors"]


# --- further teachers, and the student as its own ---


def test_further_teachers_are_read_from_their_files(tmp_path: Path) -> None:
    card = dataclasses.replace(small_card(1), file=str(tmp_path / "card.toml"))
    shapes = [{"channels": [width], "hidden": 8} for width in (4, 6)]
    further = [Teacher(family="convnet", shape=shape, weights=f"{n}.pt") for n, shape in enumerate(shapes)]
    nets = []
    for one in further:
        nets.append(make_teacher_net(dataclasses.replace(card, teacher=one)))
        torch.save(nets[-1].state_dict(), tmp_path / one.weights)
    found = more_teachers(dataclasses.replace(card, more_teachers=tuple(further)))
    assert [teacher.file for teacher in found] == [tmp_path / "0.pt", tmp_path / "1.pt"]
    for teacher, net in zip(found, nets, strict=True):
        assert teacher.net is not None
        assert torch.equal(teacher.net.state_dict()["0.weight"], net.state_dict()["0.weight"])
        assert not teacher.module.training
    assert more_teachers(card) == []


def test_a_further_teacher_without_a_file(tmp_path: Path) -> None:
    further = Teacher(family="convnet", shape={"channels": [4], "hidden": 8})
    card = dataclasses.replace(small_card(1), more_teachers=(further,))
    with pytest.raises(InputError) as caught:
        more_teachers(card)
    assert str(caught.value) == f"{card.file}: more_teachers[0].weights: is missing; name its weights file"


def test_the_student_as_its_own_teacher() -> None:
    shape = {"channels": [4, 8], "hidden": 8}
    card = dataclasses.replace(DIGITS, teacher=Teacher(family="self"))
    own = with_own_teacher(card, shape).teacher
    assert (own.family, own.shape) == ("convnet", shape)
    # It learns alone as the student learns, unless the card says how.
    assert own.training == Training(epochs=40, batch_size=64, learning_rate=0.05)
    training = Training(epochs=3)
    asked = dataclasses.replace(card, teacher=Teacher(family="self", training=training))
    assert with_own_teacher(asked, shape).teacher.training == training
    assert with_own_teacher(DIGITS, shape) is DIGITS


def test_a_teacher_that_is_the_students_own_network_has_no_file(tmp_path: Path) -> None:
    card = dataclasses.replace(DIGITS, teacher=Teacher(family="self"))
    with pytest.raises(
        InputError, match=r'teacher\.family = "self" is trained here, as the student.s own network; drop '
    ):
        given_teacher(card, tmp_path / "t.safetensors")
