"""The resize in the graph: as close to Pillow as measured, never quantised, and judged on images of their own sizes."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from edgekd.bench.records import Effort, Feeding
from edgekd.bench.runner import measure_process, predict
from edgekd.bench.sequences import timed_shape_of
from edgekd.card import Card, Data, Student
from edgekd.data.arrays import keep_split
from edgekd.data.images import Split, decode, in_memory
from edgekd.data.originals import keep_originals, keep_timed
from edgekd.devices.device import Site
from edgekd.devices.local import Local
from edgekd.errors import ConfigError, ModelError
from edgekd.export.onnx import export
from edgekd.export.precisions import make_variant
from edgekd.export.quantize import quantize
from edgekd.export.resize import MAX_LEVELS, fidelity, same_answers, with_resize
from edgekd.export.teacher import export_teacher
from edgekd.nets.families import make
from edgekd.nets.teachers import LoadedTeacher, OnnxNet
from edgekd.target import load_target
from edgekd.tasks.image_classification import IMAGE_CLASSIFICATION
from edgekd.tasks.known import load_card

TARGET = load_target("cpu-x86")
CARD_TEXT = """
title = "Photographs of any size"
[data]
source = "image-folder"
size = 16
resize = 20
channels = 3
classes = ["a", "b"]
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.25, 0.25]
[export]
resize = true
timed_size = [30, 40]
[teacher]
family = "convnet"
shape = { channels = [4, 8] }
[teacher.training]
epochs = 1
batch_size = 8
learning_rate = 0.02
[student]
family = "convnet"
[student.knobs]
channels = [[4, 8]]
[recipe]
epochs = 1
batch_size = 8
learning_rate = 0.02
views = 1
[budget]
size_kb = 1000
"""


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Card:
    path = tmp_path_factory.mktemp("card") / "photos.toml"
    path.write_text(CARD_TEXT)
    return load_card(str(path))


@pytest.fixture(scope="module")
def exported(card: Card, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained student that resizes in the graph."""
    path = tmp_path_factory.mktemp("exported") / "fp32.onnx"
    export(network(card), card, TARGET, path, {})
    return path


def of_size(card: Card, **values: Any) -> Card:
    return dataclasses.replace(card, data=dataclasses.replace(card.data, **values))


