"""Trainings with a preset: smaller images in the first epochs, what is said, and the same weights after a resume."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekd.card import Student
from edgekd.data.examples import Examples
from edgekd.distill.loop import TrainingJob, train
from edgekd.distill.objective import plain
from edgekd.distill.tasks.classification import accuracy
from edgekd.distill.terms.losses import cross_entropy
from edgekd.nets.deployed import Deployed
from edgekd.nets.families import make
from edgekd.recipe import Training
from edgekd.tasks.known import load_card

CARD = load_card("digits")
TRAINING = Training(preset="fast", epochs=4, batch_size=50, schedule="linear", ema=0.9, small_share=0.5)


def job(digits: tuple[Examples, Examples], folder: Path, **values: Any) -> TrainingJob:
    given: dict[str, Any] = {
        "name": "student",
        "train": digits[0],
        "validation": digits[1],
        "training": TRAINING,
        "score": accuracy,
        "objective": plain(TRAINING, cross_entropy),
        "views": 2,
        "checkpoint": folder / "checkpoint.pt",
    }
    return TrainingJob(**given | values)


def network() -> Deployed:
    torch.manual_seed(0)
    shape = {"channels": [6, 8], "stem": 6, "pool": "mean"}
    return Deployed(make(CARD, Student(family="airbench"), shape, "student.knobs"), CARD.data)


def test_the_first_epochs_have_smaller_images(digits: tuple[Examples, Examples], tmp_path: Path) -> None:
    whole, sizes = network(), list[int]()

    def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if module.training:
            sizes.append(given[0].shape[1])

    whole.register_forward_pre_hook(note)
    train(whole, job(digits, tmp_path))
    assert sizes == [6] * 8 + [8] * 8  # four steps an epoch


def test_the_settings_are_said_once(
    digits: tuple[Examples, Examples], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(network(), job(digits, tmp_path, stop=lambda history: len(history) == 1))
    line = "student: preset fast: epochs 4, batch_size 50, schedule linear, ema 0.9, small_share 0.5\n"
    assert line in capsys.readouterr().err
    train(network(), job(digits, tmp_path))
    assert "preset" not in capsys.readouterr().err


def test_a_resumed_training_ends_with_the_same_weights(digits: tuple[Examples, Examples], tmp_path: Path) -> None:
    once, twice = network(), network()
    train(once, job(digits, tmp_path / "once"))
    train(network(), job(digits, tmp_path / "twice", stop=lambda history: len(history) == 3))
    train(twice, job(digits, tmp_path / "twice"))
    assert all(torch.equal(value, twice.state_dict()[name]) for name, value in once.state_dict().items())
    assert once.state_dict()["net.stem.whitened"] == 1


def test_the_words_are_those_of_what_differs() -> None:
    assert dataclasses.replace(TRAINING, small_share=0.0).words() == "epochs 4, batch_size 50, schedule linear, ema 0.9"
