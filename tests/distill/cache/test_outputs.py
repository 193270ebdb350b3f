"""What teachers say: several as one by hand, kept once for all, or computed while the student learns."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Size, Tensor, nn

from edgekd.card import Card, Teacher, TextData
from edgekd.data.examples import Examples
from edgekd.data.images import in_memory
from edgekd.distill.cache.files import cache_folder, list_entries
from edgekd.distill.cache.outputs import combined, shapes, teaching
from edgekd.distill.loop import Outputs
from edgekd.distill.student import TrainingOptions, assist
from edgekd.distill.tasks.known import examples_of
from edgekd.errors import ConfigError
from edgekd.nets.deployed import Deployed
from edgekd.nets.teachers import LoadedTeacher, load_teacher_file, make_teacher_net
from edgekd.nets.weights import save_state
from edgekd.recipe import Recipe
from edgekd.tasks.known import load_card

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


def teacher_of(seed: int = 0, name: str = "teacher.safetensors") -> tuple[LoadedTeacher, Counted]:
    torch.manual_seed(seed)
    whole, counted = Deployed(make_teacher_net(card_of()), DIGITS.data), Counted()
    whole.add_module("preprocess", nn.Sequential(whole.preprocess, counted))
    return LoadedTeacher(whole.eval(), Path(name)), counted


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


def test_class_maps_are_combined_pixel_by_pixel() -> None:
    """Two examples in one column of pixels are combined like two rows."""
    maps = [torch.tensor(one).T[None, :, :, None] for one in (FIRST, SECOND, THIRD)]  # (1, 3, 2, 1)
    each = [lambda k, indices, inputs, logits=logits: {"logits": logits} for logits in maps]
    for settings in ({"combine": "confidence"}, {"teacher_weights": (1.0, 2.0, 5.0)}):
        recipe = Recipe(epochs=1, **settings)
        found = combined(each, recipe)(0, np.arange(1), torch.empty(1))["logits"]
        assert found.shape == (1, 3, 2, 1)
        assert torch.allclose(found[0, :, :, 0].T, together(THREE, **settings)["logits"])


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


def expected_of(
    teacher: LoadedTeacher, examples: Examples, k: int, indices: list[int]
) -> dict[str, NDArray[np.float32]]:
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
                # Logits and attention maps are kept in single precision, other features in half.
                half = name in ("2", "2|pooled") and not online
                assert found[name].dtype == (torch.float16 if half else torch.float32)
                tolerance = 1e-3 if half else 1e-5
                np.testing.assert_allclose(found[name].numpy(), values, tolerance, tolerance / 10, err_msg=name)


def test_kept_outputs_are_computed_once(digits: Digits) -> None:
    teacher, counted = teacher_of()
    card, count = card_of(), len(digits[0])

    def fill(views: Sequence[int], layers: Sequence[str] = (), by: LoadedTeacher = teacher) -> None:
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


class Far(nn.Module):
    """Logits on the CPU wherever the images are, as those of an ONNX model."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 10)


def test_online_logits_are_where_the_inputs_are(digits: Digits) -> None:
    inputs = torch.empty(3, 8, 8, 1, dtype=torch.uint8, device="meta")
    with teaching(card_of(), [LoadedTeacher(Far(), Path("far.onnx"))], digits[0], (), online=True) as outputs:
        found = outputs(0, np.arange(3), inputs)
    assert found["logits"].device == inputs.device


def test_attention_maps_beyond_half_precision_are_kept(digits: Digits) -> None:
    teacher, _ = teacher_of()
    assert teacher.net is not None
    with torch.no_grad():
        for parameter in teacher.net.get_submodule("1").parameters():  # the normalisation of those maps
            parameter.mul_(2_000)
    with teaching(card_of(), [teacher], digits[0], ["2|attention"], online=False) as outputs:
        found = ask(outputs, digits[0], 0, [3, 0])["2|attention"].numpy()
    assert found.max() > np.finfo(np.float16).max
    np.testing.assert_allclose(found, expected_of(teacher, digits[0], 0, [3, 0])["2|attention"], rtol=1e-4)