def picture(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    """Waves with noise: edges, flat parts and both ends of the range."""
    y, x, c = np.ogrid[:height, :width, :channels]
    waves = 128 + 140 * np.sin(x / 7 + c) * np.cos(y / 11 - c)
    noise = np.random.default_rng(height * width).normal(0, 12, (height, width, channels))
    return np.clip(waves + noise, 0, 255).astype(np.uint8)


def by_pillow(image: NDArray[np.uint8], data: Data) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(image if data.channels == 3 else image[:, :, 0]).save(buffer, "PNG")
    return decode(buffer.getvalue(), data, "picture")


def split_of(card: Card, images: list[NDArray[np.uint8]]) -> Split:
    fitted = np.stack([by_pillow(image, card.data) for image in images])
    return in_memory(fitted, np.zeros(len(images), np.int64), lambda i: images[i])


def resizer(card: Card) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """Only the resize, as a model."""
    shape = ["n", card.data.size, card.data.size, card.data.channels]
    ends = [helper.make_tensor_value_info(name, TensorProto.UINT8, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "resize", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(with_resize(model, card).SerializeToString())
    return lambda images: session.run(None, {"x": images})[0]


SIDES = [(48, 64), (64, 48), (100, 37), (16, 16), (17, 16), (20, 20), (31, 300), (480, 640), (333, 500), (1000, 997)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "resize"), [(16, None), (16, 20), (96, None), (75, 83)])
def test_images_that_shrink_are_within_a_grey_level_of_pillow(
    card: Card, channels: int, size: int, resize: int | None
) -> None:
    card = of_size(card, size=size, resize=resize, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    resized, away = resizer(card), []
    for height, width in SIDES:
        if min(height, width) < (resize or size) and (height, width) != (size, size):
            continue
        image = picture(height, width, channels)
        away.append(np.abs(resized(image[None])[0].astype(int) - by_pillow(image, card.data)).ravel())
    whole = np.concatenate(away)
    assert whole.max() <= 1
    assert (whole == 0).mean() > 0.95


@pytest.mark.parametrize("side", [(5, 9), (15, 15), (40, 63), (16, 200)])
def test_images_that_grow_are_within_two_levels(card: Card, side: tuple[int, int]) -> None:
    card = of_size(card, size=64, resize=70)
    image = picture(*side)
    away = np.abs(resizer(card)(image[None])[0].astype(int) - by_pillow(image, card.data))
    assert away.max() <= MAX_LEVELS
    assert (away == 0).mean() > 0.95


def test_an_image_of_the_networks_size_keeps_its_pixels(card: Card) -> None:
    """Also where `resize` is larger than `size`, as in edgekd's own decoding."""
    image = picture(16, 16)
    assert np.array_equal(resizer(card)(image[None])[0], image)
    assert np.array_equal(by_pillow(image, card.data), image)


def test_a_batch_has_images_of_one_size(card: Card) -> None:
    images = np.stack([picture(50, 70), picture(50, 70)[::-1]])
    resized = resizer(card)
    assert np.array_equal(resized(images), np.concatenate([resized(image[None]) for image in images]))


def network(card: Card) -> torch.nn.Module:
    torch.manual_seed(0)
    return make(card, Student(family="convnet"), {"channels": [4, 8]}, "student.knobs").eval()


def calibration(count: int = 8) -> NDArray[np.uint8]:
    return np.stack([picture(16, 16)] * count)


@pytest.mark.parametrize("precision", ["fp32", "int8", "fp16"])
def test_the_resize_is_in_8_bits_in_every_precision(exported: Path, tmp_path: Path, precision: Any) -> None:
    path = tmp_path / "m.onnx"
    make_variant(exported, precision, TARGET, calibration(), path)
    model = onnx.load(path)
    (resize,) = [node for node in model.graph.node if node.op_type == "Resize"]
    assert resize.input[0] == "image" == model.graph.input[0].name
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", "height", "width", 3]
    value = resize.output[0]
    for _ in range(2):  # the crop, and the reshape
        (reader,) = [node for node in model.graph.node if value in node.input]
        assert reader.op_type in ("Slice", "Reshape")
        value = reader.output[0]
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert told["resize"].startswith("none, any height and width, upright; in the graph: shorter side to 20 (bilinear)")
    assert (told["input"], told["timed_shape"]) == ("uint8 (batch, height, width, 3), RGB", "1,30,40,3")


def answers(path: Path, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: image[None]})[0])


def test_the_exported_file_answers_as_without_the_resize(card: Card, exported: Path, tmp_path: Path) -> None:
    plain = dataclasses.replace(card, export=dataclasses.replace(card.export, resize=False, timed_size=None))
    export(network(card), plain, TARGET, tmp_path / "fixed.onnx", {})
    image = picture(60, 45)
    fitted = resizer(card)(image[None])[0]
    assert np.allclose(answers(exported, image), answers(tmp_path / "fixed.onnx", fitted), rtol=1e-5)


def test_int8_is_calibrated_behind_the_resize(exported: Path, tmp_path: Path) -> None:
    quantize(exported, tmp_path / "int8.onnx", TARGET.quantization, calibration())
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(tmp_path / "int8.onnx").graph.node)
    image = picture(60, 45)
    exact, rough = (answers(path, image) for path in (exported, tmp_path / "int8.onnx"))
    assert np.abs(exact - rough).max() < 0.2 * np.abs(exact).max()


