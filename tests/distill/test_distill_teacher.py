"""Training a teacher until it is good enough, and keeping its logits, one file a view."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd.card import Card, load_card
from edgekd.card import Teacher as TeacherOfCard
from edgekd.data.images import Split, in_memory
from edgekd.data.sources import load_train_and_validation
from edgekd.data.views import view
from edgekd.distill.teacher import given_teacher, refuse_long_teaching, teach, teacher_logits, validation_accuracy
from edgekd.errors import BudgetError, InputError
from edgekd.nets.deployed import Deployed
from edgekd.nets.teachers import Teacher, make_teacher_net
from edgekd.nets.weights import save_state

DIGITS = load_card("digits")


def small_card(epochs: int, attempts: int = 2) -> Card:
    assert DIGITS.teacher.training is not None
    training = dataclasses.replace(DIGITS.teacher.training, epochs=epochs, batch_size=20)
    teacher = TeacherOfCard(
        family="convnet", shape={"channels": [8], "hidden": 16, "grid": 4}, training=training, attempts=attempts
    )
    return dataclasses.replace(DIGITS, teacher=teacher)


@pytest.fixture(scope="module")
def data() -> tuple[Split, Split]:
    train, validation = load_train_and_validation(DIGITS, None)
    return train.subset(np.arange(300)), validation


def epochs_of(history: Path) -> list[float]:
    return [entry["validation_accuracy"] for entry in json.loads(history.read_text())["epochs"]]


class Counting(nn.Module):
    """A network that counts the images it sees."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.images = 0

    def forward(self, images: Tensor) -> Tensor:
        self.images += len(images)
        logits: Tensor = self.net(images)
        return logits


# --- logits ---


def test_logits_are_computed_once_per_view_and_kept(data: tuple[Split, Split], tmp_path: Path) -> None:
    card = small_card(1)
    torch.manual_seed(0)
    module = Counting(Deployed(make_teacher_net(card), card.data)).eval()
    teacher = Teacher(module, tmp_path / "teacher.safetensors")
    # 1,200 images: more than two of the pieces they are computed in.
    images = np.random.default_rng(0).integers(0, 256, (1_200, 8, 8, 1), dtype=np.uint8)
    split = in_memory(images, np.zeros(1_200, np.int64))
    logits = teacher_logits(card, teacher, split, tmp_path / "logits")
    assert module.images == 0

    first = np.array(logits(0))
    assert module.images == 1_200
    assert first.dtype == np.float32
    assert np.array_equal(logits(0), first)
    assert np.array_equal(teacher_logits(card, teacher, split, tmp_path / "logits")(0), first)
    assert module.images == 1_200

    second = np.array(logits(1))
    assert module.images == 2_400
    assert sorted(path.name for path in (tmp_path / "logits").iterdir()) == ["view-000.npy", "view-001.npy"]

    everything = np.arange(1_200)
    for k, given in enumerate((first, second)):
        seen = view(torch.from_numpy(images), everything, k, card.recipe.seed, card.augment)
        with torch.no_grad():
            expected = module.net(seen).numpy()
        assert np.allclose(given, expected, atol=1e-5)
    assert np.abs(first - second).max() > 1e-3


def test_validation_accuracy_counts_by_hand(data: tuple[Split, Split], tmp_path: Path) -> None:
    class Always(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.one_hot(torch.full((len(images),), 3), 10).float()

    labels = data[1].labels
    given = validation_accuracy(Teacher(Always(), tmp_path), data[1])
    assert given == pytest.approx((labels == 3).sum() / len(labels))


# --- teaching ---


@pytest.fixture(scope="module")
def not_enough(data: tuple[Split, Split], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
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
    not_enough: tuple[Path, str], data: tuple[Split, Split], tmp_path: Path
) -> None:
    reached = [epochs_of(not_enough[0].parent / f"teacher-attempt-{n}" / "history.json")[-1] for n in (1, 2)]
    assert reached[0] < reached[1]
    out = tmp_path / "teacher.safetensors"
    teacher = teach(small_card(1), data, reached[1], out)
    assert validation_accuracy(teacher, data[1]) == pytest.approx(reached[1])
    assert epochs_of(tmp_path / "teacher-history.json")[-1] == reached[1]
    assert teacher.file == out
    assert not (tmp_path / "teacher-attempt-2").exists()


def test_a_finished_teacher_is_only_loaded(data: tuple[Split, Split], tmp_path: Path) -> None:
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


def test_a_card_without_weights_and_without_training(data: tuple[Split, Split], tmp_path: Path) -> None:
    card = dataclasses.replace(DIGITS, teacher=dataclasses.replace(DIGITS.teacher, training=None))
    for call in (lambda: teach(card, data, None, tmp_path / "t.safetensors"), lambda: refuse_long_teaching(card, 9)):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == (
            f"{card.file}: the card has neither weights nor [teacher.training]; give the weights with --teacher FILE"
        )


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
