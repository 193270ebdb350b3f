"""Recipes that do not fit the networks are refused before anything is trained."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from edgekd.card import Card
from edgekd.data.examples import Examples
from edgekd.distill.compatibility import check_recipe
from edgekd.errors import ConfigError
from edgekd.nets.teachers import LoadedTeacher
from edgekd.recipe import Recipe
from edgekd.spec import build
from edgekd.tasks.known import load_card

SHAPE = {"channels": [4, 8], "hidden": 8, "grid": 4}
ONNX = LoadedTeacher(nn.Identity(), Path("teacher.onnx"))
"""Its module is not a torch network with its preprocessing."""


def card_of(**recipe: Any) -> Card:
    return dataclasses.replace(load_card("digits"), recipe=build(Recipe, {"epochs": 2} | recipe, "card.toml: recipe"))


def test_an_onnx_teacher_has_no_layers(digits: tuple[Examples, Examples]) -> None:
    card = card_of(features=[{"term": "hint", "teacher": "6", "student": "6"}])
    with pytest.raises(ConfigError, match=r"recipe\.features: teacher: an ONNX teacher has no layers to learn from"):
        check_recipe(card, SHAPE, ONNX, [], digits[0])


def test_an_onnx_teacher_has_no_tensors_to_copy(digits: tuple[Examples, Examples]) -> None:
    card = card_of(init_from_teacher=True)
    with pytest.raises(ConfigError) as caught:
        check_recipe(card, SHAPE, ONNX, [], digits[0])
    assert str(caught.value) == f"{card.file}: recipe.init_from_teacher: an ONNX teacher has no tensors to copy"