def write_teacher(path: Path, opset: int) -> Path:
    """A given teacher (batch, 3, 16, 16) float -> (batch, 2): two channels' means."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["means"], axes=[2, 3], keepdims=0)]
    nodes += [helper.make_node("MatMul", ["means", "w"], ["logits"])]
    weights = helper.make_tensor("w", TensorProto.FLOAT, [3, 2], [1.0, 0.0, 0.0, 1.0, 0.5, -0.5])
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 16, 16])
    taken = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "teacher", [given], [taken], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7), path)
    return path


def test_a_given_teacher_of_an_old_opset_resizes_too(card: Card, tmp_path: Path) -> None:
    file = write_teacher(tmp_path / "teacher.onnx", opset=11)
    teacher = LoadedTeacher(OnnxNet(file, card), file)
    export_teacher(teacher, card, TARGET, tmp_path / "out.onnx")
    image = picture(60, 45)
    given = answers(tmp_path / "out.onnx", image)
    fitted = by_pillow(image, card.data)
    means = ((fitted / 255 - card.data.mean) / card.data.std).mean(axis=(0, 1))
    assert np.allclose(given[0], means @ [[1, 0], [0, 1], [0.5, -0.5]], atol=0.02)
    told = {entry.key: entry.value for entry in onnx.load(tmp_path / "out.onnx").metadata_props}
    assert told["timed_shape"] == "1,30,40,3" and "edgekd" in told


def test_an_opset_without_such_a_resize_is_told(card: Card) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.UINT8, ["n", 16, 16, 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "old", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError, match=r"export.resize needs opset 18 or newer, the model has 17; set opset.export"):
        with_resize(model, card)


# --- how close it is ---


def test_the_difference_is_measured(card: Card, tmp_path: Path) -> None:
    split = split_of(card, [picture(*side) for side in SIDES[:6]])
    found = fidelity(split, card)
    resized = [resizer(card)(split.original(i)[None])[0] for i in range(6)]  # type: ignore[misc]
    away = np.abs(np.stack(resized).astype(int) - split.read(np.arange(6)))
    assert (found.images, found.max_levels) == (6, away.max())
    assert found.mean_levels == pytest.approx(away.mean())
    assert "255 grey levels" in found.words and "on 6 validation images" in found.words


def test_a_resize_that_differs_is_not_shipped(card: Card) -> None:
    split = split_of(card, [picture(50, 60)])
    other = in_memory(split.read(np.arange(1)) ^ np.uint8(8), split.labels, split.original)
    with pytest.raises(ModelError, match=r"the resize in the graph differs from Pillow .* by at most 8 of 255 .*leave"):
        fidelity(other, card)


def test_answers_are_compared(card: Card, exported: Path) -> None:
    split = split_of(card, [picture(50, 60 + k) for k in range(4)])
    assert same_answers(exported, split, IMAGE_CLASSIFICATION) == 1.0
    assert same_answers(exported, split, dataclasses.replace(IMAGE_CLASSIFICATION, same=None)) is None


# --- measurements ---

SITE = Site(load_target("cpu-x86"), Local())
EFFORT = Effort(processes=1, min_processes=1, warmup_s=0.0, min_calls=2, max_calls=2, max_s=0.0)


def fed(exported: Path, inputs: Path | None, effort: Effort = EFFORT) -> tuple[Any, str]:
    """The shape with which the file is timed, and whether it is fed data or random numbers."""
    mark = measure_process(exported, SITE, inputs, effort).fingerprint
    return mark["shapes"]["image"], mark["inputs"]


def test_a_single_file_is_timed_at_the_size_that_it_tells(exported: Path) -> None:
    assert timed_shape_of(exported) == {"image": (1, 30, 40, 3)}
    assert fed(exported, None) == ([1, 30, 40, 3], "random")
    effort = dataclasses.replace(EFFORT, feeding=Feeding(shapes={"image": (1, 50, 20, 3)}))
    assert fed(exported, None, effort) == ([1, 50, 20, 3], "random")


def test_a_run_is_timed_at_the_cards_size_and_answers_for_the_originals(
    card: Card, exported: Path, tmp_path: Path
) -> None:
    images = [picture(30, 25), picture(18, 70), picture(41, 20)]
    split = split_of(card, images)
    inputs = keep_split(split, tmp_path / "test")
    keep_originals(split, tmp_path / "test.originals.npy")
    keep_timed(split, card, tmp_path / "timed.npy")
    assert fed(exported, inputs) == ([1, 30, 40, 3], "data")
    predict(exported, SITE, inputs, tmp_path / "logits.npy")
    expected = np.concatenate([answers(exported, image) for image in images])
    assert np.array_equal(np.load(tmp_path / "logits.npy"), expected)


# --- the card ---


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (("timed_size = [30, 40]\n", ""), r"export: must give timed_size = \[height, width\] with resize = true"),
        (("resize = true\n", ""), r"export: timed_size: has no effect without resize = true"),
        (("[30, 40]", "[0, 40]"), r"export.timed_size.0: got 0; it should be greater than or equal to 1"),
        (('"image-folder"', '"digits"'), r'export.resize: has no effect with source = "digits"; it is for image files'),
    ],
)
def test_a_wrong_export_table_is_told(tmp_path: Path, change: tuple[str, str], error: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(CARD_TEXT.replace(*change))
    with pytest.raises(ConfigError, match=error):
        load_card(str(path))


# --- a whole run ---


def write_photos(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 6)):
        for label, name in enumerate(("a", "b")):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                height, width = rng.integers(18, 60, 2)
                image = picture(int(height), int(width)) // 2 + 120 * label
                Image.fromarray(image.astype(np.uint8)).save(folder / part / name / f"{number}.png")
    return folder


def test_a_run_is_judged_on_images_of_their_own_sizes(
    card: Card, tmp_path: Path, cli: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    photos, run = write_photos(tmp_path / "photos"), tmp_path / "run"
    cli("distill", card.file, "--data", str(photos), "--target", "cpu-arm", "--out", str(run))
    result = json.loads((run / "result.json").read_text())
    resize = result["parity"]["resize"]
    assert resize["images"] == 2  # a tenth of the 24 photographs, of each class at least one
    assert resize["max_levels"] <= MAX_LEVELS and resize["same"] == 1.0
    for model in result["models"][1:]:
        assert model["torch_agreement"] >= 0.9
    # The answers that were judged are those for the photographs themselves.
    files = sorted((photos / "test" / "a").glob("*.png")) + sorted((photos / "test" / "b").glob("*.png"))
    (kept,) = (run / "records").glob("student-fp32@cpu-arm.test.*.npy")
    expected = np.concatenate(
        [answers(run / "exported" / "student-fp32.onnx", np.asarray(Image.open(f))) for f in files]
    )
    assert np.allclose(np.load(kept), expected, rtol=1e-4, atol=1e-5)
    assert np.load(run / "data" / "timed.npy").shape[1:] == (30, 40, 3)
    assert "Images are resized in the graph: pixels within" in (run / "report.md").read_text()
