"""The fast exporter: the same answers and the same optimised graph as the full one, or a refusal."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.card import Student
from edgekd.export.fast import UnknownOperationError, convert
from edgekd.export.onnx import export
from edgekd.export.precisions import make_variant
from edgekd.export.untrained import export_untrained, unequal, write_precisions
from edgekd.nets.deployed import Deployed, example_inputs, noise_inputs
from edgekd.nets.families import make
from edgekd.nets.folding import folded
from edgekd.target import load_target
from edgekd.tasks.known import load_card

CARD, GREY, TEXT = load_card("cifar10"), load_card("digits"), load_card("sst2")
TARGET = load_target("cpu-x86")
SHAPES = [
    ("cifar-resnet", {"depth": 8, "width": 8}),
    ("convnet", {"channels": [8, 16], "hidden": 16, "grid": 2}),
    ("repvgg", {"widths": [8, 16], "layers": 2}),
    ("inverted-residual", {"width": 8, "resolution": 16}),
    ("mobilenet-v3", {"width": 0.25}),
]


def network(family: str, shape: dict[str, Any], card: Any = CARD, trained: bool = True) -> nn.Module:
    """The network as it is deployed; `trained` gives its batch normalisation and biases other values."""
    torch.manual_seed(0)
    net = make(card, Student(family=family), shape, "student.knobs").eval()
    for module in net.modules():
        if trained and isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
        if trained and isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias)
    return folded(net, card.data)


def converted(module: nn.Module, inputs: Tensor) -> onnx.ModelProto:
    model = convert(module.eval(), inputs, 20, ("image", "logits"), "batch")
    onnx.checker.check_model(model, full_check=True)
    return model


def answers(model: onnx.ModelProto, inputs: Tensor) -> Any:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": inputs.numpy()})[0]


def kernels(file: Path, scratch: Path) -> Counter[str]:
    """Counts the operators of the graph as ONNX Runtime optimises it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(scratch / "optimised.onnx"), 3
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(scratch / "optimised.onnx").graph.node)


