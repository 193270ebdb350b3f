"""`edgekd init` for clips of sound, images with masks, and pairs of texts: what it finds, and that its cards run."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
import torch
from onnx import helper
from PIL import Image

from edgekd.draft.card import look_at_data
from edgekd.draft.compose import tables_for
from edgekd.draft.teachers import look_at_teacher
from edgekd.draft.weights import family_of
from edgekd.errors import EdgekdError
from edgekd.nets.detect import Detector, DetectorShape
from edgekd.nets.keywords import DsCnnShape, KeywordCnnShape, ds_cnn, keyword_cnn
from edgekd.nets.segment import UNet, UNetShape
from edgekd.nets.translation import Seq2Seq, Seq2SeqShape
from edgekd.nets.weights import save_state
from edgekd.target import load_target
from edgekd.tasks.known import load_card

Cli = Callable[..., Any]
WORDS = dict(zip("a the dog cat man child sees takes red small".split(),
                 "ein der hund katze mann kind sieht nimmt rot klein".split(), strict=True))  # fmt: skip


def write_pairs(folder: Path, names: tuple[str, ...] = ("train", "val", "test"), count: int = 120) -> Path:
    """Sentences whose translations are those of their words."""
    rng = random.Random(0)
    folder.mkdir()
    for part in names:
        rows = [rng.choices(list(WORDS), k=rng.randint(2, 4)) for _ in range(count if part == "train" else 12)]
        (folder / f"{part}.en").write_text("".join(" ".join(row) + "\n" for row in rows))
        (folder / f"{part}.de").write_text("".join(" ".join(WORDS[word] for word in row) + "\n" for row in rows))
    return folder


def test_clips_tell_rate_length_and_features(tmp_path: Path, sounds: ModuleType) -> None:
    sounds.write_clips(tmp_path, (("train", 6), ("test", 3)))
    facts = look_at_data(tmp_path)
    assert (facts.task, facts.classes, facts.examples, facts.tests) == (
        "keyword-spotting",
        ("fall", "high", "rise"),
        18,
        9,
    )
    keys = facts.keys
    assert (keys["rate"], keys["seconds"], keys["high_hz"]) == (sounds.RATE, 0.5, 2000)
    assert keys["mels"] == 40
    assert "split: a tenth of the training clips is set apart for validation" in " ".join(facts.guesses)


def test_lists_of_clips_name_the_parts(tmp_path: Path, sounds: ModuleType) -> None:
    sounds.write_clips(tmp_path / "made", (("train", 6),))
    (tmp_path / "made" / "train").rename(tmp_path / "data")
    (tmp_path / "data" / "testing_list.txt").write_text("fall/00.flac\nhigh/00.flac\nrise/01.wav\n")
    facts = look_at_data(tmp_path / "data")
    assert (facts.examples, facts.tests) == (15, 3)
    assert "split: testing_list.txt names the test clips" in facts.guesses


def test_clips_of_low_and_of_different_rates(tmp_path: Path) -> None:
    both = tmp_path / "both"
    for place, name in enumerate(("on", "off")):
        for part in ("train", "test"):
            (both / part / name).mkdir(parents=True)
            soundfile.write(both / part / name / "a.wav", np.zeros(800), 8000 * (1 + place))
    low = tmp_path / "low"
    for part, name in itertools.product(("train", "test"), ("on", "off")):
        (low / part / name).mkdir(parents=True)
        soundfile.write(low / part / name / "a.wav", np.zeros(800), 2000)
    assert look_at_data(low).keys["mels"] < 40  # the lines of its spectrum are too far apart for 40 filters
    with pytest.raises(EdgekdError, match=r"clips of different rates \(1 of 16000 Hz, 1 of 8000 Hz\); resample them"):
        look_at_data(both)


def test_long_clips_are_named(tmp_path: Path) -> None:
    for part, name in itertools.product(("train", "test"), ("on", "off")):
        (tmp_path / part / name).mkdir(parents=True)
        soundfile.write(tmp_path / part / name / "a.wav", np.zeros(8000), 8000)
    soundfile.write(tmp_path / "train" / "on" / "long.wav", np.zeros(8000 * 61, np.int16), 8000)
    with pytest.raises(
        EdgekdError, match=r"on/long\.wav: lasts 61 s, and a clip of 8000 Hz lasts 60 s at most; cut it"
    ):
        look_at_data(tmp_path)
    for path in tmp_path.rglob("*.wav"):
        soundfile.write(path, np.zeros(50_000 if path.stem == "a" else 1_050_000, np.int16), 48_000)
    with pytest.raises(EdgekdError, match=r"long\.wav: lasts 21\.88 s, and a clip of 48000 Hz lasts 20\.83 s at most"):
        look_at_data(tmp_path)


def test_few_of_many_long_clips_are_measured(tmp_path: Path) -> None:
    for part, name, number in itertools.product(("train", "test"), ("on", "off"), range(20)):
        (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / part / name / f"{number}.flac", np.zeros(960_000, np.int16), 16_000)
    assert "mean, std: those of the features of 16 training clips" in look_at_data(tmp_path).guesses


def test_masks_tell_numbers_size_and_colour(tmp_path: Path, discs: ModuleType) -> None:
    facts = look_at_data(discs.write_masked(tmp_path / "shapes", 10))
    assert (facts.task, facts.classes) == ("segmentation", ("background", "class 7", "class 9"))
    assert (facts.keys["values"], facts.keys["size"], facts.keys["channels"]) == ([0, 7, 9], 32, 1)
    assert facts.examples + facts.tests == 10


def test_the_border_of_voc_is_not_a_class(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name, values in (("images", (3, 200)), ("masks", (0, 1, 255))):
            (tmp_path / part / name).mkdir(parents=True)
            pixels = np.resize(np.array(values, np.uint8), (40, 60))
            picture = Image.fromarray(pixels)
            (picture.convert("RGB") if name == "images" else picture).save(tmp_path / part / name / "a.png")
    facts = look_at_data(tmp_path)
    assert (facts.keys["values"], facts.keys["ignored"], facts.classes) == ([0, 1], [255], ("background", "foreground"))
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "train" / "masks" / "a.png")
    with pytest.raises(EdgekdError, match="hold more than 100 different numbers"):
        look_at_data(tmp_path)


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_boxes_tell_layout_classes_and_size(tmp_path: Path, things: ModuleType, layout: str) -> None:
    folder = tmp_path / "things"
    if layout == "voc":
        things.write_voc(folder, 20, parts=True)
    else:
        things.write_coco(folder, 12)
    facts = look_at_data(folder)
    assert (facts.task, set(facts.classes), facts.examples) == ("detection", {"disc", "square"}, 12)
    assert (facts.keys["source"], facts.keys["height"], facts.keys["width"]) == (layout, 64, 64)
    assert facts.keys["channels"] == 1 and facts.tests == (4 if layout == "voc" else 12)
    assert any("the data have their own parts" in one for one in facts.guesses)


def test_a_detector_is_found_by_its_weights() -> None:
    shape = DetectorShape(width=8, widest=16, depth=1, strides=(8, 32), neck=24, layers=2, separable=True)
    found = family_of(Detector(shape, 3, 64, 64, 4 + 5).state_dict(), Path("teacher.safetensors"))
    assert (found.family, found.outputs, found.channels) == ("detector", 5, 3)
    built = [DetectorShape(**found.shape, **one.shape) for one in found.options]
    assert shape in built


def test_convolutions_in_two_steps_are_seen_in_heads_and_in_blocks() -> None:
    for depth, layers in ((0, 2), (1, 0), (2, 1)):
        shape = DetectorShape(width=8, depth=depth, strides=(8, 16), layers=layers, separable=True)
        found = family_of(Detector(shape, 1, 64, 64, 4 + 2).state_dict(), Path("t.safetensors"))
        assert (found.shape["separable"], found.shape["depth"], found.shape["layers"]) == (True, depth, layers)


@pytest.mark.parametrize(
    "sizes",
    [
        {"stem.0.weight": (8, 3, 3, 3), "head.weight": (2, 8, 1, 1), "up.0.0.weight": (8, 16, 3, 3)},
        {"stem.0.weight": (8,), "head.weight": (2, 8, 1, 1), "up.0.0.weight": (8, 16, 3, 3)},
        {"stem.0.weight": (8, 3, 3, 3), "lateral.0.0.weight": (8, 8, 1, 1), "heads.0.scores.weight": (2, 8, 1, 1)},
        {"layer3.0.conv1.weight": (8, 8, 3, 3), "linear.weight": (10, 64)},
        {"0.weight": (0, 3, 3, 3), "1.weight": (4, 8), "2.weight": (2, 4)},
        {"embedding.table.weight": (50, 8), "forwards.0.weight_hh_l0": (24, 6)},
        {"table.weight": (50,), "encoder_norm.weight": (8,), "decoder_norm.weight": (8,)},
    ],
)
def test_weights_with_some_names_of_a_family_are_foreign(sizes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(EdgekdError, match="are those of no network that edgekd or torchvision makes"):
        family_of({name: torch.zeros(size) for name, size in sizes.items()}, Path("foreign.pt"))


def test_a_teacher_of_colours_decides_the_channels_of_grey_images(tmp_path: Path, things: ModuleType) -> None:
    facts = look_at_data(things.write_voc(tmp_path / "things", 6))
    assert facts.keys["channels"] == 1
    save_state(Detector(DetectorShape(width=8), 3, 64, 64, 4 + 2), tmp_path / "colour.safetensors", {})
    seen = look_at_teacher(str(tmp_path / "colour.safetensors"), facts, tmp_path)
    assert seen.data == {"channels": 3} and "channels: 3, which the teacher takes" in seen.guesses
    tables, _ = tables_for("mine", "things", facts, seen, load_target("cpu-arm"), None)
    assert tables["data"]["channels"] == len(tables["data"]["mean"]) == 3


def detector_file(file: Path, shape: tuple[Any, ...], places: int, values: int, labels: str = "[]") -> str:
    """An ONNX file with the input and the output of a detector, and nothing between them that could run."""
    types = onnx.TensorProto
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["boxes"])],
        "detector",
        [helper.make_tensor_value_info("images", types.UINT8 if shape[-1] in (1, 3) else types.FLOAT, shape)],
        [helper.make_tensor_value_info("boxes", types.FLOAT, ["batch", values, places])],
    )
    model = helper.make_model(graph)
    helper.set_model_props(model, {"labels": labels})
    onnx.save(model, file)
    return str(file)


def test_a_detector_as_onnx_decides_height_width_and_strides(tmp_path: Path, things: ModuleType) -> None:
    facts = look_at_data(things.write_voc(tmp_path / "things", 6))
    names = '["square", "disc"]'
    file = detector_file(tmp_path / "own.onnx", ("batch", 48, 80, 1), 6 * 10 + 3 * 5, 6, names)
    seen = look_at_teacher(file, facts, tmp_path)
    assert seen.data == {"height": 48, "width": 80, "channels": 1, "classes": ["square", "disc"]}
    assert "so height = 48, width = 80, channels = 1" in seen.guesses[0]
    tables, guesses = tables_for("mine", "things", facts, seen, load_target("cpu-arm"), None)
    assert tables["data"]["height"] == 48 and "size" not in tables["data"]
    assert (tables["student.knobs"]["strides"], tables["student.knobs"]["deepest"]) == ([[8, 16]], [16])
    assert "strides: [8, 16], as the teacher has, because the student learns from it place by place" in guesses
    for name, shape, places, values, message in (
        (
            "two",
            (1, 48, 80, 1),
            75,
            80,
            r"outputs of shape \[None, 80, 75\]; .* so \(batch, 4 \+ 2, places\) is needed",
        ),
        (
            "odd",
            (1, 1, 48, 80),
            76,
            6,
            "gives 76 places, which are no grids of strides 4, 8, 16 and 32 in images of 48×80",
        ),
        ("five", (1, 5, 48, 80), 75, 6, "images of 1 or 3 channels are needed"),
    ):
        with pytest.raises(EdgekdError, match=message):
            look_at_teacher(detector_file(tmp_path / f"{name}.onnx", shape, places, values), facts, tmp_path)


def test_pairs_tell_languages_parts_and_tokens(tmp_path: Path) -> None:
    facts = look_at_data(write_pairs(tmp_path / "pairs", ("train", "dev", "test_2016"), 40))
    keys = facts.keys
    assert (facts.task, facts.examples, facts.tests) == ("translation", 40, 12)
    assert (keys["source_language"], keys["target_language"]) == ("en", "de")
    assert (keys["validation"], keys["test"], keys["max_length"]) == ("dev", "test_2016", 8)
    assert 30 < keys["vocabulary"] < 200  # so few words make no more tokens
    assert any("dev.* for validation" in one for one in facts.guesses)


def test_tables_beside_folders_of_images_are_no_languages(tmp_path: Path) -> None:
    for part, name in itertools.product(("train", "test"), ("cat", "dog")):
        (tmp_path / part / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / part / name / "a.png")
    for name in ("train.csv", "train.txt", "train.zip", "train.npz", "train.gz", "train.json", "test.xml"):
        (tmp_path / name).write_bytes(b"")
    facts = look_at_data(tmp_path)
    assert (facts.task, facts.classes) == ("image-classification", ("cat", "dog"))


def test_families_of_the_other_tasks_are_found_by_their_weights() -> None:
    seq2seq = Seq2SeqShape(width=16, encoder_layers=2, decoder_layers=1, heads=2, feed=24)
    unet = UNetShape(width=8, depth=2, layers=2, widest=16)
    cases: list[tuple[Any, str, dict[str, Any], dict[str, Any]]] = [
        (Seq2Seq(seq2seq, 50, 50), "seq2seq",
         {"width": 16, "encoder_layers": 2, "decoder_layers": 1, "feed": 24}, {"heads": 2}),
        (UNet(unet, 3, 32, 4), "unet", {"width": 8, "depth": 2, "layers": 2, "widest": 16}, {"stem_stride": 1}),
        (keyword_cnn(KeywordCnnShape(channels=(8, 16), layers=2), 16, 20, 3), "keyword-cnn", {},
         {"channels": [8, 16], "layers": 2}),
        (ds_cnn(DsCnnShape(width=16, layers=2), 10, 49, 3), "ds-cnn",
         {"width": 16, "layers": 2, "kernel": [4, 10]}, {"stride": [2, 2]}),
    ]  # fmt: skip
    for net, family, shape, hidden in cases:
        found = family_of(net.state_dict(), Path("teacher.safetensors"))
        assert (found.family, found.shape) == (family, shape)
        assert hidden in [dict(option.shape) for option in found.options]


def test_teachers_for_other_data_are_named(tmp_path: Path, discs: ModuleType) -> None:
    masks = look_at_data(discs.write_masked(tmp_path / "shapes", 6))
    pairs = look_at_data(write_pairs(tmp_path / "pairs", ("train", "test")))
    save_state(keyword_cnn(KeywordCnnShape(channels=(8, 16)), 16, 20, 3), tmp_path / "clips.safetensors", {})
    with pytest.raises(EdgekdError, match="family keyword-cnn, which is for clips; the data are images"):
        look_at_teacher(str(tmp_path / "clips.safetensors"), masks, tmp_path)
    with pytest.raises(EdgekdError, match="is a network that classifies images; the data are for segmentation"):
        look_at_teacher("torchvision:resnet18", masks, tmp_path)
    with pytest.raises(EdgekdError, match="a teacher for translation is of the family seq2seq"):
        look_at_teacher("own:net", pairs, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clips", "masks", "boxes", "pairs"])
def test_the_card_runs_unchanged(
    cli: Cli, tmp_path: Path, kind: str, sounds: ModuleType, discs: ModuleType, things: ModuleType
) -> None:
    """Each card is read as it was written; only the epochs of the training are cut. Its own teacher then is given to
    init, which finds out what the weights do not show."""
    folder = tmp_path / "data"
    if kind == "clips":
        sounds.write_clips(folder, (("train", 8), ("val", 4), ("test", 4)))
    elif kind == "masks":
        discs.write_masked(folder, 20)
    elif kind == "boxes":
        things.write_voc(folder, 20)
    else:
        write_pairs(folder)
    done = cli("init", "--data", str(folder), "--target", "cpu-arm", "--out", "mine.toml")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "mine.toml").read_text(encoding="utf-8")
    load_card(str(tmp_path / "mine.toml"))
    shorter = "\n".join("epochs = 2" if line.startswith("epochs = ") else line for line in text.splitlines())
    (tmp_path / "mine.toml").write_text(shorter, encoding="utf-8")
    run = cli("distill", "mine.toml", "--target", "cpu-arm")
    assert run.returncode in (0, 1, 3), run.stderr  # two epochs may miss the score; nothing else may fail
    assert (tmp_path / "runs" / "mine@cpu-arm" / "model.onnx").exists()
    teacher = "runs/mine@cpu-arm/teacher/teacher.safetensors"
    again = cli("init", "--data", str(folder), "--teacher", teacher, "--target", "cpu-arm", "--out", "again.toml")
    assert again.returncode == 0, again.stderr
    assert "reaches" in again.stdout and "weights" in (tmp_path / "again.toml").read_text(encoding="utf-8")
    load_card(str(tmp_path / "again.toml"))
