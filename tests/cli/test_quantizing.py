"""`edgekd quantize` on files that edgekd did not make, as a user calls it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgekd.bench.statistics import Interval
from edgekd.data.ready import ready_images, ready_npz
from edgekd.export.opset import opset_of
from edgekd.export.quantize import quantize
from edgekd.scores import ACCURACY
from edgekd.search.quantizing import Comparison
from edgekd.spec import locate
from edgekd.target import Quantization
from edgekd.tasks.detection import DETECTION

Cli = Callable[..., Any]
RNG = np.random.default_rng(0)
CLASSES, SIDE = 3, 8
NAMES = ("blue", "green", "red")


def bright(count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels (n, 8, 8, 3) in which the channel of the label is the brightest."""
    labels = RNG.integers(0, CLASSES, count)
    pixels = RNG.integers(20, 120, (count, SIDE, SIDE, 3)) + 90 * np.eye(CLASSES, dtype=int)[labels][:, None, None]
    return pixels.astype(np.uint8), labels.astype(np.int64)


def float_model(path: Path, batch: int | str = "n", channels: int = 6) -> Path:
    """A network that takes normalised float NCHW images, as most files do; its weights are set by hand."""
    kernel = np.zeros((channels, CLASSES, 3, 3), np.float32)
    for channel in range(CLASSES):
        kernel[channel, channel], kernel[channel + 3, channel] = 0.1, 0.05
    constants = {
        "body.conv.weight": kernel + RNG.normal(0, 0.002, kernel.shape).astype(np.float32),
        "head.weight": np.hstack(
            [np.eye(CLASSES), 0.5 * np.eye(CLASSES), np.zeros((CLASSES, channels - 2 * CLASSES))]
        ).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "body.conv.weight"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "head.weight"], ["classes"], name="head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, CLASSES, SIDE, SIDE])],
        [helper.make_tensor_value_info("classes", TensorProto.FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.metadata_props.add(key="licence", value="mine")
    onnx.save(model, path)
    return path


def normalized(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return ((pixels / 255 - 0.4) / 0.25).astype(np.float32).transpose(0, 3, 1, 2)


def answers(path: Path, x: NDArray[Any]) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([np.asarray(session.run(None, {"image": x[n : n + 1]})[0]) for n in range(len(x))])


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The target cpu-x86, for which nothing else may be tried."""
    text = locate("targets", "cpu-x86").read_text(encoding="utf-8")
    kept = [line for line in text.splitlines() if not line.startswith(("schemes", "calibrations", "forms"))]
    path = tmp_path / "here.toml"
    path.write_text("\n".join(kept), encoding="utf-8")
    return path


@pytest.fixture
def elsewhere(here: Path, tmp_path: Path) -> Path:
    """A target that is no machine's."""
    path = tmp_path / "elsewhere.toml"
    path.write_text(here.read_text(encoding="utf-8").replace('"avx2"', '"no_such_feature"'), encoding="utf-8")
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return float_model(tmp_path / "model.onnx")


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    pixels, labels = bright(240)
    np.savez(tmp_path / "arrays.npz", inputs=normalized(pixels), labels=labels)
    return tmp_path / "arrays.npz"


def test_ready_inputs_with_labels(cli: Cli, model: Path, arrays: Path, here: Path, tmp_path: Path) -> None:
    picture, record = tmp_path / "layers.png", tmp_path / "record.json"
    done = cli("quantize", model, "--target", here, "--data", arrays, "--sensitivity", picture, "--json", record)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "model-int8.onnx"
    made = onnx.load(path)
    onnx.checker.check_model(made, full_check=True)
    assert [(entry.key, entry.value) for entry in made.metadata_props] == [("licence", "mine")]
    assert (made.graph.input[0].name, made.graph.output[0].name) == ("image", "classes")
    assert any(tensor.data_type == TensorProto.INT8 for tensor in made.graph.initializer)
    assert "model-int8.onnx: U8S8, minmax, QDQ: " in done.stdout
    assert "→ 100.00 % on 80 examples that no choice has seen (0 answers lost, 0 won, McNemar p 1)" in done.stdout
    assert "a loss of 0.00 points, 1 allowed: pass" in done.stdout
    assert "body.conv" in done.stdout
    assert "SQNR of the outputs" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    told = json.loads(record.read_text(encoding="utf-8"))
    assert told["answers"] == "measured"
    assert told["comparison"]["count"] == 80
    assert told["comparison"]["bytes_after"] == path.stat().st_size
    assert {layer["name"] for layer in told["layers"]} == {"body.conv", "head"}
    x, labels = np.load(arrays)["inputs"], np.load(arrays)["labels"]
    assert (answers(path, x).argmax(axis=1) == labels).all()


def test_a_folder_of_images(cli: Cli, elsewhere: Path, tmp_path: Path) -> None:
    """Also with a fixed batch of one, and a target that is not here: its own settings, and no time."""
    fixed = float_model(tmp_path / "fixed.onnx", batch=1)
    for number, (image, label) in enumerate(zip(*bright(90), strict=True)):
        folder = tmp_path / "images" / NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    normal = ["--mean", "0.4,0.4,0.4", "--std", "0.25,0.25,0.25"]
    done = cli("quantize", fixed, "-t", elsewhere, "--data", tmp_path / "images", *normal, "--out", tmp_path / "q.onnx")
    assert done.returncode == 0, done.stderr
    assert "accuracy 100.00 % → 100.00 % on 30 examples" in done.stdout
    assert "time not measured" in done.stdout
    assert "the target's own settings, for it cannot be measured here" in done.stdout
    pixels, labels = bright(50)
    assert (answers(tmp_path / "q.onnx", normalized(pixels)).argmax(axis=1) == labels).all()


def test_a_signed_file_becomes_unsigned(cli: Cli, model: Path, elsewhere: Path, tmp_path: Path) -> None:
    pixels, _ = bright(60)
    x = normalized(pixels)
    np.savez(tmp_path / "unlabelled.npz", image=x)
    signed, path = tmp_path / "signed.onnx", tmp_path / "unsigned.onnx"
    quantize(model, signed, Quantization(activation="int8"), x)
    call = ["quantize", signed, "-t", elsewhere, "--data", tmp_path / "unlabelled.npz", "--out", path]
    done = cli(*call)
    assert done.returncode == 0, done.stderr
    assert "int8 activations are uint8 now; without optimization the outputs are the same bit for bit" in done.stdout
    assert "agreement with the file before 100.00 % → 100.00 %" in done.stdout
    kinds = {t.data_type for t in onnx.load(path).graph.initializer if not t.dims}
    assert TensorProto.UINT8 in kinds
    assert TensorProto.INT8 not in kinds
    again = cli(*call[:1], path, *call[2:-1], tmp_path / "again.onnx")
    assert again.returncode == 2
    assert "is int8 already, and has no int8 activations that could become uint8" in again.stderr
    assert not (tmp_path / "again.onnx").exists()


def test_weights_alone(cli: Cli, model: Path, arrays: Path, elsewhere: Path, tmp_path: Path) -> None:
    done = cli("quantize", model, "-t", elsewhere, "--data", arrays, "--dynamic", "--out", tmp_path / "d.onnx")
    assert done.returncode == 0, done.stderr
    kinds = {node.op_type for node in onnx.load(tmp_path / "d.onnx").graph.node}
    assert "DynamicQuantizeLinear" in kinds
    assert "d.onnx: dynamic U8S8, 8-bit weights: the target's own settings, " in done.stdout
    text = elsewhere.read_text(encoding="utf-8")
    begin, kept = text.split("[quantization]\n")
    kept = "\n".join(line for line in kept.splitlines() if not line.startswith(("activation", "weight", "form")))
    elsewhere.write_text(f'{begin}[quantization]\nactivation = "float"\n{kept}\n', encoding="utf-8")
    done = cli("quantize", model, "-t", elsewhere, "--data", arrays, "--dynamic", "--out", tmp_path / "d.onnx")
    assert done.returncode == 0, done.stderr
    assert "d.onnx: W8, the weights alone" in done.stdout


def test_the_opset_comes_into_the_targets_range(
    cli: Cli, model: Path, arrays: Path, elsewhere: Path, tmp_path: Path
) -> None:
    """The model is of opset 17, the oldest of the target is 18."""
    done = cli("quantize", model, "-t", elsewhere, "--data", arrays)
    assert done.returncode == 0, done.stderr
    assert "model.onnx: its opset became 18, the oldest that target elsewhere takes" in done.stderr
    assert opset_of(onnx.load(tmp_path / "model-int8.onnx")) == 18
    text = elsewhere.read_text(encoding="utf-8").replace("max = 23", "max = 20")
    elsewhere.write_text(text, encoding="utf-8")
    newer = onnx.load(model)
    newer.opset_import[0].version, newer.ir_version = 21, 10
    onnx.save(newer, tmp_path / "newer.onnx")
    done = cli("quantize", "newer.onnx", "-t", elsewhere, "--data", arrays)
    assert done.returncode == 2
    assert "newer.onnx: is of opset 21, and target elsewhere has opset.max = 20; export it again" in done.stderr
    assert not (tmp_path / "newer-int8.onnx").exists()


def test_a_scheme_by_name(cli: Cli, arrays: Path, elsewhere: Path, tmp_path: Path) -> None:
    """Weights alone: the network of this file computes in float."""
    wide = float_model(tmp_path / "wide.onnx", channels=60)
    call = ["quantize", wide, "-t", elsewhere, "--data", arrays, "--out", tmp_path / "w8.onnx"]
    done = cli(*call, "--scheme", "w8")
    assert done.returncode == 0, done.stderr
    assert "w8.onnx: W8, the weights alone: the target's own settings" in done.stdout
    graph = onnx.load(tmp_path / "w8.onnx").graph
    assert [node.op_type for node in graph.node if node.op_type.endswith("Linear")] == []
    assert TensorProto.INT8 in {tensor.data_type for tensor in graph.initializer}
    for wrong in (["--scheme", "w9"], ["--sensitivity", "l.png", "--dynamic"], ["--scheme", "w8", "--dynamic"]):
        done = cli(*call, *wrong)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
    assert "--scheme, --dynamic: give one of them" in done.stderr


def test_dynamic_int8_for_an_npu_that_is_not_here(cli: Cli, model: Path, arrays: Path, tmp_path: Path) -> None:
    done = cli("quantize", model, "-t", "qnn-npu", "--data", arrays, "--dynamic", "--out", tmp_path / "d.onnx")
    assert done.returncode == 0, done.stderr
    assert "DynamicQuantizeLinear" in {node.op_type for node in onnx.load(tmp_path / "d.onnx").graph.node}


def test_16_bit_activations_for_an_npu_that_is_not_here(cli: Cli, model: Path, arrays: Path, tmp_path: Path) -> None:
    path = tmp_path / "a16w8.onnx"
    call = ["quantize", model, "--data", arrays, "--scheme", "a16w8", "--out", path]
    done = cli(*call, "--target", "qnn-npu", "--json", "record.json")
    assert done.returncode == 0, done.stderr
    assert "target qnn-npu: unavailable" in done.stderr
    assert "answers are those of the CPU provider (proxy)" in done.stderr
    assert "a16w8.onnx: A16W8, minmax, QDQ: the target's own settings, for it cannot be measured here" in done.stdout
    assert "accuracy 100.00 % → 100.00 %" in done.stdout
    assert "1 allowed: pass (proxy: answers of the CPU provider)" in done.stdout
    assert json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))["answers"] == "proxy"
    made = onnx.load(path)
    assert {entry.domain: entry.version for entry in made.opset_import}[""] == 18  # the target's oldest, below 21
    known = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    pairs = [node for node in made.graph.node if node.op_type.endswith("Linear")]
    assert {node.domain for node in pairs} == {"com.microsoft"}
    activations = {known[node.input[2]] for node in pairs if node.op_type == "QuantizeLinear"}
    assert activations == {TensorProto.UINT16}
    weights = [node for node in pairs if node.op_type == "DequantizeLinear" and node.input[0] in known]
    assert {known[node.input[0]] for node in weights} == {TensorProto.UINT8}
    behind = {node.output[0] for node in pairs if node.op_type == "DequantizeLinear"}
    layers = [node for node in made.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 2
    assert all(name in behind for node in layers for name in node.input[:2])
    x, labels = np.load(arrays)["inputs"], np.load(arrays)["labels"]
    error = np.abs(answers(path, x[:20]) - answers(model, x[:20])).max()
    assert error < 0.01 * np.abs(answers(model, x[:20])).max()
    assert (answers(path, x[:60]).argmax(axis=1) == labels[:60]).all()
    refused = cli(*call, "--target", "cpu-x86")
    assert refused.returncode == 2
    assert refused.stderr.strip().endswith(
        "--scheme a16w8: target cpu-x86: 16-bit activations (a16w8) are for QNNExecutionProvider; CPUExecutionProvider "
        "would compute them in float"
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--data", "nowhere"], "--data nowhere: no such folder or .npz file"),
        (["--data", "arrays.npz", "--mean", "1"], "--mean, --std, --size: are for a folder of images"),
        (["--data", "arrays.npz", "--out", "model.onnx"], "--out model.onnx: is the model itself"),
        (["--data", "few.npz"], "few.npz: holds 6 examples; at least 30 are needed"),
        (["--data", "double.npz"], "double.npz: image is float64, and the model takes float32"),
        (["--data", "flat.npz"], "flat.npz: image has the shape 60×64, and the model takes "),
        (["--data", "other.npz"], "holds the arrays pixels; it should hold `inputs`, or one for each input"),
        (["--data", "uneven.npz"], "its arrays hold different numbers of examples (5, 6)"),
        (["--data", "text.npz"], "text.npz: cannot be read as .npz"),
        (["--data", "empty"], "--data empty: holds no images"),
        (["--data", "pictures", "--mean", "0.5"], "--mean: got 1 numbers; the model takes 3 channels"),
        (["--data", "pictures", "--std", "1,1,0"], "--std: should be numbers above 0"),
        (["--data", "pictures", "--mean", "a"], "--mean a: should be numbers with commas between"),
        (["--data", "pictures", "--std", "nan,1,1"], "--std nan,1,1: should be numbers with commas between"),
        (["--data", "strange.npz"], "strange.npz: labels go up to 3, and model.onnx tells 3 classes apart"),
        (["--data", "large.npz"], "large.npz: label 0 is 18446744073709551615; labels are class numbers from 0"),
        (["--data", "arrays.npz", "--max-drop", "nan"], "--max-drop': Input should be less than or equal to 100"),
    ],
)
def test_what_does_not_suit_is_told_in_one_line(
    cli: Cli, model: Path, arrays: Path, here: Path, tmp_path: Path, options: list[str], expected: str
) -> None:
    x = np.load(arrays)["inputs"]
    np.savez(tmp_path / "few.npz", inputs=x[:6])
    np.savez(tmp_path / "double.npz", inputs=x.astype(np.float64))
    np.savez(tmp_path / "flat.npz", inputs=x[:60].reshape(60, -1)[:, :64])
    np.savez(tmp_path / "other.npz", pixels=x)
    np.savez(tmp_path / "uneven.npz", inputs=x[:6], labels=np.zeros(5, np.int64))
    np.savez(tmp_path / "strange.npz", inputs=x, labels=np.full(len(x), 3))
    np.savez(tmp_path / "large.npz", inputs=x, labels=np.full(len(x), 2**64 - 1, np.uint64))
    (tmp_path / "text.npz").write_text("no archive", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pictures").mkdir()
    Image.fromarray(bright(1)[0][0]).save(tmp_path / "pictures" / "one.png")
    done = cli("quantize", "model.onnx", "--target", here, *options)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "model-int8.onnx").exists()


def test_a_model_without_a_usable_input_is_told_in_one_line(cli: Cli, arrays: Path, here: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.fromarray(bright(1)[0][0]).save(tmp_path / "pictures" / "one.png")
    loaded = onnx.load(float_model(tmp_path / "model.onnx"))
    loaded.graph.input[0].type.tensor_type.elem_type = 99
    onnx.save(loaded, tmp_path / "strange.onnx")
    del loaded.graph.input[:]
    onnx.save(loaded, tmp_path / "none.onnx")
    for file in ("strange.onnx", "none.onnx"):
        for data in ("arrays.npz", "pictures"):
            done = cli("quantize", file, "--target", here, "--data", data)
            assert done.returncode == 2, done.stderr
            assert len(done.stderr.strip().splitlines()) == 1, done.stderr
            assert "input" in done.stderr


def test_images_become_what_the_model_takes(model: Path, tmp_path: Path) -> None:
    pixels, _ = bright(3)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    loaded = onnx.load(model)
    found = ready_images(tmp_path, loaded, [0.4] * 3, [0.25] * 3, None, 10)
    assert np.allclose(found.inputs["image"], normalized(pixels), atol=1e-6)
    assert found.labels is None
    assert len(ready_images(tmp_path, loaded, [], [], None, 2)) == 2


def test_an_array_for_each_input_and_labels(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=np.zeros((4, 3, 8, 8), np.float32), labels=np.array([0, 1, 2, 0], np.uint8))
    found = ready_npz(tmp_path / "a.npz", onnx.load(model))
    assert list(found.inputs) == ["image"]
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("lost", "won", "outcome"), [(5, 3, "pass"), (40, 2, "fail"), (14, 9, "inconclusive"), (0, 50, "pass")]
)
def test_a_loss_that_may_be_chance_is_inconclusive(lost: int, won: int, outcome: str) -> None:
    compared = Comparison(
        count=400,
        labelled=True,
        kind=ACCURACY,
        before=0.9,
        after=0.9 - (lost - won) / 400,
        lost=lost,
        won=won,
        ratio=None,
        bytes_before=2_000,
        bytes_after=700,
    )
    assert compared.outcome(1.0) == outcome


@pytest.mark.parametrize(("high", "outcome"), [(-0.004, "fail"), (0.001, "inconclusive")])
def test_a_loss_of_another_score_has_an_interval(high: float, outcome: str) -> None:
    compared = Comparison(
        count=40,
        labelled=True,
        kind=DETECTION.scores[0],
        before=0.83,
        after=0.81,
        change=Interval(-0.02, -0.05, high),
        ratio=None,
        bytes_before=2_000,
        bytes_after=700,
    )
    assert (compared.outcome(1.0), compared.outcome(3.0)) == (outcome, "pass")
    same = dataclasses.replace(compared, change=Interval(0.0, 0.0, 0.0))
    assert f"{same.loss_points:.2f}" == "0.00"
    found = f"-2.00 points, 95 % interval -5.00 … {100 * high:+.2f}"
    assert f"mAP50 83.00 % → 81.00 % on 40 examples that no choice has seen ({found})" in compared.words


def test_a_model_without_what_its_task_needs_is_told_in_one_line(cli: Cli, tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", inputs=np.zeros((40, 3, SIDE, SIDE), np.float32))
    (tmp_path / "images").mkdir()
    for told, data in (
        ("detection needs corners and scores", "set.npz"),
        ("m.onnx: its metadata name no classes", "images"),
    ):
        model = onnx.load(float_model(tmp_path / "m.onnx"))
        if data == "images":
            model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
        helper.set_model_props(model, {"edgekd": "0.2.0", "task": "detection"})
        onnx.save(model, tmp_path / "m.onnx")
        done = cli("quantize", tmp_path / "m.onnx", "-t", "cpu-arm", "--data", tmp_path / data)
        assert done.returncode in (1, 2) and told in done.stderr, done.stderr
