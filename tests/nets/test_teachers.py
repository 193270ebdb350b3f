"""Teachers from files: a torch network with its weights, or an ONNX model; and files that cannot teach."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgekd.card import Card, Data, Teacher
from edgekd.errors import InputError
from edgekd.nets.deployed import Deployed
from edgekd.nets.teachers import load_teacher_file, make_teacher_net
from edgekd.nets.weights import save_state
from edgekd.tasks.known import load_card

DIGITS = load_card("digits")
LINEAR = dataclasses.replace(DIGITS, teacher=Teacher(family="mlp", shape={"hidden": [16]}))


def images(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8))


def write_onnx(
    path: Path,
    net: torch.nn.Module,
    data: Data | None,
    name: str = "input",
    batch: str | int = "n",
    last: Sequence[int] = (1, 8, 8),
) -> None:
    """The MLP `net` (one hidden layer) written by hand: float NCHW, or with preprocessing for `data` uint8 NHWC."""
    arrays = {key: value.numpy() for key, value in net.state_dict().items()}
    nodes = [
        helper.make_node("Flatten", ["nchw"], ["flat"]),
        helper.make_node("Gemm", ["flat", "1.weight", "1.bias"], ["sum"], transB=1),
        helper.make_node("Relu", ["sum"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "3.weight", "3.bias"], ["answers"], transB=1),
    ]
    given = helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *last])
    if data is None:
        nodes.insert(0, helper.make_node("Identity", [name], ["nchw"]))
    else:
        shape = (1, 1, 1, data.channels)
        arrays |= {
            "factor": np.array(255, np.float32),
            "mean": np.array(data.mean, np.float32).reshape(shape),
            "std": np.array(data.std, np.float32).reshape(shape),
        }
        nodes[:0] = [
            helper.make_node("Cast", [name], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["float", "factor"], ["unit"]),
            helper.make_node("Sub", ["unit", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "std"], ["nhwc"]),
            helper.make_node("Transpose", ["nhwc"], ["nchw"], perm=[0, 3, 1, 2]),
        ]
        given = helper.make_tensor_value_info(name, TensorProto.UINT8, [batch, 8, 8, 1])
    classes = len(arrays["3.bias"])
    taken = helper.make_tensor_value_info("answers", TensorProto.FLOAT, [batch, classes])
    weights = [numpy_helper.from_array(value, key) for key, value in arrays.items()]
    graph = helper.make_graph(nodes, "teacher", [given], [taken], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def trained_net(classes: int = 10) -> torch.nn.Module:
    torch.manual_seed(3)
    card = dataclasses.replace(LINEAR, data=dataclasses.replace(LINEAR.data, classes=tuple(map(str, range(classes)))))
    return make_teacher_net(card)


def test_a_teacher_from_weights(tmp_path: Path) -> None:
    net = make_teacher_net(DIGITS)
    save_state(net, tmp_path / "t.safetensors", {})
    teacher = load_teacher_file(DIGITS, tmp_path / "t.safetensors")
    assert teacher.file == tmp_path / "t.safetensors"
    assert teacher.net is not None
    assert not teacher.module.training
    net.eval()
    with torch.no_grad():
        assert torch.equal(teacher.module(images(5)), Deployed(net, DIGITS.data)(images(5)))


@pytest.mark.parametrize("takes_uint8", [False, True], ids=["float NCHW", "uint8 NHWC"])
@pytest.mark.parametrize("family", ["mlp", "onnx"])
def test_an_onnx_teacher_gives_what_torch_gives(tmp_path: Path, takes_uint8: bool, family: str) -> None:
    net = trained_net()
    write_onnx(tmp_path / "teacher.onnx", net, DIGITS.data if takes_uint8 else None)
    card = dataclasses.replace(DIGITS, teacher=Teacher(family=family))
    teacher = load_teacher_file(card, tmp_path / "teacher.onnx")
    assert teacher.net is None
    given = teacher.module(images(70))
    assert given.dtype == torch.float32
    with torch.no_grad():
        expected = Deployed(net.eval(), DIGITS.data)(images(70))
    assert expected.std() > 0.05
    assert torch.allclose(given, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["weights", "onnx"])
def test_classes_of_the_teacher_must_be_those_of_the_data(tmp_path: Path, kind: str) -> None:
    net = trained_net(classes=7)
    if kind == "onnx":
        path, card = tmp_path / "teacher.onnx", LINEAR
        write_onnx(path, net, None)
    else:
        # Only a network of the user's own may have other classes than asked for.
        path = tmp_path / "teacher.pth"
        (tmp_path / "my_seven.py").write_text(
            "from torch import nn\n"
            "def net(classes):\n"
            "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 7))\n"
        )
        teacher = Teacher(family="import", function="my_seven:net")
        card = dataclasses.replace(LINEAR, teacher=teacher, file=str(tmp_path / "card.toml"))
        torch.save(net.state_dict(), path)
    with pytest.raises(InputError) as caught:
        load_teacher_file(card, path)
    assert str(caught.value).startswith(f"{path}: the teacher gives (7,) outputs")
    assert "10 classes" in str(caught.value)


def test_weights_of_another_network_are_told(tmp_path: Path) -> None:
    save_state(trained_net(), tmp_path / "t.safetensors", {})
    with pytest.raises(InputError, match=r"t\.safetensors: weights of another architecture: .*1\.bias"):
        load_teacher_file(DIGITS, tmp_path / "t.safetensors")


def test_what_is_no_onnx_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "teacher.onnx"
    with pytest.raises(InputError, match=r"teacher\.onnx: no such teacher file"):
        load_teacher_file(LINEAR, path)
    write_onnx(path, trained_net(), None)
    whole = path.read_bytes()
    for content in (b"not a model", b"", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"^{path}: ONNX Runtime cannot load it: "):
            load_teacher_file(LINEAR, path)


def test_inputs_that_are_no_images_are_told(tmp_path: Path) -> None:
    path = tmp_path / "teacher.onnx"
    write_onnx(path, trained_net(), None, last=(64,))
    with pytest.raises(InputError) as caught:
        load_teacher_file(LINEAR, path)
    assert str(caught.value) == (
        f"{path}: takes input tensor(float) ['n', 64]; one input, uint8 NHWC or float NCHW, is needed"
    )


@pytest.mark.parametrize(("batch", "last"), [(3, (1, 8, 8)), ("n", (1, 4, 16))], ids=["batch", "size"])
def test_an_onnx_teacher_of_another_size_is_told(tmp_path: Path, batch: str | int, last: tuple[int, ...]) -> None:
    path = tmp_path / "teacher.onnx"
    write_onnx(path, trained_net(), None, batch=batch, last=last)
    with pytest.raises(InputError, match=r"teacher\.onnx"):
        load_teacher_file(LINEAR, path)


def test_an_onnx_teacher_exported_for_one_image_takes_them_one_by_one(tmp_path: Path) -> None:
    write_onnx(tmp_path / "many.onnx", trained_net(), None)
    write_onnx(tmp_path / "one.onnx", trained_net(), None, batch=1)
    images = torch.randint(0, 256, (5, 8, 8, 1), dtype=torch.uint8)
    many, one = (load_teacher_file(LINEAR, tmp_path / name).module(images) for name in ("many.onnx", "one.onnx"))
    assert one.shape == (5, 10)
    assert torch.allclose(one, many, atol=1e-5)


def test_a_network_too_deep_for_the_images_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_deep.py").write_text(
        "from torch import nn\n"
        "def net(classes):\n"
        "    return nn.Sequential(nn.MaxPool2d(16), nn.Flatten(), nn.Linear(1, classes))\n"
    )
    card: Card = dataclasses.replace(
        DIGITS, teacher=Teacher(family="import", function="my_deep:net"), file=str(tmp_path / "card.toml")
    )
    torch.save(make_teacher_net(card).state_dict(), tmp_path / "t.pth")
    with pytest.raises(InputError, match=r"t\.pth|my_deep"):
        load_teacher_file(card, tmp_path / "t.pth")