def test_room_is_asked_for_views_that_are_shown(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, counted = teacher_of()
    card = card_of(epochs=1)
    assert card.recipe.views == 2
    monkeypatch.setenv("EDGEKD_CACHE_LIMIT_GB", "10e-6")  # one view of 200 logits is 8 kB
    with teaching(card, [teacher], digits[0], (), online=False) as outputs:
        ask(outputs, digits[0], 0, [1, 2, 3])
    assert len(list_entries(cache_folder())) == 1
    assert counted.images == 2 + 200  # two for the shapes


# --- what tells teachers apart ---


def logits_of(card: Card, teacher: LoadedTeacher, examples: Examples) -> NDArray[np.float32]:
    with teaching(card, [teacher], examples, (), online=False) as outputs:
        found: NDArray[np.float32] = ask(outputs, examples, 0, [0, 1, 2])["logits"].numpy()
    return found


def text_card(heads: int = 2) -> Card:
    base = load_card("sst2")
    assert isinstance(base.data, TextData)
    shape = {"width": 8, "layers": 1, "heads": heads}
    data = dataclasses.replace(base.data, vocabulary=50, timed_length=5)
    return dataclasses.replace(base, data=data, teacher=Teacher(family="transformer", shape=shape))


@pytest.fixture
def sentences() -> Examples:
    """900 of 2 to 9 tokens, the longest among the first 500."""
    lengths = np.arange(900) % 7 + 2
    lengths[3] = 9
    ids = np.random.default_rng(0).integers(2, 50, (900, 9), dtype=np.int32)
    ids[np.arange(9) >= lengths[:, None]] = 0
    return examples_of(text_card(), in_memory(ids, np.arange(900) % 2))  # type: ignore[arg-type]


def text_teacher(folder: Path, heads: int = 2) -> LoadedTeacher:
    if not (file := folder / "text.safetensors").exists():
        torch.manual_seed(0)
        net = make_teacher_net(text_card())
        with torch.no_grad():
            net.get_parameter("layers.0.project.weight").mul_(10)  # so that heads make a difference
        save_state(net, file, {})
    return load_teacher_file(text_card(heads), file)


def test_equal_weights_with_other_heads_are_another_teacher(tmp_path: Path, sentences: Examples) -> None:
    two, four = (logits_of(text_card(n), text_teacher(tmp_path, n), sentences) for n in (2, 4))
    assert np.abs(two - four).max() > 1e-3
    assert np.array_equal(logits_of(text_card(), text_teacher(tmp_path), sentences), two)
    assert len(list_entries(cache_folder())) == 2


def test_equal_weights_of_a_changed_function_are_another_teacher(
    tmp_path: Path, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    source = (
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def forward(self, images):\n"
        "        return super().forward(images.flatten(1)) * 1\n"
        "def net(classes):\n"
        "    return Net(64, classes)\n"
    )
    card = dataclasses.replace(
        card_of(), teacher=Teacher(family="import", function="my_scaled:net"), file=str(tmp_path / "card.toml")
    )
    save_state(nn.Linear(64, 10), tmp_path / "t.safetensors", {})
    found = []
    for factor in ("1", "3"):
        (tmp_path / "my_scaled.py").write_text(source.replace("* 1", f"* {factor}"))
        monkeypatch.delitem(sys.modules, "my_scaled", raising=False)
        found.append(logits_of(card, load_teacher_file(card, tmp_path / "t.safetensors"), digits[0]))
    monkeypatch.delitem(sys.modules, "my_scaled")
    np.testing.assert_allclose(found[1], 3 * found[0], rtol=1e-5)


def test_assistants_are_known_by_their_shape(tmp_path: Path, digits: Digits) -> None:
    shape = {"channels": [4, 4], "hidden": 8}
    card = dataclasses.replace(card_of(), assistants=(Teacher(family="convnet", shape=shape),))
    save_state(
        make_teacher_net(dataclasses.replace(card, teacher=card.assistants[0])),
        tmp_path / "assistant-1.safetensors",
        {},
    )
    (last,) = assist(card, teacher_of()[0], digits, tmp_path, TrainingOptions())
    assert (last.identity["family"], last.identity["shape"]) == ("convnet", shape)


def write_onnx(path: Path, scale: float) -> None:
    """Digits to logits: a product with weights that lie in `weights` beside the model."""
    weights = np.full((64, 10), scale, np.float32) * np.arange(10, dtype=np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    given = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 8, 8, 1])
    told = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])
    graph = helper.make_graph(nodes, "g", [given], [told], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    (path.parent / "weights").unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)


