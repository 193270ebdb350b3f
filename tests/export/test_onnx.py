"""torch to ONNX: what the file holds, that it computes the same, and what is refused."""

import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from edgekd import __version__
from edgekd.card import Export, Student
from edgekd.data.sources import load_test
from edgekd.errors import ConfigError, ModelError
from edgekd.export.onnx import cpu_logits, export, parity, refuse_free_shapes, save_model
from edgekd.export.quantize import quantize
from edgekd.export.untrained import export_untrained
from edgekd.nets.families import make
from edgekd.settings import parse_settings
from edgekd.target import Opset, load_target
from edgekd.tasks.known import load_card, task_of

CARD = load_card("digits")
TARGET = load_target("cpu-x86")


def network(seed: int = 0) -> nn.Module:
    """A small network whose batch norms are not the identity."""
    torch.manual_seed(seed)
    net = make(CARD, Student(family="convnet"), {"channels": [4, 8], "hidden": 16, "grid": 2}, "student.knobs")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean = torch.rand(module.num_features) - 0.5
            module.running_var = torch.rand(module.num_features) + 0.5
    return net.eval()


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return load_test(CARD, None).read(np.arange(100))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "student.onnx"
    export(network(), CARD, TARGET, path, {"trained": "distilled", "teacher": "t.safetensors"})
    return path


def run(path: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"image": images})[0])


