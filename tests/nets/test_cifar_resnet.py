"""The CIFAR ResNets: sizes as published, the parameter-free shortcut by hand, depths that do not exist."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekd.card import Teacher
from edgekd.data.sources import load_test
from edgekd.errors import ConfigError
from edgekd.nets.cifar_resnet import CifarResNet, CifarResNetShape
from edgekd.nets.deployed import count_macs, count_params
from edgekd.nets.families import make
from edgekd.nets.teachers import load_teacher_file
from edgekd.tasks.known import load_card

CARD = load_card("cifar10")


@pytest.mark.parametrize(("depth", "params"), [(20, 269_722), (56, 853_018)])
def test_parameter_counts_are_the_published_ones(depth: int, params: int) -> None:
    net = make(CARD, CARD.student, {"depth": depth, "width": 16}, "student.knobs")
    assert count_params(net) == params


def test_multiply_accumulates_of_resnet20() -> None:
    # 3×3 convolutions: 3→16, six 16→16 at 32×32; 16→32, five 32→32 at 16×16; 32→64, five 64→64 at 8×8; 64→10.
    stages = 32**2 * (3 * 16 + 6 * 16 * 16) + 16**2 * (16 * 32 + 5 * 32 * 32) + 8**2 * (32 * 64 + 5 * 64 * 64)
    net = CifarResNet(CifarResNetShape(depth=20), 3, 10)
    assert count_macs(net, CARD.data) == 9 * stages + 64 * 10 == 40_551_040


@pytest.mark.parametrize(("stage", "inside", "outside", "stride"), [("layer1", 4, 4, 1), ("layer2", 4, 8, 2)])
def test_the_shortcut_has_no_parameters(stage: str, inside: int, outside: int, stride: int) -> None:
    net = CifarResNet(CifarResNetShape(depth=8, width=4), 3, 10).eval()
    block = getattr(net, stage)[0]
    with torch.no_grad():
        block.bn2.weight.zero_()  # what is left of the block is its shortcut
        x = torch.rand(2, inside, 6, 6)
        y = block(x)
    expected = torch.zeros(2, outside, 6 // stride, 6 // stride)
    begin = (outside - inside) // 2  # zero channels split evenly on both sides
    expected[:, begin : begin + inside] = x[:, :, ::stride, ::stride]
    assert torch.equal(y, expected)


def test_the_block_is_two_convolutions_and_the_shortcut() -> None:
    torch.manual_seed(0)
    net = CifarResNet(CifarResNetShape(depth=8, width=4), 3, 10).eval()
    block, x = net.layer1[0], torch.randn(2, 4, 5, 5)
    weights = {name: value for name, value in block.state_dict().items() if name.startswith("conv")}
    with torch.no_grad():
        for bn in block.children():
            if isinstance(bn, nn.BatchNorm2d):
                bn.running_var = torch.full((4,), 4.0 - bn.eps)  # then normalising is halving
        y = torch.nn.functional.conv2d(x, weights["conv1.weight"], padding=1).div(2).clamp(min=0)
        y = torch.nn.functional.conv2d(y, weights["conv2.weight"], padding=1).div(2)
        assert torch.allclose(block(x), (y + x).clamp(min=0), atol=1e-6)


@pytest.mark.parametrize(
    ("depth", "rule"),
    [(21, "multiple of 2"), (18, r"6 n \+ 2 \(8, 14, 20, 26, …\), got 18"), (2, "greater than or equal")],
)
def test_a_depth_that_does_not_exist_is_told(depth: int, rule: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{CARD.file}: teacher\.shape: .*{rule}"):
        make(CARD, CARD.teacher, {"depth": depth}, "teacher.shape")


@pytest.mark.slow
def test_the_published_resnet20_on_cifar10(data_folder: Path) -> None:
    teacher = Teacher(family="cifar-resnet", shape={"depth": 20, "width": 16})
    card = dataclasses.replace(CARD, teacher=teacher)
    net = load_teacher_file(card, data_folder / "teachers" / "cifar10-resnet20.safetensors")
    test = load_test(card, data_folder / "cifar10").subset(torch.arange(1_000).numpy())
    with torch.no_grad():
        logits = net.module(torch.from_numpy(test.read(torch.arange(1_000).numpy())))
    accuracy = float((logits.argmax(1).numpy() == test.labels).mean())
    # 91.73 % on all 10,000; on a thousand the standard error is 0.9 points.
    assert abs(accuracy - 0.9173) < 0.027


def test_option_b_has_a_convolution_in_its_shortcuts() -> None:
    net = CifarResNet(CifarResNetShape(depth=20, shortcut="B"), 3, 10).eval()
    assert count_params(net) == 269_722 + (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    assert [name for name in net.state_dict() if "shortcut" in name and name.endswith("0.weight")] == [
        "layer2.0.shortcut.0.weight",
        "layer3.0.shortcut.0.weight",
    ]
    block: Any = net.layer2[0]
    x = torch.rand(2, 16, 8, 8)
    with torch.no_grad():
        y = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
        theirs = F.conv2d(x, block.shortcut[0].weight, stride=2) / (1 + 1e-5) ** 0.5
        torch.testing.assert_close(block(x), F.relu(y + theirs))


def test_stages_may_have_widths_of_their_own() -> None:
    net = CifarResNet(CifarResNetShape(depth=8, widths=(32, 48, 48), stem_stride=2), 3, 10)
    stages: list[Any] = [net.layer1, net.layer2, net.layer3]
    assert [stage[0].conv1.out_channels for stage in stages] == [32, 48, 48]
    assert net.layer1(net.conv1(torch.rand(2, 3, 32, 32))).shape == (2, 32, 16, 16)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    narrower = CifarResNet(CifarResNetShape(depth=8, widths=(32, 16, 48), shortcut="B"), 3, 10)
    assert narrower(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_stages_may_have_numbers_of_blocks_of_their_own() -> None:
    net = CifarResNet(CifarResNetShape(blocks=(0, 3, 1), widths=(8, 32, 48), shortcut="B"), 3, 10)
    assert [len(stage) for stage in (net.layer1, net.layer2, net.layer3)] == [0, 3, 1]
    stem, second = 8 * 27 + 16, 8 * 32 * 9 + 5 * 32 * 32 * 9 + 8 * 32 + 7 * 64
    third = 32 * 48 * 9 + 48 * 48 * 9 + 32 * 48 + 3 * 96
    assert count_params(net) == stem + second + third + 49 * 10
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_equal_numbers_of_blocks_are_a_depth() -> None:
    shapes = [CifarResNetShape(depth=14), CifarResNetShape(blocks=(2, 2, 2))]
    nets = []
    for shape in shapes:
        torch.manual_seed(0)
        nets.append(CifarResNet(shape, 3, 10).eval())
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(nets[0](x), nets[1](x))


def test_the_plain_shape_keeps_its_names_and_its_weights() -> None:
    torch.manual_seed(0)
    net = CifarResNet(CifarResNetShape(depth=8, width=8), 3, 10)
    names = [f"layer{stage}.0.{part}" for stage in (1, 2, 3) for part in ("conv1", "bn1", "conv2", "bn2")]
    modules = dict.fromkeys(name.rpartition(".")[0] for name in net.state_dict())
    assert list(modules) == ["conv1", "bn1", *names, "linear"]
    total = sum(float(value.double().sum()) for value in net.state_dict().values())
    assert total == pytest.approx(229.20528, abs=1e-3)  # what version 0.1 drew


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"width": 8, "widths": (8, 16, 32)}, "should give width or widths, not both"),
        ({"depth": 14, "blocks": (1, 2, 1)}, "should give depth or blocks, not both"),
        ({"blocks": (1, 0, 1)}, "greater than or equal to 1"),
        ({"widths": (32, 16, 32)}, 'widths: should not decrease with shortcut = "A"'),
    ],
)
def test_stages_that_do_not_fit_are_told(shape: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CifarResNetShape(**shape)