def test_an_onnx_teacher_is_known_by_the_weights_beside_it(tmp_path: Path, digits: Digits) -> None:
    path, found = tmp_path / "m.onnx", []
    for scale in (1.0, 2.0):
        write_onnx(path, scale)
        found.append((path.read_bytes(), logits_of(card_of(), load_teacher_file(card_of(), path), digits[0])))
    assert found[0][0] == found[1][0]
    np.testing.assert_allclose(found[1][1], 2 * found[0][1])
    assert found[0][1].any()


@pytest.mark.parametrize("library", ["torch", "torchvision", "scipy", "PIL", "onnxruntime"])
def test_outputs_are_those_of_the_libraries_that_made_them(
    tmp_path: Path, digits: Digits, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    write_onnx(tmp_path / "m.onnx", 1.0)
    ours, _ = teacher_of()
    teachers = [load_teacher_file(card_of(), tmp_path / "m.onnx"), ours]
    for version in ("1.0", "1.1"):
        monkeypatch.setattr(f"{library}.__version__", version)
        for teacher in teachers:
            logits_of(card_of(), teacher, digits[0])
    assert len(list_entries(cache_folder())) == (3 if library == "onnxruntime" else 4)


# --- layers with one output a token ---


def test_a_layer_with_an_output_a_token_is_refused_by_the_cache(tmp_path: Path, sentences: Examples) -> None:
    teacher = text_teacher(tmp_path)
    with (
        pytest.raises(ConfigError) as caught,
        teaching(text_card(), [teacher], sentences, ["layers.0"], online=False),
    ):
        pass
    assert str(caught.value) == (
        f"{text_card().file}: recipe.features: teacher: layer 'layers.0' gives (9, 8) for 9 tokens and (8, 8) for 8; "
        "the cache keeps one shape: name a layer behind the pooling over tokens, or use --online"
    )
    assert list_entries(cache_folder()) == []
    with teaching(text_card(), [teacher], sentences, ["layers.0"], online=True) as outputs:
        assert ask(outputs, sentences, 0, [0, 1])["layers.0"].shape == (2, 3, 8)


def test_a_layer_behind_the_pooling_is_kept(tmp_path: Path, sentences: Examples) -> None:
    with teaching(text_card(), [text_teacher(tmp_path)], sentences, ["head.0"], online=False) as outputs:
        assert ask(outputs, sentences, 0, [0, 899])["head.0"].shape == (2, 8)


def test_a_mean_over_tokens_is_refused_too_for_padding_counts(tmp_path: Path, sentences: Examples) -> None:
    teacher = text_teacher(tmp_path)
    with (
        pytest.raises(ConfigError, match=r"layer 'layers\.0' gives \(9, 8\) for 9 tokens and \(8, 8\) for 8; "),
        teaching(text_card(), [teacher], sentences, ["layers.0|pooled"], online=False),
    ):
        pass
    with teaching(text_card(), [teacher], sentences, ["layers.0|pooled"], online=True) as outputs:
        assert ask(outputs, sentences, 0, [0, 1])["layers.0|pooled"].shape == (2, 8)