def by_hand(net: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    x = (images.astype(np.float64).transpose(0, 3, 1, 2) / 255 - CARD.data.mean[0]) / CARD.data.std[0]
    with torch.no_grad():
        return np.asarray(net(torch.from_numpy(x.astype(np.float32))))


def test_it_is_one_whole_file_of_the_targets_opset(exported: Path) -> None:
    assert [path.name for path in exported.parent.iterdir()] == ["student.onnx"]
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": TARGET.opset.export}


def test_it_takes_bytes_and_any_number_of_images(exported: Path) -> None:
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    (given,), (taken,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("image", "tensor(uint8)", ["batch", 8, 8, 1])
    assert (taken.name, taken.type, taken.shape) == ("logits", "tensor(float)", ["batch", 10])


@pytest.mark.parametrize("count", [1, 2, 33])
def test_it_computes_what_torch_computes(exported: Path, images: NDArray[np.uint8], count: int) -> None:
    expected = by_hand(network(), images[:count])
    assert expected.std() > 0.01
    assert np.abs(run(exported, images[:count]) - expected).max() < 1e-5 * np.abs(expected).max()


def test_its_metadata_tells_how_to_use_it(exported: Path) -> None:
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told.pop("labels")) == [str(n) for n in range(10)]
    normalization = json.loads(told.pop("normalization"))
    assert normalization == {"mean": [0.3055], "std": [0.3760], "scale": "pixel / 255", "in_graph": True}
    assert told == {
        "edgekd": __version__,
        "card": "digits",
        "target": "cpu-x86",
        "input": "uint8 (batch, 8, 8, 1), grey",
        "resize": "none, 8x8 as given; grey, uint8, 0 to 255",
        "trained": "distilled",
        "teacher": "t.safetensors",
    }


def test_the_exporters_notes_are_gone(exported: Path, tmp_path: Path) -> None:
    def notes(model: onnx.ModelProto) -> list[str]:
        graph = model.graph
        things = [*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph]
        return [entry.key for thing in things for entry in thing.metadata_props] + [
            thing.doc_string for thing in things if thing.doc_string
        ]

    model = onnx.load(exported)
    assert len(model.graph.node) > 5
    assert notes(model) == []
    model.graph.node[0].doc_string = "a stack trace"
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx", value="long")
    model.graph.input[0].doc_string = "a note"
    assert len(notes(model)) == 3
    save_model(model, tmp_path / "again.onnx")
    assert notes(onnx.load(tmp_path / "again.onnx")) == []
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


def test_parity_measures_the_difference(exported: Path, images: NDArray[np.uint8]) -> None:
    logits = run(exported, images)
    given = parity(network(), CARD, images, logits)
    assert given.examples == 100
    assert given.relative < 1e-5
    assert given.same == 1
    expected = by_hand(network(), images)
    shifted = logits + np.float32(2e-4 * np.abs(expected).max())
    assert parity(network(), CARD, images, shifted).relative == pytest.approx(2e-4, rel=0.05)


def test_parity_refuses_another_network(exported: Path, images: NDArray[np.uint8]) -> None:
    with pytest.raises(
        ModelError, match=r"^the exported file differs from torch on 100 images: their logits differ by "
    ):
        parity(network(seed=1), CARD, images, run(exported, images))


@pytest.mark.parametrize("what", ["offset", "nan"])
def test_parity_refuses_other_answers(exported: Path, images: NDArray[np.uint8], what: str) -> None:
    logits = run(exported, images)
    if what == "offset":
        logits[50] += 2e-3 * np.abs(logits).max()
    else:
        logits[50, 3] = np.nan
    with pytest.raises(ModelError, match=r"differs from torch"):
        parity(network(), CARD, images, logits)


def test_parity_refuses_other_classes(images: NDArray[np.uint8]) -> None:
    class Always(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([1.0] * 9 + [0.0]).repeat(len(x), 1)

    logits = np.tile(np.array([1.0] * 9 + [0.0], np.float32), (100, 1))
    assert parity(Always(), CARD, images, logits).same == 1
    logits[7, 4] += 5e-4  # within the tolerance, yet another class wins
    with pytest.raises(ModelError, match=r"same class 99\.00 % \(99\.9 % asked\)$"):
        parity(Always(), CARD, images, logits)


@pytest.mark.parametrize("opset", [18, 23])
def test_other_opsets(tmp_path: Path, images: NDArray[np.uint8], opset: int) -> None:
    target = dataclasses.replace(TARGET, opset=Opset(min=18, max=23, export=opset))
    export(network(), CARD, target, tmp_path / "m.onnx", {})
    assert onnx.load(tmp_path / "m.onnx").opset_import[0].version == opset
    assert np.allclose(run(tmp_path / "m.onnx", images), by_hand(network(), images), atol=1e-4)


def test_an_opset_that_torch_ignores_is_told(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(exported)
    asked: list[int] = []

    def other_opset(*_: Any, opset_version: int, **__: Any) -> Any:
        asked.append(opset_version)
        return types.SimpleNamespace(model_proto=model)

    monkeypatch.setattr(torch.onnx, "export", other_opset)
    target = dataclasses.replace(TARGET, opset=Opset(min=18, max=25, export=22))
    with pytest.raises(ModelError) as caught:
        export(network(), CARD, target, tmp_path / "m.onnx", {})
    assert asked == [22]
    assert str(caught.value) == (
        "torch wrote opset 20, target cpu-x86 wants opset.export = 22; set it to 20 if the device can load that"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_exported_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Stubborn(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError("not on a device")

    with pytest.raises(ModelError, match=r"^torch cannot export the network to ONNX: .+") as caught:
        export(Stubborn(), CARD, TARGET, tmp_path / "m.onnx", {})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


FIXED = dataclasses.replace(TARGET, fixed_shapes=True)


def test_a_target_can_want_fixed_shapes(images: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "fixed.onnx"
    export(network(), CARD, FIXED, path, {})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,), (taken,) = session.get_inputs(), session.get_outputs()
    assert (given.shape, taken.shape) == ([1, 8, 8, 1], [1, 10])
    assert session.get_modelmeta().custom_metadata_map["input"] == "uint8 (1, 8, 8, 1), grey"
    answers = cpu_logits(path, task_of(CARD.data), images)
    assert np.abs(answers - by_hand(network(), images)).max() < 1e-5 * np.abs(answers).max()
    assert parity(network(), CARD, images, answers).same == 1
    free, fast = tmp_path / "free.onnx", tmp_path / "fast.onnx"
    export(network(), CARD, TARGET, free, {})
    kinds = [[node.op_type for node in onnx.load(file).graph.node] for file in (path, free)]
    assert kinds[0] == kinds[1]  # so that candidates and final files have the same operators
    assert export_untrained(network(), CARD, FIXED, images, fast)
    assert onnxruntime.InferenceSession(fast, providers=["CPUExecutionProvider"]).get_inputs()[0].shape[0] == 1
    quantize(path, tmp_path / "int8.onnx", FIXED.quantization, images)
    made = onnx.load(tmp_path / "int8.onnx").graph
    assert [dim.dim_value for dim in made.output[0].type.tensor_type.shape.dim] == [1, 10]


def test_what_has_free_shapes_is_refused_for_such_a_target() -> None:
    refuse_free_shapes(CARD, FIXED)
    resized = dataclasses.replace(CARD, export=Export(resize=True, timed_size=(8, 8)))
    with pytest.raises(
        ConfigError, match=r"export\.resize: takes images of any size, and target cpu-x86 has fixed_sha"
    ):
        refuse_free_shapes(resized, FIXED)
    with pytest.raises(ConfigError, match="sentences have free lengths"):
        refuse_free_shapes(load_card("sst2"), FIXED)
    refuse_free_shapes(resized, TARGET)


@pytest.mark.parametrize("name", ["qnn-npu", "coreml"])
def test_neural_processors_want_fixed_shapes(name: str) -> None:
    assert load_target(name).fixed_shapes
    with pytest.raises(ConfigError, match=r"session\.batch_sizes: has no effect with fixed_shapes = true"):
        load_target(name, parse_settings(["session.batch_sizes=[4]"]))
