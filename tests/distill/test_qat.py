"""Training for int8 after the distillation: it learns, it is resumed bit for bit, and it is done once."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from edgekd.card import Card, Student
from edgekd.data.examples import Examples
from edgekd.distill import qat as module
from edgekd.distill.compatibility import check_student
from edgekd.distill.qat import train_for_int8
from edgekd.distill.student import TrainingOptions, learn
from edgekd.errors import ConfigError
from edgekd.nets.deployed import Deployed
from edgekd.nets.fakequant import Quantizer
from edgekd.nets.families import make
from edgekd.nets.teachers import LoadedTeacher
from edgekd.nets.weights import read_state
from edgekd.recipe import Qat, Recipe
from edgekd.run import Run
from edgekd.target import Quantization
from edgekd.tasks.known import load_card

DIGITS = load_card("digits")
SHAPE = {"channels": [4, 8], "hidden": 8, "grid": 4}
Digits = tuple[Examples, Examples]


def card_of(qat: Qat, **recipe: Any) -> Card:
    given: dict[str, Any] = {"epochs": 2, "batch_size": 20, "learning_rate": 0.05, "warmup_epochs": 0.0, "views": 2}
    return dataclasses.replace(DIGITS, recipe=Recipe(**given | recipe, qat=qat))


def teacher() -> LoadedTeacher:
    torch.manual_seed(3)
    net = make(DIGITS, Student(family="convnet"), {"channels": [8, 12], "hidden": 16}, "teacher.shape")
    return LoadedTeacher(Deployed(net, DIGITS.data).eval(), Path("teacher.safetensors"))


def student() -> nn.Module:
    torch.manual_seed(0)
    return make(DIGITS, Student(family="convnet"), SHAPE, "student.knobs").eval()


def trained(folder: Path, digits: Digits, qat: Qat, **recipe: Any) -> GraphModule:
    return train_for_int8(
        card_of(qat, **recipe), SHAPE, student(), [teacher()], digits, Run(folder), Quantization(), TrainingOptions()
    )


def test_it_learns_and_is_done_once(digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = trained(tmp_path, digits, Qat(epochs=3, batch_size=20, learning_rate=0.02), losses={"ce": 1.0})
    epochs = json.loads((tmp_path / "student" / "int8-qat-history.json").read_text())["epochs"]
    assert epochs[2]["loss"] < epochs[1]["loss"] < epochs[0]["loss"]
    assert set(epochs[0]["terms"]) == {"kd", "ce"}  # a recipe without a teacher's term gets plain KD here
    scales = [part.scale.item() for part in net.modules() if isinstance(part, Quantizer)]
    assert len(scales) == 5 and all(scale > 0 for scale in scales)
    assert not (tmp_path / "student" / "int8-qat-attempt-1").exists()
    monkeypatch.setattr(module, "learn", None)  # must not be called again
    again = trained(tmp_path, digits, Qat(epochs=3, batch_size=20, learning_rate=0.02))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())


def test_a_killed_training_goes_on_with_identical_weights(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qat = Qat(epochs=3, batch_size=20, ema=0.9)
    whole = trained(tmp_path / "whole", digits, qat)

    def killed(*given: Any, **named: Any) -> Any:
        named["stop"] = lambda history: len(history) == 2
        learn(*given, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "learn", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "killed", digits, qat)
    assert not (tmp_path / "killed" / "student" / "int8-qat.safetensors").exists()
    resumed = trained(tmp_path / "killed", digits, qat)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    files = [read_state(tmp_path / name / "student" / "int8-qat.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(value, files[1][name]) for name, value in files[0].items())


def test_a_student_that_would_stay_in_float_is_refused(digits: Digits, tmp_path: Path) -> None:
    (tmp_path / "floating.py").write_text(
        "from torch import nn\n\n\ndef net(classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.GELU(), nn.Linear(8, classes))\n"
    )
    owner = Student(family="import", function="floating:net")
    card = dataclasses.replace(card_of(Qat(epochs=1)), student=owner, file=str(tmp_path / "card.toml"))
    with pytest.raises(ConfigError, match=r"card.toml: student: recipe.qat: GELU \(2\) has no int8 kernel"):
        check_student(card, {}, digits[0])
    check_student(dataclasses.replace(card, recipe=Recipe(epochs=1)), {}, digits[0])
