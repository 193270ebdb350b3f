"""A training on an NVIDIA GPU: everything that lives beside the network must follow it there."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgekd.card import Card, Recipe
from edgekd.data.examples import Examples
from edgekd.data.sources import load_train_and_validation
from edgekd.distill.cache.outputs import teaching
from edgekd.distill.student import TrainingOptions, learn
from edgekd.distill.tasks.known import examples_of
from edgekd.nets.families import make
from edgekd.nets.teachers import LoadedTeacher, load_teacher_file, make_teacher_net
from edgekd.nets.weights import save_state
from edgekd.spec import build
from edgekd.tasks.known import load_card

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")

DIGITS = load_card("digits")
SHAPE = {"channels": [8, 8], "hidden": 16}
MAPS, VECTORS = "2", "8"
"""Layers of a convnet: after the first ReLU, and the hidden vector's Linear layer."""


@pytest.fixture(scope="module")
def digits() -> tuple[Examples, Examples]:
    train, validation = load_train_and_validation(DIGITS, None)
    return examples_of(DIGITS, train.subset(np.arange(200))), examples_of(DIGITS, validation.subset(np.arange(60)))


@pytest.fixture
def teachers(tmp_path: Path) -> list[LoadedTeacher]:
    """A torch network, and a linear ONNX model that knows nothing."""
    torch.manual_seed(0)
    save_state(make_teacher_net(DIGITS), tmp_path / "teacher.safetensors", {})
    weights = np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32) / 500
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    given = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 8, 8, 1])
    told = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])
    graph = helper.make_graph(nodes, "g", [given], [told], [numpy_helper.from_array(weights, "w")])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "linear.onnx"
    )
    return [load_teacher_file(DIGITS, tmp_path / name) for name in ("teacher.safetensors", "linear.onnx")]


def card_of(**recipe: Any) -> Card:
    given = {"epochs": 2, "batch_size": 20, "learning_rate": 0.05, "warmup_epochs": 0.0, "views": 2, "ema": 0.9}
    return dataclasses.replace(DIGITS, recipe=build(Recipe, given | recipe, "recipe"))


def new_student() -> nn.Module:
    torch.manual_seed(0)
    return make(DIGITS, DIGITS.student, SHAPE, "student.knobs")


FEATURES = [
    {"term": "hint", "teacher": MAPS, "student": MAPS},
    {"term": "attention", "teacher": MAPS, "student": MAPS, "weight": 100.0},
    {"term": "vid", "teacher": VECTORS, "student": VECTORS},
    {"term": "crd", "teacher": VECTORS, "student": VECTORS, "negatives": 32, "embedding": 16},
]


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize(
    "recipe",
    [
        {"losses": {"kd": 1.0, "ce": 0.5}, "features": FEATURES},
        {"losses": {"kd": 1.0}, "sampling": "gaussian"},
        {"losses": {"kd": 1.0}, "combine": "confidence", "class_weights": "balanced"},
    ],
    ids=["features", "sampling", "confidence"],
)
def test_a_student_learns_on_the_gpu(
    digits: tuple[Examples, Examples],
    teachers: list[LoadedTeacher],
    tmp_path: Path,
    recipe: dict[str, Any],
    online: bool,
) -> None:
    net, before = new_student(), new_student().state_dict()
    history = learn(
        card_of(**recipe), SHAPE, net, teachers, digits, tmp_path / "scratch", TrainingOptions(online=online)
    )
    assert len(history) == 2
    for entry in history:
        assert all(np.isfinite(value) for value in entry["terms"].values())
    after = {name: value.cpu() for name, value in net.state_dict().items()}
    assert all(not torch.equal(before[name], value) for name, value in after.items() if value.is_floating_point())


@pytest.mark.parametrize("recipe", [{"losses": {"kd": 1.0, "ce": 0.5}}, {"losses": {"kd": 1.0}, "sampling": "points"}])
def test_an_onnx_teacher_in_the_loop(
    digits: tuple[Examples, Examples], teachers: list[LoadedTeacher], tmp_path: Path, recipe: dict[str, Any]
) -> None:
    card, inputs = card_of(**recipe), digits[0].batch(np.arange(5), 0).inputs
    expected = teachers[1].module(inputs)
    with teaching(card, teachers[1:], digits[0], (), online=True) as outputs:
        found: Tensor = outputs(0, np.arange(5), inputs.cuda())["logits"]
    assert found.is_cuda
    assert torch.allclose(found.cpu(), expected)
    history = learn(
        card, SHAPE, new_student(), teachers[1:], digits, tmp_path / "scratch", TrainingOptions(online=True)
    )
    assert history[1]["terms"]["kd"] < history[0]["terms"]["kd"]
