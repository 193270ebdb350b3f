"""Published weights: found where the libraries keep them, never fetched without being asked."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torchvision

from edgekd.card import Card, Student, Teacher
from edgekd.errors import ConfigError, InputError
from edgekd.files import file_sha256
from edgekd.interface import digests_of_more, named_files
from edgekd.nets.families import make
from edgekd.nets.published import weights_file
from edgekd.nets.start import load_fitting
from edgekd.tasks.known import load_card

DIGITS = load_card("digits")
NAME = "squeezenet1_1-b8a52dc0.pth"
"""The file of torchvision's SqueezeNet 1.1."""


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch keeps the file, which holds random weights for 1,000 classes."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / NAME
    path.parent.mkdir(parents=True)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    return path


def card_of(weights: str = "pretrained", model: str = "squeezenet1_1", family: str = "torchvision") -> Card:
    shape = {"model": model}
    return dataclasses.replace(
        DIGITS,
        data=dataclasses.replace(DIGITS.data, size=32, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3),
        teacher=Teacher(family=family, shape=shape, weights=weights),
        student=Student(family=family, knobs={name: [value] for name, value in shape.items()}, weights=weights),
        file="card.toml",
    )


@pytest.mark.parametrize("weights", ["pretrained", "pretrained:IMAGENET1K_V1"])
def test_weights_that_are_here(kept: Path, weights: str) -> None:
    card, shape = card_of(weights), {"model": "squeezenet1_1"}
    assert weights_file(card, card.teacher, shape) == weights_file(card, card.student, shape) == kept
    net = make(card, card.student, shape, "student.knobs")
    assert load_fitting(net, kept).new == ("classifier.1",)
    assert digests_of_more(card) == {"student": file_sha256(kept)}
    assert named_files(card, None, None) == {"teacher_sha256": file_sha256(kept), "student_sha256": file_sha256(kept)}


def test_weights_that_are_not_here_are_not_fetched_unasked(kept: Path) -> None:
    kept.unlink()
    card = card_of()
    for owner, name in ((card.teacher, "teacher"), (card.student, "student")):
        with pytest.raises(InputError) as caught:
            weights_file(card, owner, {"model": "squeezenet1_1"})
        assert str(caught.value) == (
            f"card.toml: {name}.weights: the published weights of squeezenet1_1 are not on this machine ({kept}); set "
            f"{name}.download = true to fetch them, or name a file"
        )


@pytest.mark.parametrize(
    ("weights", "model", "said"),
    [
        ("pretrained:IMAGENET1K_V9", "squeezenet1_1", "squeezenet1_1 has no weights 'IMAGENET1K_V9'; did you mean"),
        ("pretrained", "squeezenet9", "torchvision has no model 'squeezenet9'"),
        ("pretrained", "mnasnet9", "torchvision has no model 'mnasnet9'"),
    ],
)
def test_names_that_nobody_publishes(weights: str, model: str, said: str) -> None:
    card = card_of(weights, model)
    with pytest.raises(ConfigError) as caught:
        weights_file(card, card.student, {"model": model})
    assert str(caught.value).startswith(f"card.toml: student.weights: {said}")


def test_tags_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    card = card_of("pretrained:a1_in1k", "resnet18", "timm")
    with pytest.raises(
        InputError, match=r"teacher\.weights: the published weights of resnet18\.a1_in1k are not on this"
    ):
        weights_file(card, card.teacher, {"model": "resnet18"})
    for model, weights in (("resnet18", "pretrained:b9"), ("resnet9000", "pretrained")):
        card = card_of(weights, model, "timm")
        with pytest.raises(ConfigError, match=r"timm publishes no weights of 'resnet\w+"):
            weights_file(card, card.teacher, {"model": model})


def test_files_are_where_the_card_is(tmp_path: Path) -> None:
    card = dataclasses.replace(card_of("my.pt"), file=str(tmp_path / "card.toml"))
    assert weights_file(card, card.student, {}) == tmp_path / "my.pt"
    assert weights_file(DIGITS, DIGITS.student, {}) is None
