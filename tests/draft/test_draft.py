"""`edgekd init`: what it finds in folders and teachers, and that the cards it writes run as they are."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from edgekd.draft.compose import image_size, student_for, toml_text
from edgekd.draft.facts import DataFacts, TeacherFacts
from edgekd.draft.fit import best_fit
from edgekd.draft.images import look_at_folder, look_at_parquet, measured_scale, pixels_of
from edgekd.draft.sentences import look_at_sentences
from edgekd.draft.teachers import look_at_teacher
from edgekd.draft.weights import family_of
from edgekd.errors import EdgekdError
from edgekd.nets.cifar_resnet import CifarResNet, CifarResNetShape
from edgekd.nets.small import ConvNetShape, MlpShape, convnet, mlp
from edgekd.nets.text import BagOfWords, BagOfWordsShape, LstmShape, TextCnn, TextCnnShape, TextLstm
from edgekd.target import load_target
from edgekd.tasks.known import load_card

Cli = Callable[..., Any]
DIGITS = load_digits()
GREY: NDArray[np.uint8] = np.round(DIGITS.images * (255 / 16)).astype(np.uint8)


def png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def digits_folder(top: Path, count: int = 200, classes: int = 10, name: str = "{}") -> Path:
    """Real digits as an image folder without parts."""
    chosen = np.flatnonzero(DIGITS.target < classes)[:count]
    for i in chosen:
        file = top / name.format(DIGITS.target[i]) / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(GREY[i]))
    return top


def colours_folder(top: Path, side: int, count: int = 12) -> Path:
    """Red and blue noise, in the parts train and test."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for place, name in enumerate(("red", "blue")):
            for number in range(count):
                image = rng.integers(0, 90, (side, side + 4, 3), dtype=np.uint8)
                image[..., 2 * place] += 120
                file = top / part / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(png(image))
    return top


