"""`edgekd export` on networks that edgekd did not train, as a user calls it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from edgekd.card import Teacher
from edgekd.draft.network import image_card
from edgekd.nets.families import make
from edgekd.nets.weights import save_state

Cli = Callable[..., Any]

MODULE = """
import torch
from torch import nn

def small(width=4, classes=3):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, classes))

class Two(nn.Module):
    def forward(self, x):
        return {"a": x}

def two():
    return Two()

def number():
    return 3
"""


@pytest.fixture
def mine(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The name of a module in the test's folder; of its own, because Python keeps modules by their names."""
    name = f"mine_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(MODULE, encoding="utf-8")
    return name


def told(path: Path) -> tuple[onnxruntime.InferenceSession, dict[str, str]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session, session.get_modelmeta().custom_metadata_map


def test_a_function_with_ready_inputs(cli: Cli, mine: str, tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).standard_normal((9, 3, 6, 8), np.float32)
    np.savez(tmp_path / "ready.npz", inputs=inputs)
    shape = ["--input", "3,6,8", "--shape", "width=8", "--classes", "cat,dog,cow"]
    done = cli("export", f"{mine}:small", "--target", "cpu-x86", *shape, "--data", "ready.npz")
    assert done.returncode == 0, done.stderr
    assert "small.onnx: fp32, opset 20, " in done.stdout
    assert "labels: 3 (cat … cow), in the metadata" in done.stdout
    assert "agreement with torch on 9 examples of ready.npz: same class 100.00 %" in done.stdout
    assert "  edgekd quantize small.onnx --target cpu-x86 --data ready.npz" in done.stdout
    assert "  edgekd init --data DIR --teacher small.onnx --target cpu-x86" in done.stdout
    session, metadata = told(tmp_path / "small.onnx")
    assert session.get_inputs()[0].shape == ["batch", 3, 6, 8]
    assert metadata["input"] == "float32 (batch, 3, 6, 8), as the network takes it"
    assert json.loads(metadata["labels"]) == ["cat", "dog", "cow"]
    namespace: dict[str, Any] = {}
    exec(MODULE, namespace)
    with torch.no_grad():
        expected = namespace["small"](8).eval()(torch.from_numpy(inputs)).numpy()
    assert np.allclose(session.run(None, {"input": inputs})[0], expected, atol=1e-5)


def test_a_checkpoint_whose_family_is_recognised(cli: Cli, tmp_path: Path) -> None:
    """With the normalisation in the graph, for a target that wants fixed shapes."""
    torch.manual_seed(1)
    teacher = Teacher(family="convnet", shape={"channels": [4, 8], "hidden": 16, "grid": 2})
    net = make(image_card(Path("x"), (3, 8, 8), ("a", "b"), teacher=teacher), teacher, teacher.shape, "shape").eval()
    save_state(net, tmp_path / "net.safetensors", {})
    scale = ["--mean", "0.5,0.4,0.3", "--std", "0.2,0.3,0.4"]
    done = cli("export", "net.safetensors", "-t", "qnn-npu", "--input", "3,8,8", *scale, "--out", "made.onnx")
    assert done.returncode == 0, done.stderr
    assert "on 64 inputs of noise (--data takes real ones): same class 100.00 %" in done.stdout
    session, metadata = told(tmp_path / "made.onnx")
    given = session.get_inputs()[0]
    assert (given.name, given.type, given.shape) == ("image", "tensor(uint8)", [1, 8, 8, 3])
    assert metadata["input"] == "uint8 (1, 8, 8, 3), RGB"
    assert json.loads(metadata["normalization"])["mean"] == [0.5, 0.4, 0.3]
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    pixels = ((image / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]).transpose(0, 3, 1, 2).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(pixels)).numpy()
    assert np.allclose(session.run(None, {"image": image})[0], expected, atol=1e-5)
    assert onnx.load(tmp_path / "made.onnx").opset_import[0].version == 20


def test_the_network_of_a_card(cli: Cli, tiny_card: Path, tmp_path: Path) -> None:
    from edgekd.nets.teachers import make_teacher_net
    from edgekd.tasks.known import load_card

    save_state(make_teacher_net(load_card(str(tiny_card))), tmp_path / "t.safetensors", {})
    done = cli("export", "t.safetensors", "--card", tiny_card, "-t", "cpu-arm")
    assert done.returncode == 0, done.stderr
    assert "agreement with torch on 64 images of the validation data: same class 100.00 %" in done.stdout
    _, metadata = told(tmp_path / "t.onnx")
    assert (metadata["card"], metadata["target"], metadata["trained"]) == ("tiny", "cpu-arm", "elsewhere")


