"""What a network takes from a weights file before it is fine-tuned, and which head it gets."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekd.card import Card, Student, Teacher, Training
from edgekd.errors import ConfigError, InputError
from edgekd.nets.families import make
from edgekd.nets.start import describe, load_all_but_head, load_fitting
from edgekd.nets.weights import save_state
from edgekd.tasks.known import load_card

DIGITS = load_card("digits")
SHAPE = {"channels": [4, 6], "hidden": 8}


def card_of(classes: int, family: str = "convnet", shape: dict[str, Any] = SHAPE) -> Card:
    data = dataclasses.replace(DIGITS.data, classes=tuple(f"class {number}" for number in range(classes)))
    teacher = Teacher(family=family, shape=shape, training=Training(epochs=1))
    return dataclasses.replace(DIGITS, data=data, teacher=teacher)


def net_of(classes: int, seed: int = 0, family: str = "convnet", shape: dict[str, Any] = SHAPE) -> nn.Module:
    torch.manual_seed(seed)
    return make(card_of(classes), Student(family=family), shape, "student.knobs")


def copy(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The weights of a network for ten classes."""
    net = net_of(10, seed=5)
    with torch.no_grad():
        net.get_buffer("1.running_mean").fill_(0.25)
    save_state(net, tmp_path / "ten.safetensors", {})
    return tmp_path / "ten.safetensors"


def test_a_head_of_other_classes_keeps_the_values_of_its_seed(file: Path) -> None:
    net, theirs = net_of(3, seed=1), copy(net_of(10, seed=5))
    before = copy(net)
    start = load_all_but_head(net, card_of(3), file)
    assert start.new == ("11",)
    assert start.outputs == {"11": 10}
    for name, value in net.state_dict().items():
        expected = before[name] if name.startswith("11.") else theirs[name]
        assert torch.equal(value, torch.full((4,), 0.25) if name == "1.running_mean" else expected)
    assert "0.weight" in start.parameters and not {"11.weight", "11.bias", "1.running_mean"} & start.parameters
    assert describe("teacher", start, 3) == (
        "teacher: the head of 10 outputs is replaced by one of 3, trained from new; 5 of 6 layers are loaded from "
        f"{file}"
    )
    assert describe("student", start, 3) == f"student: 5 of 6 layers are loaded from {file}; trained from new: 11"


def test_a_file_without_a_head(file: Path, tmp_path: Path) -> None:
    body = {name: value for name, value in copy(net_of(10, seed=5)).items() if not name.startswith("11.")}
    torch.save({"model_state_dict": {f"module.{name}": value for name, value in body.items()}}, tmp_path / "body.pt")
    start = load_all_but_head(net_of(3), card_of(3), tmp_path / "body.pt")
    assert start.new == ("11",)
    assert describe("teacher", start, 3).startswith(
        "teacher: the file has no head; it gets one of 3, trained from new;"
    )


def test_weights_that_fit_whole(file: Path) -> None:
    net = net_of(10)
    start = load_all_but_head(net, card_of(10), file)
    assert start.new == ()
    assert start.parameters == {name for name, _ in net.named_parameters()}
    assert describe("teacher", start, 10) == f"teacher: 6 of 6 layers are loaded from {file}"


