"""Fake quantization: its numbers by hand, and what it refuses."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd.card import Student
from edgekd.errors import ConfigError, ModelError
from edgekd.nets.deployed import Deployed, noise_inputs
from edgekd.nets.fakequant import Quantizer, calibrated, fake_quantized, refuse_scheme
from edgekd.nets.families import make
from edgekd.nets.graph import folded_graph, moved_activations
from edgekd.target import Quantization
from edgekd.tasks.known import load_card

CARD = load_card("digits")


def settled(low: float, high: float, positive: bool = False, **scheme: object) -> Quantizer:
    """A quantizer that saw values from `low` to `high`."""
    quantizer = Quantizer(Quantization(**scheme), positive)  # type: ignore[arg-type]
    quantizer.observing = True
    quantizer(torch.tensor([[low, high]]))
    quantizer.observing = False
    quantizer.settle()
    return quantizer


def warm(net: nn.Module) -> nn.Module:
    """Give the batch normalisation of `net` statistics that are not those of a new one."""
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.get_buffer("running_mean"), std=0.3)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2.0)
    return net.eval()


def test_halves_are_rounded_to_even() -> None:
    quantizer = settled(0.0, 255.0, positive=True)
    values = torch.tensor([[0.5, 1.5, 2.5, 3.49, -7.0, 300.0]])
    assert quantizer(values).tolist() == [[0.0, 2.0, 2.0, 3.0, 0.0, 255.0]]


@pytest.mark.parametrize(
    ("activation", "symmetric", "zero", "scale"),
    [("uint8", False, 51, 5 / 255), ("int8", False, -77, 5 / 255), ("int8", True, 0, 4 / 127)],
)
def test_scale_and_zero_point(activation: str, symmetric: bool, zero: int, scale: float) -> None:
    quantizer = settled(-1.0, 4.0, activation=activation, symmetric_activation=symmetric)
    assert quantizer.get_buffer("zero").item() == zero
    assert quantizer.scale.item() == pytest.approx(scale)
    assert quantizer(torch.zeros(1, 1)).item() == 0.0  # padding stays exactly zero


def test_a_layer_computes_like_whole_numbers() -> None:
    """x and w are rounded, and the bias is a whole number of steps of s_x · s_w: an int32 times a scale comes out."""
    torch.manual_seed(0)
    net = nn.Sequential(OrderedDict(flat=nn.Flatten(), first=nn.Linear(64, 8), relu=nn.ReLU(), last=nn.Linear(8, 10)))
    graph = fake_quantized(net, CARD.data, Quantization())
    whole, images = Deployed(graph, CARD.data), noise_inputs(CARD.data, 16)
    calibrated(whole, iter([images]))
    with torch.no_grad():
        answers = whole(images).numpy()

    def levels(x: np.ndarray, quantizer: nn.Module) -> tuple[np.ndarray, float, int]:
        assert isinstance(quantizer, Quantizer)
        scale, zero = quantizer.scale.item(), int(quantizer.get_buffer("zero").item())
        return np.clip(np.rint(x / np.float32(scale)) + zero, 0, 255).astype(np.int64) - zero, scale, zero

    x = whole.preprocess(images).flatten(1).numpy()
    for name, layer in (("first", net.first), ("last", net.last)):
        assert isinstance(layer, nn.Linear)
        quantizers = [module for module in graph.modules() if isinstance(module, Quantizer)]
        q, s_x, _ = levels(x, quantizers[0 if name == "first" else 1])
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        s_w = np.abs(weight).max(axis=1) / 127
        sums = q @ np.rint(weight / s_w[:, None]).astype(np.int64).T + np.rint(bias / (s_x * s_w)).astype(np.int64)
        x = (sums * (s_x * s_w)).astype(np.float32)
        x = np.maximum(x, 0) if name == "first" else x
    np.testing.assert_allclose(answers, x, atol=1e-5)


def test_gradients_pass_the_rounding_and_reach_the_scales() -> None:
    quantizer = settled(0.0, 2.55, positive=True)
    x = torch.tensor([[0.104, 1.0, 9.0]], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[1.0, 1.0, 0.0]]  # 9.0 is clipped
    assert quantizer.scale.grad is not None
    # LSQ, equation 3: round(v) − v inside the range, the highest level above it; divided by √(values · levels).
    expected = ((10 - 10.4) + (100 - 100) + 255) / (3 * 255) ** 0.5
    assert quantizer.scale.grad.item() == pytest.approx(expected, rel=1e-3)


def test_seven_bits_and_scales_per_tensor() -> None:
    net = make(CARD, Student(family="mlp"), {"hidden": [8]}, "student.knobs")
    for scheme, top, scales in ((Quantization(reduce_range=True), 64, 8), (Quantization(per_channel=False), 127, 1)):
        graph = fake_quantized(net, CARD.data, scheme)
        layer = next(module for name, module in graph.named_modules() if name.endswith("1_int8"))
        assert (layer.top, layer.scales()[0].numel()) == (top, scales)


@pytest.mark.parametrize("family", ["convnet", "cifar-resnet"])
def test_batch_normalisation_is_folded(family: str) -> None:
    shape = {"depth": 8, "width": 4} if family == "cifar-resnet" else {"channels": [4, 8], "hidden": 8}
    net = warm(make(CARD, Student(family=family), shape, "student.knobs"))
    graph = folded_graph(net, CARD.data)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in graph.modules())
    images = Deployed(net, CARD.data).preprocess(noise_inputs(CARD.data, 8))
    with torch.no_grad():
        torch.testing.assert_close(graph(images), net(images), rtol=1e-4, atol=1e-4)


def test_a_relu_moves_before_the_pooling() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10)).eval()
    graph = folded_graph(net, CARD.data)
    images = torch.randn(4, 1, 8, 8)
    before = graph(images)
    moved_activations(graph)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["0", "2", "1", "3", "4"]
    assert torch.equal(graph(images), before)


class Scaled(nn.Module):
    """A network with a multiplication between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.flatten(x, 1) * 2)
        return logits


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 10)), r"GELU \(2\) has no int8 kernel"),
        (nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 10)), r"LayerNorm \(1\) has no int8 kernel"),
        (Scaled(), r"mul \(mul\) has no int8 kernel"),
        (nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10)), r"BatchNorm2d \(0\) has no int8 kernel"),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(128, 10)),
            "pads",
        ),
    ],
)
def test_what_would_stay_in_float_is_refused(net: nn.Module, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        fake_quantized(net.eval(), CARD.data, Quantization())


def test_uint8_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^board.toml: quantization.weight: got 'uint8'; \[recipe.qat\] of the card"):
        refuse_scheme(Quantization(weight="uint8"), "board.toml")


def with_a_dead_channel() -> nn.Sequential:
    """A network in which one channel is 0 for every image, as training leaves some: the folded batch normalisation
    after it has divided by nearly 0, so that its weights are a thousand times larger than those of the others."""
    torch.manual_seed(0)
    first, depthwise = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
    with torch.no_grad():
        first.bias[0] = -100  # type: ignore[index]
        depthwise.weight[0] *= 1_000
    parts = [first, nn.ReLU(), depthwise, nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)]
    return nn.Sequential(*parts).eval()


