"""`edgekd init` on folders and teachers of several kinds: what it guesses, and whether the card runs as it is.

    EDGEKD_DATA=DIR python tests/benchmarks/init_trial.py [--only-init] OUT.json FOLDER [CASE …]

The folders are made in FOLDER from real data. For each case `edgekd init` writes a card, its guesses are compared with
what the folder was made of, and `edgekd distill` runs the unchanged card, with trainings cut to one epoch by --set;
with --only-init no card is run.
Cases that are in OUT.json already are kept, so that cases can be run one after the other.
"""

import argparse
import io
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from edgekd import __version__
from edgekd.files import read_json, write_json

DATA = Path(os.environ.get("EDGEKD_DATA", "data"))
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NUMBERS = tuple(map(str, range(10)))
CUT = ("recipe.epochs=1", "recipe.views=1", "teacher.training.epochs=1")
FUNCTION = """
from torch import nn

def make(classes):
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 64, classes)
    )
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A folder, how it is made, a teacher, and what a right card says."""

    make: Callable[[Path], None]
    teacher: str = ""
    cut: tuple[str, ...] = CUT
    right: dict[str, Any] = field(default_factory=dict)
    """Values of the card by their dotted names; empty if init should refuse the folder."""
    refusal: str = ""
    """Part of the line with which init should refuse the folder."""


def rows(part: str, name: str, count: int) -> list[tuple[bytes, int]]:
    """Encoded images and their classes, from the first parquet file of a part."""
    import pyarrow.parquet

    file = sorted((DATA / name).glob(f"{part}*.parquet"))[0]
    table = pyarrow.parquet.read_table(file).slice(0, count).to_pylist()
    return [(row["image"]["bytes"], int(row["label"])) for row in table]


def images(top: Path, pictures: list[tuple[bytes, int]], names: tuple[str, ...], ending: str, side: int) -> None:
    """Write pictures as files in a folder for each class."""
    for number, (content, label) in enumerate(pictures):
        file = top / names[label] / f"{number}.{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(content)).resize((side, side)).save(file)


def split_folder(top: Path) -> None:
    """CIFAR-10 in the parts train and test."""
    images(top / "train", rows("train", "cifar10", 600), CIFAR, "png", 32)
    images(top / "test", rows("test", "cifar10", 200), CIFAR, "png", 32)


def flat_folder(top: Path) -> None:
    """Larger photographs without parts, whose classes have names with spaces and signs."""
    pictures = [one for one in rows("train", "cifar10", 900) if one[1] < 3]
    images(top, pictures, tuple(f"{name.title()} (photo)" for name in CIFAR), "jpg", 96)


def parquet_folder(top: Path) -> None:
    """CIFAR-10 as parquet, with texts as labels and a name of its own for the column of images."""
    import pyarrow
    import pyarrow.parquet

    top.mkdir(parents=True)
    for part, count in (("train", 1500), ("test", 400)):
        content = rows(part, "cifar10", count)
        columns = {"img": [{"bytes": one, "path": None} for one, _ in content], "label": [n for _, n in content]}
        pyarrow.parquet.write_table(pyarrow.table(columns), top / f"{part}-00000-of-00001.parquet")


def mnist_folder(top: Path, parts: tuple[str, str] = ("train", "test")) -> None:
    """MNIST as an image folder."""
    images(top / parts[0], rows("train", "mnist", 1500), NUMBERS, "png", 28)
    images(top / parts[1], rows("test", "mnist", 400), NUMBERS, "png", 28)


