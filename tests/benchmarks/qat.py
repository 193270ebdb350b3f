"""Training for int8 against quantization after training: MNIST, a part of the training images, small networks.

    EDGEKD_DATA=DIR python tests/benchmarks/qat.py --network separable --seed 0

A convolutional teacher is trained, and each student is distilled once. Then, for each quantization scheme, three int8
files are compared: that of the student itself (`ptq`), that of the student after further epochs in float (`control`),
and that of the training for int8 with the same epochs and settings (`qat`). All accuracies are those of ONNX Runtime on
the 10,000 test images; the settings were chosen with `--part validation` and another seed. Results are written to
results/qat-NETWORK-SEED.json.
"""

import argparse
import copy
import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from edgekd.candidate import Shape
from edgekd.card import Card, Student, Teacher
from edgekd.data.images import Split
from edgekd.data.sources import load_test, load_train_and_validation
from edgekd.devices.local import Local
from edgekd.distill.qat import train_for_int8
from edgekd.distill.student import TrainingOptions, learn
from edgekd.distill.tasks.known import examples_of
from edgekd.distill.teacher import teach
from edgekd.export.onnx import cpu_logits, export
from edgekd.export.quantize import quantize
from edgekd.export.variants import calibration_images
from edgekd.nets.deployed import Deployed, count_macs, count_params
from edgekd.nets.fakequant import deployable
from edgekd.nets.families import make
from edgekd.nets.folding import folded
from edgekd.nets.teachers import LoadedTeacher
from edgekd.recipe import Qat, Recipe, Training
from edgekd.run import Run
from edgekd.target import Quantization, load_target
from edgekd.tasks.known import load_card, task_of

RESULTS = Path(__file__).parent / "results"
TARGET = load_target("cpu-x86")
SCHEMES = {
    "uint8 activations, int8 weights per channel": Quantization(),
    "int8 symmetric, per tensor, 7-bit weights": Quantization(
        activation="int8", symmetric_activation=True, per_channel=False, reduce_range=True
    ),
}
NETWORKS: dict[str, tuple[Student, Shape]] = {
    "separable": (Student(family="import", function="qat:separable"), {"width": 4}),
    "convnet": (Student(family="convnet"), {"channels": [4, 4], "hidden": 8, "grid": 2}),
}


def separable(width: int, classes: int) -> nn.Module:
    """A small network of depthwise-separable convolutions with ReLU6, as in MobileNet (Howard et al. 2017)."""
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6()]
    inside = width
    for outside, stride in ((2 * width, 1), (2 * width, 1), (4 * width, 2), (4 * width, 1), (8 * width, 2)):
        layers += [
            nn.Conv2d(inside, inside, 3, stride, 1, groups=inside, bias=False),
            nn.BatchNorm2d(inside),
            nn.ReLU6(),
        ]
        layers += [nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU6()]
        inside = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes))


def card_of(name: str, seed: int, epochs: int, qat: Qat) -> Card:
    recipe = Recipe(epochs=epochs, views=2, seed=seed, learning_rate=0.05, batch_size=64, qat=qat)
    training = Training(epochs=4, learning_rate=0.05, batch_size=64)
    teacher = Teacher(family="convnet", shape={"channels": [16, 32], "hidden": 64, "grid": 7}, training=training)
    card = load_card("mnist-convnet")
    return dataclasses.replace(card, student=NETWORKS[name][0], recipe=recipe, teacher=teacher)


def accuracy(file: Path, card: Card, test: Split) -> float:
    logits = np.concatenate([cpu_logits(file, task_of(card.data), test.read(part)) for part in _parts(len(test))])
    return float((logits.argmax(1) == test.labels).mean())


def _parts(count: int) -> list[np.ndarray[Any, Any]]:
    return [np.arange(start, min(start + 500, count)) for start in range(0, count, 500)]


def after_training(net: nn.Module, card: Card, train: Split, scheme: Quantization, folder: Path) -> Path:
    """The int8 file by ONNX Runtime's quantization tool."""
    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    export(folded(net, card.data), card, TARGET, fp32, {})
    quantize(fp32, int8, scheme, calibration_images(train, scheme.calibration_images))
    return int8