@pytest.mark.parametrize(
    ("family", "shape"), [*SHAPES, ("mlp", {}), ("vgg", {"width": 8}), ("separable", {"width": 8})]
)
def test_the_answers_are_those_of_torch_for_any_batch(family: str, shape: dict[str, Any]) -> None:
    module = Deployed(network(family, shape), CARD.data).eval()
    model = converted(module, example_inputs(CARD.data, 2))
    inputs = noise_inputs(CARD.data, 5)
    with torch.no_grad():
        expected = module(inputs).numpy()
    np.testing.assert_allclose(answers(model, inputs), expected, atol=1e-5 * np.abs(expected).max())
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize(("family", "shape"), SHAPES)
def test_the_file_of_an_untrained_network_is_as_large_as_the_final_one(
    family: str, shape: dict[str, Any], tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    full, fast, stored_once = tmp_path / "full.onnx", tmp_path / "fast.onnx", tmp_path / "once.onnx"
    export(network(family, shape), CARD, TARGET, full, {})
    make_variant(full, "int8", TARGET, images, tmp_path / "full-int8.onnx")
    export_untrained(unequal(network(family, shape, trained=False)), CARD, TARGET, images[:2], fast)
    files = write_precisions(fast, TARGET, images)
    size = (tmp_path / "full-int8.onnx").stat().st_size
    # Names and metadata differ by some bytes.
    assert files["int8"].stat().st_size == pytest.approx(size, rel=0.03, abs=250)
    export_untrained(network(family, shape, trained=False), CARD, TARGET, images[:2], stored_once)
    assert write_precisions(stored_once, TARGET, images)["int8"].stat().st_size < size


@pytest.mark.parametrize(("family", "shape"), SHAPES)
def test_the_optimised_graphs_are_those_of_the_final_files(family: str, shape: dict[str, Any], tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    full, fast = tmp_path / "full.onnx", tmp_path / "fast.onnx"
    export(network(family, shape), CARD, TARGET, full, {})
    make_variant(full, "int8", TARGET, images, tmp_path / "full-int8.onnx")
    assert export_untrained(network(family, shape, trained=False), CARD, TARGET, images[:2], fast)
    files = write_precisions(fast, TARGET, images)
    for precision, final in (("fp32", full), ("int8", tmp_path / "full-int8.onnx")):
        assert kernels(files[precision], tmp_path) == kernels(final, tmp_path)
        assert files[precision].stat().st_size == pytest.approx(final.stat().st_size, rel=0.1)


def smaller(card_name: str) -> Any:
    """The card with inputs of fewer pixels, so that the full exporter takes less time."""
    card = load_card(card_name)
    sizes = {"height": 64, "width": 96} if card_name == "bccd" else {"size": 64}
    return dataclasses.replace(card, data=dataclasses.replace(card.data, **sizes))


@pytest.mark.parametrize(
    ("card_name", "family", "shape"),
    [
        ("bccd", "detector", {"width": 8, "strides": (8,), "deepest": 8, "separable": True}),
        ("bccd", "detector", {"width": 8, "strides": (4, 16)}),
        ("nuclei", "unet", {"width": 8, "stem_stride": 2}),
        ("nuclei", "fast-scnn", {"width": 8}),
    ],
)
def test_boxes_and_maps_are_those_of_torch_for_any_batch(card_name: str, family: str, shape: dict[str, Any]) -> None:
    card = smaller(card_name)
    module = Deployed(network(family, shape, card), card.data).eval()
    model = converted(module, example_inputs(card.data, 2))
    inputs = noise_inputs(card.data, 3)
    with torch.no_grad():
        expected = module(inputs).numpy()
    np.testing.assert_allclose(answers(model, inputs), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("card_name", "family", "shape"),
    [
        ("bccd", "detector", {"width": 8, "depth": 0, "neck": 16}),
        ("nuclei", "fast-scnn", {"width": 8, "depth": 1}),
    ],
)
def test_files_for_boxes_and_maps_are_the_final_ones(
    card_name: str, family: str, shape: dict[str, Any], tmp_path: Path
) -> None:
    card = smaller(card_name)
    net, inputs = network(family, shape, card), noise_inputs(card.data, 8)
    full, fast = tmp_path / "full.onnx", tmp_path / "fast.onnx"
    export(net, card, TARGET, full, {})
    make_variant(full, "int8", TARGET, inputs.numpy(), tmp_path / "full-int8.onnx")
    assert export_untrained(net, card, TARGET, inputs[:2].numpy(), fast)
    files = write_precisions(fast, TARGET, inputs.numpy())
    # The full exporter writes the shape of every value into fp32 files.
    for precision, final, rel in (("fp32", full, 0.1), ("int8", tmp_path / "full-int8.onnx", 0.03)):
        assert kernels(files[precision], tmp_path) == kernels(final, tmp_path)
        assert files[precision].stat().st_size == pytest.approx(final.stat().st_size, rel=rel)
        found, expected = (answers(onnx.load(file), inputs) for file in (files[precision], final))
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_what_the_fast_exporter_does_not_know_the_full_one_writes(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Any:
            return self.last(torch.erf(x.flatten(1)))

    assert not export_untrained(Odd(), GREY, TARGET, images, tmp_path / "odd.onnx")
    assert "Erf" in {node.op_type for node in onnx.load(tmp_path / "odd.onnx").graph.node}


class Branching(nn.Module):
    """Takes another way for bright images, which one forward pass cannot tell."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Any:
        return self.one(x.flatten(1)) if float(x.mean()) > 0 else self.other(x.flatten(1))


def test_a_graph_that_differs_from_torch_is_not_taken(tmp_path: Path) -> None:
    """The black images of the export go one way, the white ones of the comparison the other."""
    white = np.full((2, 8, 8, 1), 255, np.uint8)
    with pytest.raises(Exception, match=r"cannot export|differs from torch"):
        export_untrained(Branching(), GREY, TARGET, white, tmp_path / "branching.onnx")


class Ways(nn.Module):
    """Uses of layers that a careless folding would get wrong."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=kind != "no bias")
        self.norm, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        for norm, mean in ((self.norm, 1.0), (self.other, -2.0)):
            assert norm.running_mean is not None
            norm.running_mean.fill_(mean)

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).contiguous().float() / 255
        y = self.conv(x)
        if self.kind == "used twice":
            y = self.norm(y) + y
        elif self.kind == "shared":
            y = self.norm(y) + self.other(self.conv(2 * x))
        elif self.kind == "in place":
            y = F.relu_(self.norm(y)).add_(1).mul_(x)
        elif self.kind == "alone":
            y = self.norm(F.relu(y))
        else:
            y = self.norm(y)
        return F.max_pool2d(F.avg_pool2d(y, 3, 1, 1), 2)[:, :, ::2, 1:].flatten(1)


@pytest.mark.parametrize("kind", ["used twice", "shared", "in place", "alone", "no bias"])
def test_batch_normalisation_is_folded_only_where_it_may_be(kind: str) -> None:
    torch.manual_seed(0)
    module, inputs = Ways(kind).eval(), noise_inputs(CARD.data, 3)
    model = converted(module, example_inputs(CARD.data, 2))
    with torch.no_grad():
        np.testing.assert_allclose(answers(model, inputs), module(inputs).numpy(), atol=1e-5)
    left = sum(node.op_type == "BatchNormalization" for node in model.graph.node)
    assert left == {"used twice": 1, "alone": 1}.get(kind, 0)


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: x.float().flatten(0, 1),
        lambda x: x.float()[:1],
        lambda x: x.float().permute(1, 0, 2, 3),
        lambda x: x.double(),
        lambda x: F.pad(x.float(), (1, 1), value=1.0),
        lambda x: F.avg_pool2d(x.float(), 2, ceil_mode=True),
        lambda x: torch.add(x.float(), x.float(), alpha=2),
        lambda x: (x.float(), x.float()),
        lambda x: F.adaptive_avg_pool2d(x.float(), 5),
        lambda x: F.interpolate(x.float(), size=(7, 7), mode="nearest"),
        lambda x: F.interpolate(x.float(), scale_factor=2.0, mode="bilinear", align_corners=True),
        lambda x: F.interpolate(x.float(), scale_factor=0.5, mode="bilinear", antialias=True),
        lambda x: torch.clamp(x.float(), min=x.float().mean()),
        lambda x: x.float().as_strided((2, 32, 32, 3), (0, 96, 3, 1)),
        lambda x: torch.cumsum(x.float(), 1),
    ],
)
def test_what_would_come_out_wrong_is_refused(forward: Any) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return forward(x)

    with pytest.raises(UnknownOperationError):
        convert(Net(), example_inputs(CARD.data, 2), 20, ("image", "logits"), "batch")


def test_text_is_left_to_the_full_exporter() -> None:
    net = make(TEXT, Student(family="bag-of-words"), {}, "student.knobs")
    with pytest.raises(UnknownOperationError):
        convert(Deployed(net, TEXT.data).eval(), example_inputs(TEXT.data, 2), 20, ("ids", "logits"), "batch")
