"""The pruned teacher against a student trained alike, at equal latency: CIFAR-10, some of the training images, a given
ResNet-20 as the teacher.

    EDGEKD_DATA=DIR python tests/benchmarks/pruning.py --seed 0

The teacher loses half of its channels in three rounds, and learns from the whole teacher after each. The student is a
ResNet-20 of half the width from random weights, with the same number of epochs, images and views. Accuracies are those
of ONNX Runtime on the 10,000 test images, in fp32 and in int8; latencies are measured by turns. Results are written to
results/pruning-SEED.json.
"""

import argparse
import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from edgekd.card import Card, Student, Teacher
from edgekd.data.images import Split
from edgekd.data.sources import load_test, load_train_and_validation
from edgekd.devices.local import Local
from edgekd.distill.pruned import distill_pruned
from edgekd.distill.student import TrainingOptions, learn
from edgekd.distill.tasks.known import examples_of
from edgekd.export.onnx import cpu_logits, export
from edgekd.export.quantize import quantize
from edgekd.export.variants import calibration_images
from edgekd.nets.deployed import count_macs, count_params
from edgekd.nets.families import make
from edgekd.nets.teachers import load_teacher_file
from edgekd.recipe import Prune, Recipe
from edgekd.run import Run
from edgekd.target import load_target
from edgekd.tasks.known import load_card, task_of

RESULTS = Path(__file__).parent / "results"
TARGET = load_target("cpu-x86")
SHAPE = {"depth": 20, "width": 8}
ROUNDS, RATIO, ROUNDS_OF_TIMING, CALLS = 3, 0.5, 60, 50


def card_of(seed: int, epochs: int, data: Path) -> Card:
    prune = Prune(epochs=epochs // ROUNDS, rounds=ROUNDS, precision="auto", seed=seed)
    recipe = Recipe(epochs=epochs, views=2, seed=seed, learning_rate=0.1, precision="auto", prune=prune)
    teacher = Teacher(
        family="cifar-resnet",
        shape={"depth": 20, "width": 16},
        weights=str(data / "teachers" / "cifar10-resnet20.safetensors"),
    )
    return dataclasses.replace(
        load_card("cifar10"), student=Student(family="cifar-resnet"), recipe=recipe, teacher=teacher
    )


def files_of(net: nn.Module, card: Card, train: Split, folder: Path, name: str) -> dict[str, Path]:
    fp32, int8 = folder / f"{name}-fp32.onnx", folder / f"{name}-int8.onnx"
    export(net.eval(), card, TARGET, fp32, {})
    quantize(fp32, int8, TARGET.quantization, calibration_images(train, TARGET.quantization.calibration_images))
    return {"fp32": fp32, "int8": int8}


def accuracy(file: Path, card: Card, test: Split) -> float:
    parts = [np.arange(start, start + 500) for start in range(0, len(test), 500)]
    logits = np.concatenate([cpu_logits(file, task_of(card.data), test.read(part)) for part in parts])
    return float((logits.argmax(1) == test.labels).mean())


def ratio_of(one: Path, other: Path, image: np.ndarray[Any, Any]) -> tuple[float, list[float]]:
    """The median of the ratios of the latencies of two files, which take turns, and their quartiles."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [
        onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]) for file in (one, other)
    ]
    ratios = []
    for turn in range(ROUNDS_OF_TIMING):
        taken = [0.0, 0.0]
        for place in (0, 1) if turn % 2 else (1, 0):
            times = []
            for _ in range(CALLS):
                started = time.perf_counter()
                sessions[place].run(None, {"image": image})
                times.append(time.perf_counter() - started)
            taken[place] = min(times)  # other programs only make calls longer
        ratios.append(taken[0] / taken[1])
    return float(np.median(ratios)), [float(value) for value in np.quantile(ratios, [0.25, 0.75])]


def compare(seed: int, epochs: int, images: int, data: Path) -> dict[str, Any]:
    card = card_of(seed, epochs, data)
    teacher = load_teacher_file(card, Path(card.teacher.weights))
    train, validation = load_train_and_validation(card, data / "cifar10")
    train = train.subset(np.linspace(0, len(train) - 1, images).astype(np.int64))
    test = load_test(card, data / "cifar10")
    both = examples_of(card, train), examples_of(card, validation.subset(np.arange(1000)))
    torch.manual_seed(seed)
    student = make(card, card.student, SHAPE, "student.knobs")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        learn(card, SHAPE, student, [teacher], both, folder / "student")
        pruned = distill_pruned(card, [teacher], both, Run(folder), RATIO, TrainingOptions())
        nets = {"student": student, "pruned": pruned}
        files = {name: files_of(net, card, train, folder, name) for name, net in nets.items()}
        image = test.read(np.arange(1))
        found: dict[str, Any] = {
            "seed": seed, "training_images": images, "epochs": epochs, "rounds": ROUNDS, "ratio": RATIO,
            "student_shape": SHAPE, "cpu": Local().facts().model, "onnxruntime": onnxruntime.__version__,
            "torch": str(torch.__version__),
        }  # fmt: skip
        for name, net in nets.items():
            found[name] = {precision: accuracy(file, card, test) for precision, file in files[name].items()}
            found[name] |= {"parameters": count_params(net), "macs": count_macs(net, card.data)}
            found[name] |= {f"{key}_bytes": file.stat().st_size for key, file in files[name].items()}
        for precision in ("fp32", "int8"):
            ratio, quartiles = ratio_of(files["pruned"][precision], files["student"][precision], image)
            found[f"latency_ratio_{precision}"] = {"median": ratio, "quartiles": quartiles}
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--images", type=int, default=5_000)
    given = parser.parse_args()
    result = compare(given.seed, given.epochs, given.images, Path(os.environ["EDGEKD_DATA"]))
    print(json.dumps(result, indent=1))
    path = RESULTS / f"pruning-{given.seed}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