def mnist_with_onnx(top: Path) -> None:
    """MNIST, and beside it an ONNX teacher whose input has fixed sizes: logistic regression on normalised pixels."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from sklearn.linear_model import LogisticRegression

    mnist_folder(top)
    files = sorted((top / "train").glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(file), dtype=np.float32).ravel() / 255 for file in files])
    fitted = LogisticRegression(max_iter=60).fit((pixels - 0.5) / 0.5, [file.parent.name for file in files])
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w", "b"], ["y"])],
        "logistic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 28, 28])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [
            numpy_helper.from_array(fitted.coef_.T.astype(np.float32), "w"),
            numpy_helper.from_array(fitted.intercept_.astype(np.float32), "b"),
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), f"{top}-teacher.onnx"
    )


def digits_folder(top: Path) -> None:
    """The small grey digits without parts, and beside them a function that makes a teacher."""
    digits = load_digits()
    for number, (picture, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        file = top / str(label) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(picture * (255 / 16)).astype(np.uint8)).save(file)
    (top.parent / "own_net.py").write_text(FUNCTION)


def arrays(top: Path) -> None:
    """Digits as one .npz file, which init has no card for."""
    top.mkdir(parents=True)
    digits = load_digits()
    np.savez(top / "digits.npz", images=digits.images, labels=digits.target)


def sentences(top: Path) -> None:
    """Sentences of SST-2."""
    top.mkdir(parents=True)
    for part, count in (("train", 2000), ("dev", 300), ("test", 500)):
        lines = (DATA / "sst2" / f"{part}.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
        (top / f"{part}.tsv").write_text("".join(lines[:: max(1, len(lines) // count)]), encoding="utf-8")


def whole(name: str) -> Callable[[Path], None]:
    """A function that makes the folder a link to one of the real data sets."""

    def make(top: Path) -> None:
        top.parent.mkdir(parents=True, exist_ok=True)
        top.symlink_to((DATA / name).resolve())

    return make


NO_SCHOOL = CUT[:2]
RESNET20 = {"data.size": 32, "data.channels": 3, "data.mean": [0.485, 0.456, 0.406], "teacher.family": "cifar-resnet"}
CASES = {
    "folder with parts": Case(
        make=split_folder,
        right={"data.source": "image-folder", "data.classes": [*CIFAR], "data.size": 32, "augment.flip": True},
    ),
    "folder without parts, torchvision's network": Case(
        make=flat_folder,
        teacher="torchvision:mobilenet_v3_small",
        right={"data.size": 96, "data.classes": [f"{name.title()} (photo)" for name in CIFAR[:3]]},
    ),
    "parquet, weights of a ResNet-20": Case(
        make=parquet_folder,
        teacher=str(DATA.resolve() / "teachers" / "cifar10-resnet20.safetensors"),
        cut=NO_SCHOOL,
        right=RESNET20 | {"data.source": "parquet", "data.classes": [*NUMBERS]},
    ),
    "MNIST, ONNX teacher of fixed size": Case(
        make=mnist_with_onnx,
        teacher="{top}-teacher.onnx",
        cut=NO_SCHOOL,
        right={"data.size": 28, "data.channels": 1, "data.mean": [0.5], "teacher.family": "onnx"},
    ),
    "digits, function of torch": Case(
        make=digits_folder,
        teacher="own_net:make",
        right={"data.size": 8, "data.channels": 1, "teacher.function": "own_net:make", "student.family": "convnet"},
    ),
    "sentences": Case(
        make=sentences,
        right={"task": "text-classification", "data.classes": ["0", "1"], "teacher.family": "lstm"},
    ),
    "clips of keywords": Case(
        make=whole("speech-commands-ar"),
        right={"task": "keyword-spotting", "data.rate": 16_000, "data.seconds": 1.0, "student.family": "keyword-cnn"},
    ),
    "images with masks": Case(
        make=whole("nuclei"),
        right={"task": "segmentation", "data.values": [0, 255], "data.size": 256, "student.family": "unet"},
    ),
    "images with boxes": Case(
        make=whole("bccd"),
        right={
            "task": "detection",
            "data.source": "voc",
            "data.classes": ["Platelets", "RBC", "WBC"],
            "data.height": 192,
            "data.width": 256,
            "student.knobs.strides": [[8, 16]],
        },
    ),
    "pairs of texts": Case(
        make=whole("multi30k"),
        cut=(CUT[0], CUT[2]),
        right={
            "task": "translation",
            "data.source_language": "en",
            "data.target_language": "de",
            "data.test": "test_2016_flickr",
            "student.family": "seq2seq",
        },
    ),
    "arrays": Case(make=arrays, refusal="arrays"),
    "parts with other names": Case(
        make=lambda top: mnist_folder(top, ("training", "testing")), refusal="not like classes; call"
    ),
}


def value_of(card: dict[str, Any], name: str) -> Any:
    """A value of the card by its dotted name; None if it is not there."""
    for key in name.split("."):
        card = card.get(key, {}) if isinstance(card, dict) else {}
    return card or None if isinstance(card, dict) else card


def command(folder: Path, *words: str) -> tuple[int, list[str], float]:
    """Run edgekd in a folder; return its exit code, the lines of both streams, and the seconds of CPU it took."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-m", "edgekd", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{Path(__file__).parents[2]}"},
    )
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return done.returncode, done.stdout.splitlines(), seconds


def tried(name: str, case: Case, folder: Path, runs: bool) -> dict[str, Any]:
    """What happened in one case; `runs` says whether its card is run."""
    place = folder / name.replace(" ", "-").replace(",", "").replace("'", "")
    top = place / "data"
    if not top.exists():
        case.make(top)
    started = time.monotonic()
    teacher = ("--teacher", case.teacher.format(top=top)) if case.teacher else ()
    code, lines, seconds = command(place, "init", "--data", str(top), *teacher, "--out", "card.toml")
    found: dict[str, Any] = {"init": {"code": code, "cpu_s": round(seconds, 1), "lines": lines}}
    if case.refusal:
        said = [line for line in lines if line.startswith("edgekd: ")]
        return found | {"right": code == 2 and len(said) == 1 and case.refusal in said[0], "ran": None}
    if code:
        return found | {"right": False, "ran": False}
    card = tomllib.loads((place / "card.toml").read_text(encoding="utf-8"))
    values = {key: value_of(card, key) for key in case.right}
    wrong = {key: value for key, value in values.items() if value != case.right[key]}
    if not runs:
        return found | {"wrong": wrong, "right": not wrong, "ran": None}
    cut = [word for setting in case.cut for word in ("--set", setting)]
    code, lines, seconds = command(place, "distill", "card.toml", *cut)
    distilled = {"code": code, "cpu_s": round(seconds, 1), "last": lines[-3:]}
    minutes = round((time.monotonic() - started) / 60, 1)
    ran = code in (0, 1, 3) and any(place.glob("runs/*/result.json"))
    return found | {"wrong": wrong, "right": not wrong, "distill": distilled, "ran": ran, "minutes": minutes}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only-init", action="store_true", help="run no card")
    parser.add_argument("cases", nargs="*", choices=[*CASES, []])
    asked = parser.parse_args()
    for title in asked.cases or CASES:
        result = tried(title, CASES[title], asked.folder.resolve(), not asked.only_init)
        print(title, {key: result[key] for key in ("right", "ran")}, flush=True)
        known = read_json(asked.out) if asked.out.exists() else {"cases": {}}
        write_json(asked.out, {"edgekd": __version__, "cases": known["cases"] | {title: result}})
