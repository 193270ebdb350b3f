"""The families of stages: their layers, counted by hand, and what they compute."""

from typing import Any

import pytest
import torch
from torch import nn

from edgekd.card import Student
from edgekd.errors import ConfigError
from edgekd.nets.deployed import count_macs, count_params
from edgekd.nets.families import UnbuildableError, make
from edgekd.nets.folding import folded
from edgekd.nets.repvgg import RepVggBlock
from edgekd.tasks.known import load_card

COLOUR = load_card("cifar10")
GREY = load_card("digits")
FAMILIES = ("vgg", "repvgg", "inverted-residual", "separable")


def net_of(family: str, shape: dict[str, Any], card: Any = COLOUR) -> nn.Module:
    torch.manual_seed(0)
    return make(card, Student(family=family), shape, "student.knobs").eval()


def stirred(net: nn.Module) -> nn.Module:
    """The network with statistics and factors of batch normalisation as training leaves them: all different."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return net


@pytest.mark.parametrize(
    ("family", "shape", "params", "macs"),
    [
        # 3×3 weights and two numbers of batch normalisation for each channel; the last layer has 10 outputs.
        ("vgg", {"widths": [8, 16]}, 27 * 8 + 16 + 72 * 16 + 32 + 170, 1024 * 27 * 8 + 256 * 72 * 16 + 160),
        ("vgg", {"widths": [8], "layers": 2, "stem_stride": 2}, 216 + 16 + 576 + 16 + 90, 256 * (216 + 576) + 80),
        # 3×3 and 1×1 branches, and the identity's batch normalisation where the size stays
        (
            "repvgg",
            {"widths": [8], "layers": 1},
            (216 + 24 + 32) + (576 + 64 + 48) + 90,
            1024 * (216 + 24 + 576 + 64) + 80,
        ),
        (
            "separable",
            {"widths": [8, 16]},
            (216 + 16) + (72 + 16 + 64 + 16) + (72 + 16 + 128 + 32) + 170,
            1024 * (216 + 72 + 64) + 256 * (72 + 128) + 160,
        ),
        (
            "inverted-residual",
            {"widths": [8], "expansion": 2},
            (216 + 16) + (128 + 32 + 144 + 32 + 128 + 16) + (128 + 32) + 170,
            1024 * (216 + 128 + 144 + 128 + 128) + 160,
        ),
    ],
)
def test_parameters_and_multiplications_by_hand(family: str, shape: dict[str, Any], params: int, macs: int) -> None:
    net = net_of(family, shape)
    assert (count_params(net), count_macs(net, COLOUR.data)) == (params, macs)


@pytest.mark.parametrize("family", FAMILIES)
def test_widths_double_and_the_grey_digits_fit(family: str) -> None:
    double = net_of(family, {"width": 8, "layers": 2}, GREY)
    named = net_of(family, {"widths": [8, 16, 32], "layers": 2}, GREY)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(double(x), named(x))
    assert double(x).shape == (3, 10)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_folded_repvgg_is_plain_and_gives_the_same_logits(stride: int) -> None:
    net = stirred(net_of("repvgg", {"widths": [16, 32], "layers": 3, "stem_stride": stride}))
    plain = folded(net, COLOUR.data)
    x = torch.rand(8, 3, 32, 32)
    with torch.no_grad():
        difference = (plain(x) - net(x)).abs().max() / net(x).abs().max()
    assert float(difference) < 1e-5
    kinds = [type(module) for module in plain.modules() if not list(module.children())]
    assert kinds == [nn.Conv2d, nn.ReLU] * 7 + [nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]
    assert all(module.kernel_size == (3, 3) for module in plain.modules() if isinstance(module, nn.Conv2d))


def test_the_identity_branch_is_there_where_the_size_stays() -> None:
    assert [RepVggBlock(*sizes).bn0 is not None for sizes in ((8, 8, 1), (8, 16, 1), (8, 8, 2))] == [True, False, False]


def test_an_inverted_block_adds_its_input_where_the_size_stays() -> None:
    net = net_of("inverted-residual", {"widths": [8], "layers": 1})
    block = net.get_submodule("3.0")
    last = block.get_submodule("parts").get_submodule("7")
    assert isinstance(last, nn.BatchNorm2d)
    nn.init.zeros_(last.weight)  # the branch gives zero, so the input is left
    x = torch.rand(2, 8, 5, 5)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    ("family", "shape", "said"),
    [
        ("vgg", {"width": 12}, "width: got 12; it should be a multiple of 8"),
        ("repvgg", {"widths": [8, 12]}, "widths.1: got 12; it should be a multiple of 8"),
        ("separable", {"width": 8, "widths": [8]}, "should give width or widths, not both"),
        ("inverted-residual", {"expansion": 0}, "expansion: got 0; it should be greater than or equal to 1"),
        ("vgg", {"layer": 2}, "layer: unknown key; did you mean 'layers'"),
        ("separable", {"stem_stride": 3}, "stem_stride: got 3; it should be 1 or 2"),
        ("vgg", {"resolution": 15}, "resolution: got 15; it should divide the images' size, 32"),
        ("mobilenet-v3", {"size": "tiny"}, "size: got \"tiny\"; it should be 'small' or 'large'"),
    ],
)
def test_a_wrong_shape_is_one_line(family: str, shape: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        net_of(family, shape)
    assert str(caught.value).startswith(f"{COLOUR.file}: student.knobs: {said}")


def test_too_many_stages_for_the_images() -> None:
    with pytest.raises(UnbuildableError, match="5 stages halve images of 8×8 too often"):
        net_of("vgg", {"widths": [8] * 5}, GREY)


def test_a_lower_resolution_is_the_mean_of_squares() -> None:
    net, small = net_of("vgg", {"widths": [8]}), net_of("vgg", {"widths": [8], "resolution": 16})
    x = torch.rand(2, 3, 32, 32)
    means = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    torch.testing.assert_close(small(x), net(means))


@pytest.mark.parametrize(("width", "size"), [(0.25, "small"), (0.5, "large")])
def test_mobile_networks_have_a_width(width: float, size: str) -> None:
    full, narrow = (net_of("mobilenet-v3", {"size": size, "width": factor}) for factor in (1.0, width))
    assert count_params(narrow) < width * count_params(full) * 1.2
    assert narrow(torch.rand(2, 3, 32, 32)).shape == (2, 10)