def test_weights_that_nothing_reaches_do_not_spoil_the_one_scale_of_a_layer() -> None:
    net, images = with_a_dead_channel(), noise_inputs(CARD.data, 64)
    graph = fake_quantized(net, CARD.data, Quantization(per_channel=False))
    layer = graph.get_submodule("2_int8")
    scale = layer.weight.abs().max() / 127  # type: ignore[operator]
    assert not (layer.weight[1:] / scale).round().any()  # type: ignore[index]  # all others would be 0
    whole = Deployed(graph, CARD.data)
    calibrated(whole, iter([images]))
    with torch.no_grad():
        expected, found = Deployed(net, CARD.data)(images), whole.eval()(images)
    assert (found - expected).abs().max() <= 0.1 * (expected - expected.mean(0)).abs().max()
    assert torch.equal(layer.weight[1:], net[2].weight[1:])  # type: ignore[index]  # they are not clipped


@pytest.mark.parametrize("channels", [4, 64])
def test_the_inputs_of_a_linear_layer_on_sequences_are_its_last_axis(channels: int) -> None:
    torch.manual_seed(0)
    parts = [nn.Conv2d(1, channels, 3, padding=1), nn.Flatten(2), nn.Linear(64, 8), nn.Flatten()]
    net, images = nn.Sequential(*parts, nn.Linear(8 * channels, 10)).eval(), noise_inputs(CARD.data, 16)
    whole = Deployed(fake_quantized(net, CARD.data, Quantization(per_channel=False)), CARD.data)
    calibrated(whole, iter([images]))
    sequences = net[:2](whole.preprocess(images))
    layer = next(module for name, module in whole.named_modules() if name.endswith("2_int8"))
    torch.testing.assert_close(layer.get_buffer("power"), sequences.square().sum((0, 1)))


def test_scales_per_channel_need_no_clipping() -> None:
    net = with_a_dead_channel()
    graph = fake_quantized(net, CARD.data, Quantization())
    calibrated(Deployed(graph, CARD.data), iter([noise_inputs(CARD.data, 64)]))
    assert torch.equal(graph.get_submodule("2_int8").weight, net[2].weight)  # type: ignore[arg-type]
