"""Choosing a family and a shape: every combination, torchvision, timm, the user's own, and the nearest names."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models

from edgekd.augmentation import Augment
from edgekd.card import Card, Student, TextData
from edgekd.errors import ConfigError, UnavailableError
from edgekd.nets.deployed import count_params
from edgekd.nets.families import IMAGE_FAMILIES, TEXT_FAMILIES, UnbuildableError, make, make_shapes
from edgekd.spec import build
from edgekd.tasks.known import load_card

COLOUR = load_card("cifar10")
GREY = load_card("digits")


def student(family: str) -> Student:
    return Student(family=family)


def test_shapes_are_every_combination_of_the_knobs() -> None:
    knobs = {"depth": [8, 14], "width": [2, 4, 6]}
    shapes = make_shapes(COLOUR, Student(family="cifar-resnet", knobs=knobs))
    assert shapes == [{"depth": d, "width": w} for d in (8, 14) for w in (2, 4, 6)]
    assert make_shapes(GREY, Student(family="convnet")) == [{}]


def test_several_families_are_one_list() -> None:
    families = [{"family": "vgg", "knobs": {"width": [8, 16]}}, {"family": "mlp", "knobs": {"hidden": [[16]]}}]
    several = build(Student, {"families": families}, "card")
    shapes = make_shapes(COLOUR, several)
    assert shapes == [
        {"family": "vgg", "width": 8},
        {"family": "vgg", "width": 16},
        {"family": "mlp", "hidden": [16]},
    ]
    nets = [make(COLOUR, several, shape, "student.knobs") for shape in shapes]
    assert [type(next(net.children())) for net in nets] == [
        torch.nn.Conv2d,
        torch.nn.Conv2d,
        torch.nn.Flatten,
    ]


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ({}, "family: is missing; add it, or [[student.families]]"),
        ({"family": "mlp", "families": [{"family": "vgg"}]}, "families: has no effect beside family, knobs"),
        ({"families": [{"family": "vgg"}, {"family": "vgg"}]}, "families: should name each family once, got 'vgg'"),
        ({"families": [{"knobs": {}}]}, "families.0.family: is missing; add it"),
    ],
)
def test_families_that_cannot_be_read_are_told(student: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Student, student, "card: student")
    assert str(caught.value).startswith(f"card: student: {said}")


def test_of_several_families_all_candidates_count() -> None:
    many = [[width] for width in range(1, 5001)]
    families = [{"family": "vgg"}, {"family": "mlp", "knobs": {"hidden": many}}]
    with pytest.raises(ConfigError, match=r"here 5,001; at most 5,000 .* first of 'hidden' of family 'mlp', which has"):
        make_shapes(COLOUR, build(Student, {"families": families}, "card"))


def test_one_wrong_value_of_a_knob_is_told() -> None:
    with pytest.raises(ConfigError, match=r"cifar10\.toml: student\.knobs: width: got 3; it should be a multiple of 2"):
        make_shapes(COLOUR, Student(family="cifar-resnet", knobs={"width": [2, 3]}))


def test_more_candidates_than_can_be_tried_are_counted_and_refused() -> None:
    knobs = {"depth": [8, 14], "width": list(range(2, 200_002, 2)), "other": [0] * 1000}
    with pytest.raises(ConfigError) as caught:
        make_shapes(COLOUR, Student(family="cifar-resnet", knobs=knobs))
    assert str(caught.value) == (
        f"{COLOUR.file}: student.knobs: every combination of values is a candidate, here 200,000,000; at most 5,000 "
        "are tried; give fewer values, first of 'width', which has 100,000"
    )
    hundred = make_shapes(GREY, Student(family="mlp", knobs={"hidden": [[width] for width in range(1, 101)]}))
    assert len(hundred) == 100


@pytest.mark.parametrize(
    ("family", "shape", "said"),
    [
        (
            "mlp",
            {"hidden": [1_000_000, 1_000_000]},
            r"the network has 1,003,\d+,\d+,\d+ parameters; at most 1,000,000,000 ",
        ),
        ("mlp", {"hidden": [2**62]}, r"hidden\.0: got 4611686018427387904; it should be less than or equal to 1000000"),
        ("mlp", {"hidden": [1] * 65}, r"hidden: got \[1, .*; it should have at most 64 items"),
        ("convnet", {"channels": [200_000, 200_000]}, r"the network has \d+,\d+,\d+,\d+ parameters; at most"),
        ("cifar-resnet", {"depth": 6_000_002}, r"depth: got 6000002; it should be less than or equal to 1202"),
        ("cifar-resnet", {"width": 65_536}, r"the network has \d,\d+,\d+,\d+,\d+ parameters; at most"),
        ("mobilenet-v2", {"width": 1e30}, r"width: got 1e\+30; it should be less than or equal to 100"),
        ("mobilenet-v2", {"width": float("inf")}, r"width: got Infinity; it should be a finite number"),
    ],
)
def test_a_giant_network_is_refused_before_it_takes_memory(family: str, shape: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{COLOUR.file}: student\.knobs: {said}"):
        make(COLOUR, student(family), shape, "student.knobs")


@pytest.mark.parametrize("family", ["transformer", "text-cnn", "bag-of-words", "lstm"])
def test_counting_parameters_draws_no_random_numbers(family: str) -> None:
    card = load_card("sst2")
    cls, function = TEXT_FAMILIES[family]
    torch.manual_seed(0)
    made = make(card, student(family), {}, "student.knobs").state_dict()
    torch.manual_seed(0)
    assert isinstance(card.data, TextData)
    plain = function(cls(), card.data.vocabulary, len(card.data.classes)).state_dict()
    assert all(torch.equal(made[name], plain[name]) for name in plain)


def test_views_must_suit_the_network() -> None:
    card = dataclasses.replace(load_card("bccd"), augment=Augment(crop=64))
    made, drawn = [], []
    for one in (card, load_card("bccd")):
        torch.manual_seed(0)
        made.append(make(one, card.teacher, card.teacher.shape, "teacher.shape"))
        drawn.append(torch.rand(1))
    assert all(map(torch.equal, *(net.parameters() for net in made)))
    assert torch.equal(*drawn)  # the check draws no random numbers
    wrong = dataclasses.replace(card, augment=Augment(crop=40))
    with pytest.raises(UnbuildableError, match=r"augment\.crop: teacher\.shape: deepest: .* which does not divide 40"):
        make(wrong, card.teacher, card.teacher.shape, "teacher.shape")


def test_an_unknown_family_is_told_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError) as caught:
        make(COLOUR, student("cifar_resnet"), {}, "student.knobs")
    assert str(caught.value) == (
        f"{COLOUR.file}: student.family: unknown family 'cifar_resnet'; did you mean 'cifar-resnet'? "
        f"Known: {', '.join(sorted([*IMAGE_FAMILIES, 'import']))}."
    )


def test_mobilenet_width() -> None:
    for width in (0.25, 1.0):
        net = make(COLOUR, student("mobilenet-v2"), {"width": width}, "student.knobs")
        assert count_params(net) == count_params(torchvision.models.mobilenet_v2(num_classes=10, width_mult=width))
    with pytest.raises(ConfigError, match=r"mobilenet|3 channels, the card's data has 1; set data\.channels = 3$"):
        make(GREY, student("mobilenet-v2"), {}, "student.knobs")


def test_a_network_of_torchvision() -> None:
    net = make(COLOUR, student("torchvision"), {"model": "squeezenet1_1"}, "student.knobs")
    assert isinstance(net, torchvision.models.SqueezeNet)
    assert count_params(net) == count_params(torchvision.models.squeezenet1_1(num_classes=10))
    with pytest.raises(ConfigError, match=r"torchvision has no model 'squeezenet'; did you mean .*'squeezenet1_[01]'"):
        make(COLOUR, student("torchvision"), {"model": "squeezenet"}, "student.knobs")
    with pytest.raises(ConfigError, match=r"torchvision has no model 'zzzz'; see its documentation"):
        make(COLOUR, student("torchvision"), {"model": "zzzz"}, "student.knobs")
    with pytest.raises(ConfigError, match=r"student\.knobs: model: is missing"):
        make(COLOUR, student("torchvision"), {}, "student.knobs")


def test_a_network_of_timm() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    net = make(GREY, student("timm"), {"model": "test_resnet"}, "student.knobs").eval()
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    with pytest.raises(ConfigError, match=r"timm has no model 'resnet_18'; did you mean .*'resnet18'"):
        make(GREY, student("timm"), {"model": "resnet_18"}, "student.knobs")


def test_names_of_timm_may_have_tags() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    plain, tagged = (
        make(COLOUR, student("timm"), {"model": name}, "student.knobs") for name in ("resnet18", "resnet18.a1_in1k")
    )
    assert count_params(plain) == count_params(tagged)
    with pytest.raises(ConfigError, match=r"timm's resnet18 has no tag 'a1_in2k'; did you mean 'a1_in1k'"):
        make(COLOUR, student("timm"), {"model": "resnet18.a1_in2k"}, "student.knobs")


def test_transformers_are_made_for_the_size_of_the_images() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    for family, model in (("timm", "vit_tiny_patch16_224"), ("torchvision", "vit_b_16")):
        net = make(COLOUR, student(family), {"model": model}, "student.knobs").eval()
        assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    odd = dataclasses.replace(COLOUR, data=dataclasses.replace(COLOUR.data, size=33))
    with pytest.raises(UnbuildableError, match=r"student\.knobs: .*Input shape"):
        make(odd, student("torchvision"), {"model": "vit_b_16"}, "student.knobs")


@pytest.mark.parametrize(("model", "size"), [("googlenet", 32), ("inception_v3", 75)])
def test_networks_with_auxiliary_outputs_give_their_logits(model: str, size: int) -> None:
    net = make(COLOUR, student("torchvision"), {"model": model}, "student.knobs").train()
    assert net(torch.rand(2, 3, size, size)).shape == (2, 10)
    assert not [name for name, _ in net.named_modules() if name.lower().startswith("aux")]


def test_networks_that_cannot_be_built_stay_among_the_candidates() -> None:
    knobs = {"model": ["vit_b_16", "squeezenet1_1"]}
    odd = dataclasses.replace(COLOUR, data=dataclasses.replace(COLOUR.data, size=33))
    assert len(make_shapes(odd, Student(family="torchvision", knobs=knobs))) == 2
    with pytest.raises(ConfigError, match="Input shape"):
        make_shapes(odd, Student(family="torchvision", knobs={"model": ["vit_b_16", "vit_b_32"]}))
    with pytest.raises(ConfigError, match="no model 'squeezenet1_2'"):
        make_shapes(COLOUR, Student(family="torchvision", knobs={"model": ["squeezenet1_1", "squeezenet1_2"]}))


def test_without_timm_the_pip_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UnavailableError, match=r'^the family \'timm\' needs timm; pip install "edgekd\[timm\]"$'):
        make(GREY, student("timm"), {"model": "resnet18"}, "student.knobs")


# --- the user's own family ---


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Card:
    """A card beside a module with a network, and with things that are none."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "def linear(classes, bias=True):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes, bias=bias))\n"
        "def word(classes):\n"
        "    return 'a network'\n"
        "def stubborn(classes):\n"
        "    raise ValueError('no network of 10 classes')\n"
    )
    return dataclasses.replace(GREY, file=str(tmp_path / "card.toml"))