def test_a_teacher_of_another_size_is_refused_and_the_head_is_not_blamed(file: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_all_but_head(net_of(3, shape={"channels": [4, 9], "hidden": 8}), card_of(3), file)
    text = str(caught.value)
    assert text.startswith(f"{file}: weights of another architecture: ")
    assert "4.weight is (6, 4, 3, 3), wanted (9, 4, 3, 3)" in text
    assert "11." not in text


def test_a_head_behind_which_a_layer_runs_is_not_found(tmp_path: Path) -> None:
    class Odd(nn.Module):
        """Its classes come from a parameter of its own."""

        def __init__(self, classes: int) -> None:
            super().__init__()
            self.body = nn.Linear(64, 7)
            self.classes = nn.Parameter(torch.zeros(7, classes))

        def forward(self, images: Tensor) -> Tensor:
            found: Tensor = self.body(images.flatten(1)) @ self.classes
            return found

    save_state(Odd(10), tmp_path / "odd.safetensors", {})
    with pytest.raises(InputError) as caught:
        load_all_but_head(Odd(3), card_of(3), tmp_path / "odd.safetensors")
    assert str(caught.value).endswith(
        "classes is (7, 10), wanted (7, 3)); a head that could be replaced was not found: no linear layer or "
        "convolution with 3 outputs runs last"
    )


@pytest.mark.parametrize(("model", "head"), [("squeezenet1_1", "classifier.1"), ("mobilenet_v3_small", "classifier.3")])
def test_heads_of_torchvision(tmp_path: Path, model: str, head: str) -> None:
    """SqueezeNet's head is a convolution."""
    card = card_of(5, "torchvision", {"model": model})
    data = dataclasses.replace(card.data, size=32, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    few, many = (
        dataclasses.replace(card, data=dataclasses.replace(data, classes=tuple(map(str, range(count)))))
        for count in (5, 12)
    )
    save_state(make(many, many.teacher, many.teacher.shape, "teacher.shape"), tmp_path / "twelve.safetensors", {})
    start = load_all_but_head(
        make(few, few.teacher, few.teacher.shape, "teacher.shape"), few, tmp_path / "twelve.safetensors"
    )
    assert start.new == (head,)
    assert start.outputs == {head: 12}


# --- students ---


def test_a_student_takes_the_layers_that_fit(file: Path) -> None:
    net = net_of(10, seed=1, shape={"channels": [4, 6, 6], "hidden": 8})
    before, theirs = copy(net), copy(net_of(10, seed=5))
    start = load_fitting(net, file)
    assert set(start.loaded) == {"0", "1", "4", "5"}
    assert torch.equal(net.get_parameter("4.weight"), theirs["4.weight"])
    assert torch.equal(net.get_buffer("1.running_mean"), torch.full((4,), 0.25))
    for layer in start.new:
        assert all(torch.equal(net.state_dict()[name], before[name]) for name in before if name.startswith(f"{layer}."))
    assert describe("student", start, 10) == (
        f"student: 4 of 8 layers are loaded from {file}; trained from new: 8, 9, 13, …; not used: 2 tensors of the "
        "file (11.bias, 11.weight)"
    )


def test_a_bias_alone_is_not_taken(file: Path) -> None:
    """The head's biases fit, its weights do not: half a layer is of no use."""
    net = net_of(10, seed=1, shape={"channels": [4, 6], "hidden": 9})
    before = copy(net)
    start = load_fitting(net, file)
    assert start.new == ("9", "11")
    assert torch.equal(net.get_parameter("11.bias"), before["11.bias"])


def test_a_convolution_into_which_its_normalisation_was_folded_is_not_taken(file: Path, tmp_path: Path) -> None:
    state = copy(net_of(10, seed=5)) | {"0.bias": torch.ones(4)}
    torch.save(state, tmp_path / "folded.pt")
    assert load_fitting(net_of(10), tmp_path / "folded.pt").new == ("0",)


def test_a_student_of_the_same_family_and_another_width(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_fitting(net_of(10, shape={"channels": [3, 5], "hidden": 7}), file)
    assert str(caught.value).startswith(f"{file}: no layer fits the network: ")
    assert "such as 0.weight, which is (4, 1, 3, 3), wanted (3, 1, 3, 3); choose a shape of the student" in str(
        caught.value
    )


def test_a_student_of_another_family(file: Path) -> None:
    net = net_of(10, family="cifar-resnet", shape={"depth": 8, "width": 4})
    with pytest.raises(ConfigError) as caught:
        load_fitting(net, file)
    assert re.fullmatch(
        re.escape(f"{file}: no layer fits the network: the file's names (")
        + r"\d+\.\w+, \d+\.\w+, \d+\.\w+, …\) are of another family than the network's "
        + r"\(conv1\.weight, bn1\.weight, bn1\.bias, …\)",
        str(caught.value),
    )


def test_a_missing_file(tmp_path: Path) -> None:
    for call in (
        lambda: load_fitting(net_of(10), tmp_path / "gone.pt"),
        lambda: load_all_but_head(net_of(10), card_of(10), tmp_path / "gone.pt"),
    ):
        with pytest.raises(InputError, match="no such weights file"):
            call()