def kernels(file: Path, folder: Path) -> dict[str, int]:
    """The op types of the graph that ONNX Runtime runs, with their number."""
    options, path = onnxruntime.SessionOptions(), folder / "optimised.onnx"
    options.optimized_model_filepath, options.log_severity_level = str(path), 3
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    types = [node.op_type for node in onnx.load(path).graph.node]
    return {name: types.count(name) for name in sorted(set(types))}


def compare(name: str, seed: int, epochs: int, images: int, qat: Qat, data: Path, part: str) -> dict[str, Any]:
    """Train and quantise; return the figures."""
    card = card_of(name, seed, epochs, qat)
    shape = NETWORKS[name][1]
    train, validation = load_train_and_validation(card, data / "mnist")
    train = train.subset(np.linspace(0, len(train) - 1, images).astype(np.int64))
    scored = load_test(card, data / "mnist") if part == "test" else validation
    both = examples_of(card, train), examples_of(card, validation.subset(np.arange(1000)))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        teacher = teach(card, both, None, folder / "teacher.safetensors")
        torch.manual_seed(seed)
        net = make(card, card.student, shape, "student.knobs")
        learn(card, shape, net, [teacher], both, folder / "float")
        net.eval()
        longer = copy.deepcopy(net)
        tuned = dataclasses.replace(card, recipe=card.recipe.on_logits(qat))
        learn(tuned, shape, longer, [teacher], both, folder / "longer")
        rows = {
            key: _row(card, shape, net, longer, teacher, both, (train, scored), scheme, folder / str(number))
            for number, (key, scheme) in enumerate(SCHEMES.items())
        }
        fp32 = folder / "fp32.onnx"
        export(folded(net, card.data), card, TARGET, fp32, {})
        result = {
            "network": name, "seed": seed, "parameters": count_params(net), "macs": count_macs(net, card.data),
            "training_images": images, "epochs": epochs, "qat": dataclasses.asdict(qat), "scored_on": part,
            "fp32": accuracy(fp32, card, scored),
            "schemes": rows, "cpu": Local().facts().model, "onnxruntime": onnxruntime.__version__,
            "torch": str(torch.__version__),
        }  # fmt: skip
        export(folded(longer, card.data), card, TARGET, fp32, {})
        return result | {"fp32_longer": accuracy(fp32, card, scored)}


def _row(
    card: Card, shape: Shape, net: nn.Module, longer: nn.Module, teacher: LoadedTeacher, both: Any,
    splits: tuple[Split, Split], scheme: Quantization, folder: Path,
) -> dict[str, Any]:  # fmt: skip
    folder.mkdir()
    train, scored = splits
    ptq = accuracy(after_training(net, card, train, scheme, folder), card, scored)
    control = accuracy(after_training(longer, card, train, scheme, folder), card, scored)
    graph = train_for_int8(card, shape, net, [teacher], both, Run(folder), scheme, TrainingOptions())
    file = folder / "qat.onnx"
    export(deployable(graph), card, TARGET, file, {})
    deployed = Deployed(graph, card.data).eval()
    with torch.no_grad():
        parts = [deployed(torch.from_numpy(scored.read(part))).argmax(1).numpy() for part in _parts(len(scored))]
    mine = np.concatenate(parts)
    theirs = np.concatenate(
        [cpu_logits(file, task_of(card.data), scored.read(part)).argmax(1) for part in _parts(len(scored))]
    )
    found = {
        "ptq": ptq, "control": control, "qat": float((theirs == scored.labels).mean()),
        "qat_in_torch": float((mine == scored.labels).mean()), "agreement": float((mine == theirs).mean()),
        "qat_kernels": kernels(file, folder), "ptq_bytes": (folder / "int8.onnx").stat().st_size,
        "qat_bytes": file.stat().st_size,
    }  # fmt: skip
    print(json.dumps({key: value for key, value in found.items() if key != "qat_kernels"}), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(NETWORKS), default="separable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=4_000)
    parser.add_argument("--qat-epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--part", choices=["test", "validation"], default="test")
    given = parser.parse_args()
    qat = Qat(epochs=given.qat_epochs, learning_rate=given.learning_rate, batch_size=64, seed=given.seed)
    data = Path(os.environ["EDGEKD_DATA"])
    result = compare(given.network, given.seed, given.epochs, given.images, qat, data, given.part)
    print(json.dumps(result, indent=1))
    if given.part == "test":
        path = RESULTS / f"qat-{given.network}-{given.seed}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
