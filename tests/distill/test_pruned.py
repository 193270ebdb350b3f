"""The pruned teacher: rounds of pruning and learning, resumed bit for bit, and loaded without the library."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekd.card import Card, Student, Teacher
from edgekd.data.examples import Examples
from edgekd.distill import pruned as module
from edgekd.distill.pruned import check_pruning, distill_pruned, load_pruned
from edgekd.distill.student import TrainingOptions, learn
from edgekd.errors import ConfigError
from edgekd.nets.deployed import Deployed, count_params
from edgekd.nets.families import make
from edgekd.nets.teachers import LoadedTeacher
from edgekd.recipe import Prune, Recipe
from edgekd.run import Run
from edgekd.tasks.known import load_card

pytest.importorskip("torch_pruning")
DIGITS = load_card("digits")
TEACHER = Teacher(family="cifar-resnet", shape={"depth": 8, "width": 16})
Digits = tuple[Examples, Examples]


def card_of(prune: Prune, **other: Any) -> Card:
    recipe = Recipe(epochs=2, batch_size=20, learning_rate=0.05, warmup_epochs=0.0, views=2, prune=prune)
    return dataclasses.replace(DIGITS, teacher=TEACHER, recipe=recipe, **other)


def teacher() -> LoadedTeacher:
    torch.manual_seed(3)
    net = make(DIGITS, Student(family="cifar-resnet"), TEACHER.shape, "teacher.shape")
    return LoadedTeacher(Deployed(net, DIGITS.data).eval(), Path("teacher.safetensors"))


def settings(**given: Any) -> Prune:
    return Prune(**{"epochs": 1, "rounds": 2, "batch_size": 50, "warmup_epochs": 0.0} | given)


def test_it_is_pruned_and_taught_in_rounds(digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, card = Run(tmp_path), card_of(settings())
    net = distill_pruned(card, [teacher()], digits, run, 0.5, TrainingOptions())
    whole = teacher().net
    assert whole is not None and count_params(net) < 0.3 * count_params(whole)
    kept = json.loads((tmp_path / "student" / "pruned.json").read_text())
    assert kept["widths"]["layer3.0.conv2"] == [32, 32, 1]  # of 64
    assert len(json.loads((tmp_path / "student" / "pruned-history.json").read_text())["epochs"]) == 2
    assert sorted(path.name for path in (tmp_path / "student").glob("*attempt*")) == []
    monkeypatch.setitem(sys.modules, "torch_pruning", None)  # the files alone are enough
    again = load_pruned(whole, run.pruned_weights)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_a_killed_training_goes_on_with_identical_weights(
    importance: str, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = card_of(settings(importance=importance))
    whole = distill_pruned(card, [teacher()], digits, Run(tmp_path / "whole"), 0.5, TrainingOptions())

    def killed(*given: Any, **named: Any) -> Any:
        history = learn(*given, **named)
        if "round 1" in given[7]:
            return history
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "learn", killed)
        with pytest.raises(KeyboardInterrupt):
            distill_pruned(card, [teacher()], digits, Run(tmp_path / "killed"), 0.5, TrainingOptions())
    resumed = distill_pruned(card, [teacher()], digits, Run(tmp_path / "killed"), 0.5, TrainingOptions())
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_teachers_that_cannot_be_pruned_are_refused() -> None:
    check_pruning(card_of(settings()), None)
    small = dataclasses.replace(TEACHER, shape={"depth": 8, "width": 2})
    with pytest.raises(ConfigError, match=r"recipe.prune: no layer of the network has more than 64 channels"):
        check_pruning(dataclasses.replace(card_of(settings(multiple=64)), teacher=small), None)
    mlp = Teacher(family="mlp", shape={"hidden": [32]})
    with pytest.raises(ConfigError, match=r"recipe\.prune\.small_share: the network cannot take smaller images"):
        check_pruning(dataclasses.replace(card_of(settings(epochs=4, small_share=0.5)), teacher=mlp), None)
    own = dataclasses.replace(card_of(settings()), teacher=Teacher(family="self"))
    with pytest.raises(ConfigError, match=r"has no effect with teacher\.family = 'self'"):
        check_pruning(own, None)
    onnx = LoadedTeacher(torch.nn.Identity(), Path("teacher.onnx"))
    with pytest.raises(ConfigError, match="an ONNX teacher cannot be pruned"):
        check_pruning(card_of(settings()), onnx)