def test_a_network_for_sound_takes_samples(cli: Cli, tmp_path: Path) -> None:
    from edgekd.nets.teachers import make_teacher_net
    from edgekd.tasks.known import load_card

    save_state(make_teacher_net(load_card("speech-commands")), tmp_path / "t.safetensors", {})
    done = cli("export", "t.safetensors", "--card", "speech-commands", "-t", "cpu-arm")
    assert done.returncode == 0, done.stderr
    assert "agreement with torch on 64 inputs of noise" in done.stdout
    session, metadata = told(tmp_path / "t.onnx")
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == ("samples", "tensor(int16)", ["batch", 16_000])
    assert metadata["input"] == "int16 (batch, 16000), mono samples at 16000 Hz"
    names = [node.name for node in onnx.load(tmp_path / "t.onnx").graph.node]
    assert any(name.startswith("edgekd_front_") for name in names)


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("M:small", ["--card", "multi30k"], "--card multi30k: its model is two files; edgekd distill writes both"),
        ("M:small", [], "M:small: give the shape of one example with --input"),
        ("M:small", ["--input", "3x8x8"], "--input 3x8x8: should be the sizes of one example with commas between"),
        ("M:small", ["--input", "0,8,8"], "--input 0,8,8: sizes should be above 0"),
        ("M:small", ["--input", "2,8,8"], "the network cannot take float32 [2, 2, 8, 8]"),
        ("M:small", ["--shape", "depth=3"], "M:small: cannot be called with (depth=3)"),
        ("M:small", ["--shape", "width=a"], "--shape 'width=a': it should be KEY=VALUE"),
        ("M:small", ["--family", "mlp"], "--family mlp: has no effect for M:small, which makes the network"),
        ("M:small", ["--classes", "1"], "--classes 1: should be at least 2"),
        ("M:small", ["--classes", "a,a"], "--classes a,a: should be at least two different names"),
        ("M:small", ["--input", "3,8,8", "--mean", "0.5"], "--mean: got 1 numbers; the network takes 3 channels"),
        ("M:small", ["--input", "3,8,8", "--std", "1,0,1"], "--std: should be numbers above 0"),
        ("M:small", ["--out", "nowhere/x.onnx"], "--out nowhere/x.onnx: there is no folder nowhere"),
        ("M:smal", ["--input", "3,8,8"], "M:smal: module 'M' has no function 'smal'; did you mean 'small'?"),
        ("M:two", ["--input", "3,8,8"], "the network gives a dict for a batch of two"),
        ("M:number", ["--input", "3,8,8"], "M:number: gave a int; a torch.nn.Module is needed"),
        ("none.pt", [], "none.pt: no such file; give a file of weights, or module:function"),
        ("given.onnx", [], "given.onnx: is an ONNX file already, and has no torch network; edgekd quantize and bench"),
        ("given.onnx", ["--card", "digits"], "given.onnx: is an ONNX file, and has no torch network"),
        (
            "odd.safetensors",
            [],
            "odd.safetensors: its names ('a', …) are those of no network that edgekd or torchvision",
        ),
        (
            "odd.safetensors",
            ["--family", "mlp", "--shape", "hidden=[4]"],
            "odd.safetensors: give the shape of one examp",
        ),
        ("odd.safetensors", ["--shape", "hidden=[4]"], "--shape: needs --family, or module:function"),
        ("odd.safetensors", ["--card", "digits", "--mean", "1"], "--mean: has no effect with --card, which says it"),
        ("odd.safetensors", ["--card", "digits", "--outside"], "--outside: has no effect with --card"),
    ],
)
def test_what_does_not_suit_is_told_in_one_line(
    cli: Cli, mine: str, tmp_path: Path, source: str, options: list[str], expected: str
) -> None:
    (tmp_path / "given.onnx").write_bytes(b"")
    save_state(Odd(), tmp_path / "odd.safetensors", {})
    done = cli("export", source.replace("M:", f"{mine}:"), "--target", "cpu-x86", *options)
    assert done.returncode in (1, 2), done.stderr
    assert expected in done.stderr.replace(mine, "M")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*mall.onnx"))


class Odd(nn.Module):
    """Weights of no known network."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(1))
