"""Ways to int8 side by side: quantization after training, with corrections, after more training in float, training for
int8, and layers that return to float.

    EDGEKD_DATA=DIR python tests/benchmarks/int8_ways.py NETWORK OUT.json [--run RUN] [--keep FOLDER]

Each network is distilled once (that of `cifar10-cnn` is the student of RUN, a folder made by `edgekd distill
cifar10-cnn`, whose teacher also teaches the other network of CIFAR-10). Then, for each quantization scheme, these int8
files are compared: that of the network itself (`ptq`), the same equalised and with corrected biases (`corrected`), the
same with clipped weights, too, where they have one scale (`clipped`), that of the network after further epochs in
float (`control`), that of the training for int8 with the same epochs, images and settings (`qat`), and that of the
network with as many layers in float as bring the validation accuracy to half a point below float (`fallback`; None
where `ptq` has it). All accuracies are those of ONNX Runtime on the 10,000 test images, the times are divided by that
of the network's own fp32 file in the same processes. Calibration and fallback see training and validation images alone.
FOLDER keeps the trained networks, so that a run that was interrupted goes on.
"""

import argparse
import copy
import dataclasses
import itertools
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from edgekd.candidate import Shape
from edgekd.card import Card, Student, Teacher
from edgekd.data.images import Split
from edgekd.data.sources import load_test, load_train_and_validation
from edgekd.devices.device import Site
from edgekd.devices.local import Local, connect
from edgekd.distill.qat import train_for_int8
from edgekd.distill.student import TrainingOptions, learn
from edgekd.distill.tasks.known import examples_of
from edgekd.distill.teacher import teach
from edgekd.distributions import mcnemar
from edgekd.export.onnx import cpu_logits, export
from edgekd.export.quantize import quantize
from edgekd.export.shrink import save_model, shrink
from edgekd.export.variants import calibration_images
from edgekd.files import file_sha256, read_json, write_json
from edgekd.nets.deployed import Deployed, count_macs, count_params
from edgekd.nets.fakequant import deployable
from edgekd.nets.families import make
from edgekd.nets.folding import folded
from edgekd.nets.teachers import LoadedTeacher, load_teacher_file
from edgekd.nets.weights import load_into, read_state, save_state
from edgekd.recipe import Qat, Recipe, Training
from edgekd.run import Run
from edgekd.search.layers import fall_back
from edgekd.search.material import Material, figures_of, time_ratio
from edgekd.target import Quantization, load_target
from edgekd.tasks.known import load_card, task_of

TARGET = load_target("cpu-x86")
SCHEMES = {
    "uint8 activations, int8 weights per channel": Quantization(),
    "uint8 activations, 7-bit weights per tensor": Quantization(per_channel=False, reduce_range=True),
}
DROP = 0.005
"""How much of the validation accuracy the fallback may lose against float."""
JUDGED = 2_500
"""Validation images with which the fallback is found."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, and how it is trained."""

    card: str
    student: Student
    shape: Shape
    epochs: int
    """0: its weights are those of a run."""
    images: int
    """Training images, spread over the training part."""
    qat: Qat


def qat(epochs: int, learning_rate: float) -> Qat:
    return Qat(epochs=epochs, learning_rate=learning_rate, batch_size=64, seed=0)


CASES = {
    "cifar10-cnn": Case(
        card="cifar10-cnn",
        student=Student(family="convnet"),
        shape={"channels": [16, 32], "hidden": 64, "grid": 4},
        epochs=0,
        images=10_000,
        qat=qat(2, 1e-3),
    ),
    "cifar10-separable": Case(
        card="cifar10-cnn",
        student=Student(family="import", function="int8_ways:separable"),
        shape={"widths": [8] * 4 + [16] * 4 + [32] * 4, "channels": 3},
        epochs=14,
        images=12_000,
        qat=qat(3, 1e-2),
    ),
    "mnist-separable": Case(
        card="mnist-convnet",
        student=Student(family="import", function="int8_ways:separable"),
        shape={"widths": [4, 8, 8, 16, 16, 32], "channels": 1},
        epochs=6,
        images=4_000,
        qat=qat(3, 1e-2),
    ),
}