def sentences_folder(top: Path) -> Path:
    top.mkdir()
    for part, count in (("train", 40), ("test", 10)):
        lines = [f"the film number {i} was {('bad', 'good')[i % 2]}\t{('poor', 'fine')[i % 2]}" for i in range(count)]
        (top / f"{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return top


def test_a_folder_tells_classes_by_number_sizes_and_colour(tmp_path: Path) -> None:
    facts = look_at_folder(digits_folder(tmp_path / "d", 1797, name="digit {}"))
    assert facts.classes == tuple(f"digit {n}" for n in range(10))
    assert (facts.side, facts.grey, facts.examples, facts.tests) == (8, True, 1797 - 359, 359)
    eleven = tmp_path / "e"
    for number in range(11):
        digits_folder(eleven / f"{number}", 12, 1, name=".").rename(eleven / f"part{number}")
    assert look_at_folder(eleven).classes == tuple(f"part{number}" for number in range(11))
    scale = measured_scale(pixels_of(facts, 8, 1))
    assert scale.mean == pytest.approx((0.305,), abs=0.02)  # of all digits, as in models/digits.toml
    assert scale.std == pytest.approx((0.376,), abs=0.02)


@pytest.mark.parametrize("parts", [("training", "testing"), ("Train", "Test"), ("Training", "val")])
def test_folders_that_look_like_parts_are_not_taken_for_classes(
    tmp_path: Path, cli: Cli, parts: tuple[str, str]
) -> None:
    for part in parts:
        digits_folder(tmp_path / "d" / part, 20)
    done = cli("init", "--data", "d")
    assert done.returncode == 2
    assert "look like parts of a data set and not like classes; call the part for training 'train'" in done.stderr


def test_arrays_are_told_how_they_come_into_a_card(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "d").mkdir()
    np.savez(tmp_path / "d" / "digits.npz", images=GREY)
    done = cli("init", "--data", "d")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--data d: holds arrays ('digits.npz')" in done.stderr
    assert '[data] source = "import"' in done.stderr


def test_colours_are_seen_and_measured(tmp_path: Path) -> None:
    facts = look_at_folder(colours_folder(tmp_path / "c", 40))
    assert (facts.grey, facts.side, facts.examples, facts.tests) == (False, 40, 24, 24)
    pixels = pixels_of(facts, 32, 3)
    assert pixels.shape == (24, 32, 32, 3)
    assert measured_scale(pixels).mean[0] == pytest.approx(pixels[..., 0].mean() / 255, abs=1e-3)


@pytest.mark.parametrize("labels", ["numbers", "names", "datasets"])
def test_parquet_columns_and_classes(tmp_path: Path, labels: str) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = ["zero", "one", "two"]
    for part, chosen in (("train", range(60)), ("test", range(60, 90))):
        rows = [i for i in chosen if DIGITS.target[i] < 3]
        column = [names[DIGITS.target[i]] if labels == "names" else int(DIGITS.target[i]) for i in rows]
        table = pyarrow.table({"picture": [{"bytes": png(GREY[i]), "path": None} for i in rows], "label": column})
        if labels == "datasets":
            about = '{"info": {"features": {"label": {"names": ["zero", "one", "two"], "_type": "ClassLabel"}}}}'
            table = table.replace_schema_metadata({"huggingface": about})
        parquet.write_table(table, tmp_path / f"{part}.parquet")
    facts = look_at_parquet(tmp_path)
    expected = {"numbers": ("0", "1", "2"), "names": ("one", "two", "zero"), "datasets": ("zero", "one", "two")}
    assert facts.classes == expected[labels]
    assert facts.keys == {"source": "parquet", "image_column": "picture"}


def test_sentences_tell_length_and_vocabulary(tmp_path: Path) -> None:
    facts = look_at_sentences(sentences_folder(tmp_path / "s"))
    assert facts.classes == ("fine", "poor")
    assert (facts.examples, facts.tests, facts.keys["max_length"]) == (40, 10, 8)
    assert facts.keys["vocabulary"] == 2 + 4 + 2 + 40  # padding, [UNK]; the, film, number, was; bad, good; numbers


def test_the_family_of_weights_is_found_by_their_names_and_sizes() -> None:
    cases = [
        (CifarResNet(CifarResNetShape(depth=14, width=8), 3, 10), "cifar-resnet", {"depth": 14, "width": 8}),
        (
            CifarResNet(CifarResNetShape(blocks=(0, 2, 1), widths=(8, 16, 24), shortcut="B"), 3, 10),
            "cifar-resnet",
            {"blocks": [0, 2, 1], "widths": [8, 16, 24], "shortcut": "B"},
        ),
        (mlp(MlpShape(hidden=(32, 16)), 1, 8, 10), "mlp", {"hidden": [32, 16]}),
        (convnet(ConvNetShape(channels=(8, 16), hidden=32), 1, 8, 10), "convnet", {"channels": [8, 16], "hidden": 32}),
        (
            convnet(ConvNetShape(channels=(8, 16), hidden=32, grid=2), 1, 8, 10),
            "convnet",
            {"channels": [8, 16], "hidden": 32, "grid": 2},
        ),
        (BagOfWords(BagOfWordsShape(embedding=8, hidden=16), 50, 2), "bag-of-words", {"embedding": 8, "hidden": 16}),
        (BagOfWords(BagOfWordsShape(embedding=8), 50, 2), "bag-of-words", {"embedding": 8, "hidden": 0}),
        (
            TextLstm(LstmShape(embedding=8, hidden=6, layers=2), 50, 2),
            "lstm",
            {"embedding": 8, "hidden": 6, "layers": 2},
        ),
        (
            TextCnn(TextCnnShape(embedding=8, filters=4, kernels=(3, 5)), 50, 2),
            "text-cnn",
            {"embedding": 8, "filters": 4, "kernels": [3, 5]},
        ),
    ]
    for net, family, shape in cases:
        found = family_of(net.state_dict(), Path("teacher.safetensors"))
        assert (found.family, found.shape) == (family, shape)
        text = found.task == "text-classification"
        assert found.outputs == (2 if text else 10)
        assert found.vocabulary == (50 if text else None)
    import torchvision

    net = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
    found = family_of(net.state_dict(), Path("teacher.pt"))
    assert (found.family, found.shape, found.outputs) == ("torchvision", {"model": "shufflenet_v2_x0_5"}, 10)
    with pytest.raises(EdgekdError, match=r"t\.pt: its names \(a\.weight, …\) are those of no network"):
        family_of({"a.weight": torch.zeros(2, 2)}, Path("t.pt"))


def test_size_and_family_suit_data_and_device() -> None:
    def facts(side: int) -> DataFacts:
        return DataFacts(task="image-classification", keys={}, classes=("a", "b"), examples=9, tests=9, side=side)

    untrained = TeacherFacts(keys={}, trained=False)
    assert [image_size(facts(side), untrained)[0] for side in (8, 32, 44, 100, 300)] == [8, 32, 32, 96, 128]
    assert image_size(facts(300), TeacherFacts(keys={}, trained=True))[0] == 224
    assert image_size(facts(300), TeacherFacts(keys={}, trained=True, size=64))[0] == 64
    arm, cuda = load_target("cpu-arm"), load_target("cuda")
    families = [student_for(size, 3, arm)[0] for size in (8, 32, 64, 96)]
    assert families == ["convnet", "cifar-resnet", "cifar-resnet", "mobilenet-v2"]
    assert student_for(96, 3, cuda)[0] == "torchvision"
    assert student_for(96, 1, arm)[0] == "cifar-resnet"  # mobilenet-v2 takes three channels


def test_text_in_a_card_survives_toml(tmp_path: Path) -> None:
    import tomllib

    name = 'a "quoted" \\ name, größe\ttab\x7f'
    assert tomllib.loads(toml_text([], {"": {"title": name}, "x.y": {"z": [1.5, True, name]}}, {})) == {
        "title": name,
        "x": {"y": {"z": [1.5, True, name]}},
    }


def test_the_order_of_a_teacher_s_classes_is_found_by_its_answers(tmp_path: Path, monkeypatch: Any) -> None:
    """A teacher of torchvision's ImageFolder has its classes in the order of their names as text."""
    for place, name in enumerate(("part1", "part2", "part10")):
        (tmp_path / name).mkdir()
        for number in range(4):
            (tmp_path / name / f"{number}.png").write_bytes(png(np.full((8, 8), 40 * place + 10, np.uint8)))
    facts = look_at_folder(tmp_path)
    assert facts.classes == ("part1", "part2", "part10")
    images = pixels_of(facts, 8, 1)

    class Teacher(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            level = images.float().mean(dim=(1, 2, 3))
            order = torch.tensor([0, 2, 1])[(level // 40).long()]  # part1, part10, part2
            return torch.nn.functional.one_hot(order, 3).float()

    monkeypatch.setattr("edgekd.draft.fit.teacher_of", lambda card: type("Loaded", (), {"module": Teacher()}))
    fit = best_fit(facts, images, measured_scale(images), (), lambda scale: load_card("digits"))
    assert fit.classes == ("part1", "part10", "part2")
    assert "the teacher knows 100.00 % of 12 training images" in fit.guess
    assert "in the order of their names as text" in fit.guess


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nothing.onnx", "no such file; give an ONNX or weights file"),
        ("torchvision:resnet17", "torchvision has no classification network 'resnet17'; did you mean"),
    ],
)
def test_teachers_that_cannot_be_used(given: str, message: str) -> None:
    data = DataFacts(task="image-classification", keys={}, classes=("a", "b"), examples=9, tests=9, side=32)
    with pytest.raises(EdgekdError, match=message):
        look_at_teacher(given, data, Path())


def test_wrong_numbers_of_classes_and_kinds_are_named(tmp_path: Path) -> None:
    from edgekd.nets.weights import save_state

    data = DataFacts(task="image-classification", keys={}, classes=("a", "b"), examples=9, tests=9, side=32)
    save_state(mlp(MlpShape(hidden=(4,)), 1, 8, 10), tmp_path / "ten.safetensors", {})
    save_state(BagOfWords(BagOfWordsShape(embedding=4), 9, 2), tmp_path / "words.safetensors", {})
    with pytest.raises(EdgekdError, match="has 10 outputs, and the data 2 classes"):
        look_at_teacher(str(tmp_path / "ten.safetensors"), data, tmp_path)
    with pytest.raises(EdgekdError, match="family bag-of-words, which is for sentences; the data are images"):
        look_at_teacher(str(tmp_path / "words.safetensors"), data, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data nowhere", "nowhere: no such folder"),
        ("--data empty", "holds nothing; edgekd init knows folders of images by class"),
        ("--data sounds", "sounds/train: has 1 folder of clips; it should hold one for each of at least two keywords"),
        ("--data loose", "loose: holds clips of sound, but neither a folder 'train' with one folder for each keyword"),
        ("--data digits --out card.txt", "a card is a TOML file"),
        ("--data digits --out there.toml", "is there already"),
        ("--data digits --out no/card.toml", "there is no folder no"),
        ("--data masked", "masked: holds 0 images and 0 masks; it needs a mask for each image"),
        ("--data pairs", "has pairs of texts for training and none for a test; add test.en and test.de"),
        ("--data three", "three: holds train.* in 3 languages (de, en, fr); leave two of them there"),
        ("--data boxes", "boxes: has no training images with boxes"),
        ("--data broken", "an image of class '0' does not decode: no known format"),
        ("--data one", "has 1 subfolder; it should hold one for each of at least two classes"),
    ],
)
def test_mistakes_are_one_line(cli: Cli, tmp_path: Path, arguments: str, message: str) -> None:
    digits_folder(tmp_path / "digits", 12, 2)
    digits_folder(tmp_path / "one", 12, 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "sounds" / "train" / "yes").mkdir(parents=True)
    (tmp_path / "sounds" / "train" / "yes" / "a.wav").write_bytes(b"")
    (tmp_path / "loose" / "yes").mkdir(parents=True)
    (tmp_path / "loose" / "yes" / "a.wav").write_bytes(b"")
    for name in ("images", "masks"):
        (tmp_path / "masked" / name).mkdir(parents=True)
    for name in ("boxes/Annotations", "boxes/JPEGImages", "pairs", "three"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("train.en", "train.de", "train.fr"):
        (tmp_path / "three" / name).write_bytes(b"")
    for name in ("train.en", "train.de.gz"):
        (tmp_path / "pairs" / name).write_bytes(b"")
    digits_folder(tmp_path / "broken", 12, 2)
    for path in (tmp_path / "broken").rglob("*.png"):
        path.write_bytes(b"no image")
    (tmp_path / "there.toml").write_text("")
    done = cli("init", *arguments.split(), "--target", "cpu-arm")
    assert done.returncode == 2
    assert message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("edgekd: ")]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["digits", "sentences", "function"])
