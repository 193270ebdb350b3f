"""What teachers say: several as one by hand, kept once for all, or computed while the student learns."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Size, Tensor, nn

from edgekd.card import Card, load_card
from edgekd.data.examples import Examples
from edgekd.data.images import in_memory
from edgekd.data.tasks import examples_of
from edgekd.distill.cache_files import cache_folder, list_entries
from edgekd.distill.loop import Outputs
from edgekd.distill.outputs import combined, shapes, teaching
from edgekd.errors import ConfigError
from edgekd.nets.deployed import Deployed
from edgekd.nets.teachers import Teacher, make_teacher_net
from edgekd.recipe import Recipe

DIGITS = load_card("digits")
LAYERS = ("2", "2|attention", "2|pooled")
"""Of the teacher's network: its first maps, after ReLU."""

Digits = tuple[Examples, Examples]


class Counted(nn.Module):
    """A layer that changes nothing and counts the images it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0

    def forward(self, images: Tensor) -> Tensor:
        self.images += len(images)
        return images


def card_of(**recipe: Any) -> Card:
    teacher = dataclasses.replace(DIGITS.teacher, shape={"channels": [4, 8], "hidden": 8})
    return dataclasses.replace(DIGITS, teacher=teacher, recipe=dataclasses.replace(DIGITS.recipe, views=2, **recipe))


def teacher_of(seed: int = 0, name: str = "teacher.safetensors") -> tuple[Teacher, Counted]:
    torch.manual_seed(seed)
    whole, counted = Deployed(make_teacher_net(card_of()), DIGITS.data), Counted()
    whole.add_module("preprocess", nn.Sequential(whole.preprocess, counted))
    return Teacher(whole.eval(), Path(name)), counted


def ask(outputs: Outputs, examples: Examples, k: int, indices: list[int]) -> dict[str, Tensor]:
    chosen = np.array(indices)
    return outputs(k, chosen, examples.batch(chosen, k).inputs)


# --- several teachers ---

FIRST = [[2.0, 0.0, 0.0], [0.0, 0.5, 0.0]]
SECOND = [[0.0, 1.0, 0.0], [0.0, 0.0, 4.0]]
THIRD = [[0.0, 0.0, 1.5], [3.0, 0.0, 0.0]]


def saying(logits: list[list[float]], feature: float) -> Outputs:
    return lambda k, indices, inputs: {"logits": torch.tensor(logits), "layer": torch.full((2,), feature)}


def together(each: Sequence[Outputs], **recipe: Any) -> dict[str, Tensor]:
    return combined(each, Recipe(epochs=1, **recipe))(0, np.arange(2), torch.zeros(2))


THREE = [saying(FIRST, 1.0), saying(SECOND, 2.0), saying(THIRD, 3.0)]


def test_the_mean_of_logits() -> None:
    found = together(THREE)
    assert found["logits"].numpy() == pytest.approx(np.array([[2, 1, 1.5], [3, 0.5, 4]]) / 3)
    # The softmax of that mean is the geometric mean of the softmaxes, normalised.
    product = np.prod([torch.tensor(one).softmax(1).numpy() for one in (FIRST, SECOND, THIRD)], axis=0) ** (1 / 3)
    assert found["logits"].softmax(1).numpy() == pytest.approx(product / product.sum(1, keepdims=True), rel=1e-5)
    assert found["layer"].tolist() == [1.0, 1.0]


def test_the_weighted_mean_of_logits() -> None:
    found = together(THREE, teacher_weights=(1.0, 2.0, 5.0))
    expected = (np.array(FIRST) + 2 * np.array(SECOND) + 5 * np.array(THIRD)) / 8
    assert found["logits"].numpy() == pytest.approx(expected)


def test_the_surest_of_each_example() -> None:
    found = together(THREE, combine="confidence")
    assert found["logits"].tolist() == [FIRST[0], SECOND[1]]
    assert found["layer"].tolist() == [1.0, 1.0]


def test_one_teacher_or_none() -> None:
    assert together(THREE[1:2])["logits"].tolist() == SECOND
    assert together([]) == {}


# --- shapes ---


def test_shapes_and_unknown_layers(digits: Digits) -> None:
    teacher, _ = teacher_of()
    assert shapes(teacher, digits[0], LAYERS) == {
        "logits": Size((10,)),
        "2": Size((4, 8, 8)),
        "2|attention": Size((8, 8)),
        "2|pooled": Size((4,)),
    }
    with pytest.raises(ConfigError, match=r"^recipe\.features: teacher: unknown layer 'conv2'; "):
        shapes(teacher, digits[0], ["conv2|pooled"])


# --- kept and computed ---


def expected_of(teacher: Teacher, examples: Examples, k: int, indices: list[int]) -> dict[str, NDArray[np.float32]]:
    """By calling the layers of the network one after the other."""
    assert teacher.net is not None and isinstance(teacher.module, Deployed)
    with torch.no_grad():
        inputs = teacher.module.preprocess(examples.batch(np.array(indices), k).inputs)
        maps = inputs
        for number in range(3):
            maps = teacher.net.get_submodule(str(number))(maps)
        logits = teacher.net(inputs).numpy()
    found = maps.numpy()
    return {
        "logits": logits,
        "2": found,
        "2|attention": (found**2).mean(axis=1),
        "2|pooled": found.mean(axis=(2, 3)),
    }


@pytest.mark.parametrize("online", [False, True])
def test_outputs_are_those_of_the_layers(digits: Digits, online: bool) -> None:
    teacher, _ = teacher_of()
    with teaching(card_of(), [teacher], digits[0], LAYERS, online) as outputs:
        for k, indices in ((0, [3, 0, 150, 7]), (1, [9, 3]), (0, [11])):
            found = ask(outputs, digits[0], k, indices)
            expected = expected_of(teacher, digits[0], k, indices)
            assert sorted(found) == sorted(expected)
            for name, values in expected.items():
                # Logits are kept in single precision, features in half.
                half = name != "logits" and not online
                assert found[name].dtype == (torch.float16 if half else torch.float32)
                tolerance = 1e-3 if half else 1e-5
                np.testing.assert_allclose(found[name].numpy(), values, tolerance, tolerance / 10, err_msg=name)


def test_kept_outputs_are_computed_once(digits: Digits) -> None:
    teacher, counted = teacher_of()
    card, count = card_of(), len(digits[0])

    def fill(views: Sequence[int], layers: Sequence[str] = (), by: Teacher = teacher) -> None:
        with teaching(card, [by], digits[0], layers, online=False) as outputs:
            counted.images = 0  # it is asked for its shapes first
            for k in views:
                ask(outputs, digits[0], k, [5, 9])

    fill([])
    assert counted.images == 0
    fill([0, 1, 1])
    assert counted.images == 2 * count
    fill([0, 1])
    assert counted.images == 0
    # A layer that was not asked for before; then that and the logits are both there.
    fill([0], ["2"])
    assert counted.images == count
    fill([0], ["2"])
    assert counted.images == 0
    # The same weights in another file are the same teacher; other weights, or data, are not.
    same, counted = teacher_of(name="copy.safetensors")
    fill([0, 1], by=same)
    assert counted.images == 0
    other, counted = teacher_of(seed=1)
    fill([0], by=other)
    assert counted.images == count
    assert len(list_entries(cache_folder())) == 2


def test_more_images_than_the_teacher_sees_at_once() -> None:
    teacher, counted = teacher_of()
    pixels = np.random.default_rng(0).integers(0, 256, (1_200, 8, 8, 1), dtype=np.uint8)
    many = examples_of(DIGITS, in_memory(pixels, np.zeros(1_200, np.int64)))
    everything = list(range(1_200))
    with teaching(card_of(), [teacher], many, (), online=False) as outputs:
        counted.images = 0
        views = [ask(outputs, many, k, everything)["logits"].numpy() for k in (0, 1)]
    assert counted.images == 2 * 1_200
    for k, given in enumerate(views):
        np.testing.assert_allclose(given, expected_of(teacher, many, k, everything)["logits"], atol=1e-5)
    assert np.abs(views[0] - views[1]).max() > 1e-3


def test_online_every_batch_is_computed(digits: Digits) -> None:
    teacher, counted = teacher_of()
    with teaching(card_of(), [teacher], digits[0], (), online=True) as outputs:
        for indices in ([1, 2, 3], [4, 5], [1, 2, 3]):
            ask(outputs, digits[0], 0, indices)
    assert counted.images == 8
    assert list_entries(cache_folder()) == []


def test_a_cache_that_is_too_small_is_told_and_done_without(
    digits: Digits, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, counted = teacher_of()
    # 2 views of 200 logits (8 kB each, and a header) fit in 20 kB, but with maps of 4 × 8 × 8 in half precision not.
    monkeypatch.setenv("EDGEKD_CACHE_LIMIT_GB", "20e-6")
    with teaching(card_of(), [teacher], digits[0], (), online=False) as outputs:
        ask(outputs, digits[0], 0, [1, 2, 3])
    assert capsys.readouterr().err == ""
    with teaching(card_of(), [teacher], digits[0], ["2"], online=False) as outputs:
        counted.images = 0
        found = ask(outputs, digits[0], 0, [1, 2, 3])
    assert counted.images == 3
    assert found["2"].dtype == torch.float32
    np.testing.assert_allclose(found["2"].numpy(), expected_of(teacher, digits[0], 0, [1, 2, 3])["2"], atol=1e-6)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "do not fit in the cache of 20.0 kB" in lines[0] and "EDGEKD_CACHE_LIMIT_GB" in lines[0]
    assert lines[1] == "teacher: its outputs are computed while the student learns, in every epoch anew"


def test_several_teachers_each_keep_their_own(digits: Digits) -> None:
    (first, _), (second, _) = teacher_of(), teacher_of(seed=1)
    with teaching(card_of(teacher_weights=(3.0, 1.0)), [first, second], digits[0], ["2"], online=False) as outputs:
        found = ask(outputs, digits[0], 1, [8, 30])
    one, other = (expected_of(teacher, digits[0], 1, [8, 30]) for teacher in (first, second))
    np.testing.assert_allclose(found["logits"], 0.75 * one["logits"] + 0.25 * other["logits"], atol=1e-5)
    np.testing.assert_allclose(found["2"].float(), one["2"], rtol=1e-3, atol=1e-4)
    assert sorted(sorted(entry.views) for entry in list_entries(cache_folder())) == [["2", "logits"], ["logits"]]


def test_without_teachers_there_is_nothing_to_say(digits: Digits) -> None:
    with teaching(card_of(), [], digits[0], (), online=False) as outputs:
        assert ask(outputs, digits[0], 0, [1]) == {}


@pytest.mark.parametrize("online", [False, True])
def test_the_teacher_is_left_without_hooks(digits: Digits, online: bool) -> None:
    teacher, _ = teacher_of()
    with teaching(card_of(), [teacher], digits[0], LAYERS, online) as outputs:
        ask(outputs, digits[0], 0, [1])
    assert not any(module._forward_hooks for module in teacher.module.modules())
    assert not teacher.module.training