def separable(widths: list[int], channels: int, classes: int) -> nn.Module:
    """A network of depthwise-separable convolutions with ReLU6, as in MobileNet (Howard et al. 2017): the first of
    `widths` is the stem's, at half the resolution, and a width of the third block or later that is larger than the one
    before halves the resolution."""
    first, layers = widths[0], list[nn.Module]()
    layers += [nn.Conv2d(channels, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU6()]
    for place, (inside, outside) in enumerate(itertools.pairwise(widths)):
        stride = 2 if place > 1 and outside > inside else 1
        depthwise = nn.Conv2d(inside, inside, 3, stride, 1, groups=inside, bias=False)
        layers += [depthwise, nn.BatchNorm2d(inside), nn.ReLU6()]
        layers += [nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


@dataclass(frozen=True, kw_only=True)
class Known:
    """What all ways of one network share."""

    case: Case
    card: Card
    train: Split
    both: Any
    """Training and validation examples."""
    test: Split
    teacher: LoadedTeacher
    net: nn.Module
    longer: nn.Module
    """The network after further epochs in float."""
    material: Material
    folder: Path

    def right(self, file: Path) -> NDArray[np.bool_]:
        """Whether the file's answer to each test image is right."""
        right: NDArray[np.bool_] = self.answers(file) == self.test.labels
        return right

    def answers(self, file: Path) -> NDArray[np.int64]:
        task = task_of(self.card.data)
        return np.concatenate([cpu_logits(file, task, self.test.read(part)).argmax(1) for part in parts(self.test)])

    def timed(self, file: Path) -> list[float]:
        """Its time divided by that of the network's fp32 file, and the 95 % interval."""
        return list(dataclasses.astuple(time_ratio(file, self.material.fp32, self.material)))


def parts(split: Split) -> list[NDArray[np.int64]]:
    return [np.arange(start, min(start + 500, len(split))) for start in range(0, len(split), 500)]


def card_of(case: Case) -> Card:
    card = load_card(case.card)
    recipe = Recipe(epochs=case.epochs or 1, views=2, batch_size=64, learning_rate=0.1, qat=case.qat)
    teacher = card.teacher
    if case.card == "mnist-convnet":
        recipe = dataclasses.replace(recipe, learning_rate=0.05)
        training = Training(epochs=4, learning_rate=0.05, batch_size=64)
        teacher = Teacher(family="convnet", shape={"channels": [16, 32], "hidden": 64, "grid": 7}, training=training)
    return dataclasses.replace(card, student=case.student, recipe=recipe, teacher=teacher)


def networks(case: Case, card: Card, both: Any, run: Path | None, folder: Path) -> tuple[LoadedTeacher, Any, Any]:
    """The teacher, the network, and the network after further epochs in float; trained where they are not kept."""
    if run and case.card == "cifar10-cnn":
        teacher = load_teacher_file(card, run / "teacher" / "teacher.safetensors")
    else:
        teacher = teach(card, both, None, folder / f"teacher-{case.card}.safetensors")
    torch.manual_seed(0)
    net = make(card, card.student, case.shape, "student.knobs")
    if case.epochs == 0:
        assert run is not None, "--run is missing"
        weights = run / "student" / "student.safetensors"
    else:
        weights = folder / "net.safetensors"
    if not weights.exists():
        learn(card, case.shape, net, [teacher], both, folder / "float")
        save_state(net, weights, {"card": card.name})
    load_into(net, read_state(weights), weights)
    longer, further = copy.deepcopy(net), folder / "longer.safetensors"
    if not further.exists():
        tuned = dataclasses.replace(card, recipe=card.recipe.on_logits(case.qat))
        learn(tuned, case.shape, longer, [teacher], both, folder / "longer")
        save_state(longer, further, {"card": card.name})
    load_into(longer, read_state(further), further)
    return teacher, net.eval(), longer.eval()


def prepared(name: str, data: Path, run: Path | None, folder: Path, site: Site) -> Known:
    """Train, or load, and export the network."""
    case = CASES[name]
    card = card_of(case)
    data = data / ("mnist" if case.card == "mnist-convnet" else "cifar10")
    train, validation = load_train_and_validation(card, data)
    train = train.subset(np.linspace(0, len(train) - 1, case.images).astype(np.int64))
    both = examples_of(card, train), examples_of(card, validation.subset(np.arange(1000)))
    teacher, net, longer = networks(case, card, both, run, folder)
    fp32, inputs = folder / "fp32.onnx", folder / "validation.npy"
    export(folded(net, card.data), card, TARGET, fp32, {})
    judged = np.linspace(0, len(validation) - 1, JUDGED).astype(np.int64)
    np.save(inputs, validation.read(judged))
    material = Material(
        fp32=fp32, calibration=calibration_images(train, Quantization().calibration_images), inputs=inputs,
        targets=validation.labels[judged], task=task_of(card.data), site=site, folder=folder,
    )  # fmt: skip
    return Known(
        case=case, card=card, train=train, both=both, test=load_test(card, data), teacher=teacher, net=net,
        longer=longer, material=material, folder=folder,
    )  # fmt: skip


def ways(known: Known, scheme: Quantization, number: int) -> dict[str, Any]:
    """The figures of all ways for one scheme."""
    whole, longer = known.material.fp32, known.folder / "fp32-longer.onnx"
    corrected = dataclasses.replace(scheme, equalize=True, correct_bias=True)
    files = {"ptq": (whole, scheme), "corrected": (whole, corrected), "control": (longer, scheme)}
    if not scheme.per_channel:
        files["clipped"] = (whole, dataclasses.replace(corrected, clip_weights=True))
    rows, right = {}, {}
    assert known.material.calibration is not None
    for name, (fp32, settings) in files.items():
        file = known.folder / f"{name}-{number}.onnx"
        quantize(fp32, file, settings, known.material.calibration)
        rows[name], right[name] = row(known, file)
    file, agreement = trained_file(known, scheme, known.folder / f"scheme-{number}")
    rows["qat"], right["qat"] = row(known, file)
    rows["qat"] |= {"agreement_with_torch": agreement}
    lost, won = (int((right["qat"] < right["control"]).sum()), int((right["qat"] > right["control"]).sum()))
    beside = {"gain": (won - lost) / len(right["qat"]), "won": won, "lost": lost, "p": mcnemar(lost, won)}
    return rows | {"fallback": fallback(known, scheme, number), "qat_beside_control": beside}


def row(known: Known, file: Path) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """The figures of a file, and which of its answers are right. The time is kept beside the file."""
    kept, digest, right = file.with_suffix(".time.json"), file_sha256(file), known.right(file)
    timed = read_json(kept) if kept.exists() else {}
    if timed.get("sha256") != digest:
        timed = {"sha256": digest, "time_ratio_to_fp32": known.timed(file)}
        write_json(kept, timed)
    ratio = timed["time_ratio_to_fp32"]
    found = {"accuracy": float(right.mean()), "bytes": file.stat().st_size, "time_ratio_to_fp32": ratio}
    print(file.name, json.dumps(found), flush=True)
    return found, right


def trained_file(known: Known, scheme: Quantization, folder: Path) -> tuple[Path, float]:
    """The file of the training for int8, and on which share of the test images it answers as torch does."""
    folder.mkdir(exist_ok=True)
    net, teachers = known.net, [known.teacher]
    options = TrainingOptions()
    graph = train_for_int8(known.card, known.case.shape, net, teachers, known.both, Run(folder), scheme, options)
    file = folder / "qat.onnx"
    export(deployable(graph), known.card, TARGET, file, {})
    model = onnx.load(file)
    shrink(model)
    save_model(model, file)
    deployed = Deployed(graph, known.card.data).eval()
    with torch.no_grad():
        mine = [deployed(torch.from_numpy(known.test.read(part))).argmax(1).numpy() for part in parts(known.test)]
    return file, float((np.concatenate(mine) == known.answers(file)).mean())


def fallback(known: Known, scheme: Quantization, number: int) -> dict[str, Any] | None:
    """The figures with some layers in float; None if int8 loses no more than allowed on validation images."""
    folder = known.folder / f"fallback-{number}"
    folder.mkdir(exist_ok=True)
    kept, ptq = folder / "found.json", known.folder / f"ptq-{number}.onnx"
    if kept.exists() and (done := read_json(kept))["ptq_sha256"] == file_sha256(ptq):
        return done["found"]  # type: ignore[no-any-return]
    material = dataclasses.replace(known.material, folder=folder)
    floor = float(figures_of(material.fp32, material).mean()) - DROP
    result = None
    if figures_of(ptq, material).mean() < floor:
        found = fall_back(material, scheme, floor, limit_s=600)
        print(found.why, flush=True)
        figures, _ = row(known, found.file)
        result = figures | {"in_float": list(found.returned), "layers": len(found.damage), "why": found.why}
    write_json(kept, {"ptq_sha256": file_sha256(ptq), "found": result})
    return result


def compare(name: str, data: Path, run: Path | None, folder: Path) -> dict[str, Any]:
    """Train and quantise; return the figures."""
    site = connect(TARGET)
    known = prepared(name, data, run, folder, site)
    longer = folder / "fp32-longer.onnx"
    export(folded(known.longer, known.card.data), known.card, TARGET, longer, {})
    fp32 = known.material.fp32
    result = {
        "schema_version": 1, "network": name, "family": known.case.student.family, "shape": known.case.shape,
        "parameters": count_params(known.net), "macs": count_macs(known.net, known.card.data),
        "training_images": known.case.images, "epochs": known.case.epochs, "qat": dataclasses.asdict(known.case.qat),
        "test_images": len(known.test), "fp32": float(known.right(fp32).mean()), "fp32_bytes": fp32.stat().st_size,
        "fp32_longer": float(known.right(longer).mean()), "schemes": {}, "cpu": Local().facts().model,
        "onnxruntime": onnxruntime.__version__, "torch": str(torch.__version__),
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    result["schemes"] = {key: ways(known, scheme, number) for number, (key, scheme) in enumerate(SCHEMES.items())}
    site.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=list(CASES))
    parser.add_argument("out", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = given.keep or Path(place)
        folder.mkdir(exist_ok=True)
        write_json(given.out, compare(given.network, Path(os.environ["EDGEKD_DATA"]), given.run, folder))


if __name__ == "__main__":
    main()