def test_a_function_beside_the_card(own: Card) -> None:
    net = make(own, Student(family="import", function="my_nets:linear"), {"bias": False}, "student.knobs")
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert count_params(net) == 640


def test_what_the_function_gives_and_takes_is_checked(own: Card) -> None:
    with pytest.raises(ConfigError, match=r"my_nets:word gave a str; a torch\.nn\.Module is needed"):
        make(own, Student(family="import", function="my_nets:word"), {}, "student.knobs")
    with pytest.raises(ConfigError, match=r"student\.knobs: my_nets:linear cannot be called so: .*'biass'"):
        make(own, Student(family="import", function="my_nets:linear"), {"biass": False}, "student.knobs")


def test_a_missing_function_is_told(own: Card) -> None:
    with pytest.raises(ConfigError, match=r"student\.function: is missing; family = \"import\" needs it"):
        make(own, Student(family="import"), {}, "student.knobs")
    with pytest.raises(ConfigError, match=r"module 'my_nets' has no function 'liner'; did you mean 'linear'\?"):
        make(own, Student(family="import", function="my_nets:liner"), {}, "student.knobs")


def test_a_function_that_refuses_a_shape_is_told(own: Card) -> None:
    with pytest.raises(ConfigError, match=r"my_nets:stubborn.*no network of 10 classes"):
        make(own, Student(family="import", function="my_nets:stubborn"), {}, "student.knobs")