def test_the_card_runs_unchanged(cli: Cli, tmp_path: Path, kind: str) -> None:
    """Each card is read as it was written; only the epochs of the training are cut to keep the test short."""
    folder = sentences_folder(tmp_path / "data") if kind == "sentences" else digits_folder(tmp_path / "data", 120, 3)
    teacher = []
    if kind == "function":
        (tmp_path / "own.py").write_text(
            "from torch import nn\ndef net(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 96), "
            "nn.ReLU(), nn.Linear(96, classes))\n"
        )
        teacher = ["--teacher", "own:net"]
    done = cli("init", "--data", str(folder), *teacher, "--target", "cpu-arm", "--out", "mine.toml")
    assert done.returncode == 0, done.stderr
    assert "edgekd distill mine.toml --target cpu-arm" in done.stdout
    text = (tmp_path / "mine.toml").read_text(encoding="utf-8")
    load_card(str(tmp_path / "mine.toml"))
    shorter = "\n".join("epochs = 2" if line.startswith("epochs = ") else line for line in text.splitlines())
    (tmp_path / "mine.toml").write_text(shorter, encoding="utf-8")
    run = cli("distill", "mine.toml", "--target", "cpu-arm")
    assert run.returncode in (0, 1), run.stderr  # two epochs may miss the accuracy; nothing else may fail
    assert (tmp_path / "runs" / "mine@cpu-arm" / "model.onnx").exists()
