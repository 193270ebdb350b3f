"""Keywords: the card's students with and without distillation beside MLPerf Tiny's DS-CNN, in ONNX Runtime on the test.

    EDGEKD_DATA=DIR OMP_NUM_THREADS=1 python tests/benchmarks/keywords.py FOLDER OUT.json [SEEDS [TARGET]]

Training and every choice see the clips of train and val; those of test, by other speakers, are read once, at the end.
The DS-CNN learns without a teacher, on 10 MFCC as in MLPerf Tiny, with the same views but for the masks. FOLDER keeps
what is trained, so that an interrupted run goes on; SEEDS is the number of seeds, by default 1. On a CPU without VNNI
name cpu-x86-avx2 as the TARGET, whose weights have 7 bits.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from edgekd.bench.measure import Subject, measure_speed
from edgekd.bench.records import Effort
from edgekd.candidate import Shape
from edgekd.card import Card, Student, Teacher, Training
from edgekd.data.arrays import keep_split
from edgekd.data.clips import load_clip_test, load_clip_training
from edgekd.devices.local import Local, connect
from edgekd.distill.student import learn
from edgekd.distill.tasks.known import examples_of
from edgekd.distill.teacher import teach
from edgekd.export.onnx import cpu_logits, export, parity
from edgekd.export.precisions import make_variant
from edgekd.export.variants import calibration_images
from edgekd.nets.deployed import count_macs, count_params
from edgekd.nets.families import make
from edgekd.nets.teachers import LoadedTeacher
from edgekd.nets.weights import load_into, read_state, save_state
from edgekd.target import load_target
from edgekd.tasks.classification import confusion
from edgekd.tasks.known import load_card, task_of

STUDENT: Shape = {"channels": [16, 32, 40], "layers": 2, "dropout": 0}
MFCC_MEAN = (-35.2, 10.1, 0.25, -0.98, -0.64, -0.35, -0.66, -0.18, -1.01, -0.98)
MFCC_STD = (26.1, 9.66, 6.39, 4.08, 4.21, 3.12, 2.74, 2.62, 2.59, 2.11)
"""Of the training clips."""


def with_ds_cnn(card: Card, seed: int) -> Card:
    """A card whose teacher is the DS-CNN, to be trained alone."""
    data = dataclasses.replace(card.data, features="mfcc", mean=MFCC_MEAN, std=MFCC_STD)
    augment = dataclasses.replace(card.augment, time_mask=0, frequency_mask=0)
    training = Training(epochs=40, batch_size=64, learning_rate=0.05, weight_decay=5e-4, precision="auto", seed=seed)
    return dataclasses.replace(card, data=data, augment=augment, teacher=Teacher(family="ds-cnn", training=training))


def student(card: Card, data: Any, teacher: LoadedTeacher, seed: int, distilled: bool, folder: Path) -> nn.Module:
    """One student; without distillation the recipe is the same, with cross-entropy as its only term."""
    recipe = dataclasses.replace(card.recipe, seed=seed)
    if not distilled:
        recipe = dataclasses.replace(recipe, losses={"ce": 1.0})
    mine = dataclasses.replace(card, recipe=recipe)
    out = folder / f"{'kd' if distilled else 'ce'}-{seed}" / "student.safetensors"
    torch.manual_seed(seed)
    net = make(card, Student(family=card.student.family), STUDENT, "student.knobs")
    if not out.exists():
        learn(mine, STUDENT, net, [teacher], data, out.parent)
        save_state(net, out, {})
    load_into(net, read_state(out), out)
    return net.eval()


def main() -> None:
    """Train, then read the test clips and write the figures."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    seeds = range(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    source = Path(os.environ["EDGEKD_DATA"], "speech-commands-ar")
    target = load_target(sys.argv[4] if len(sys.argv) > 4 else "cpu-x86")
    card = load_card("speech-commands")
    train, validation = load_clip_training(card, source)
    data = (examples_of(card, train), examples_of(card, validation))
    teacher = teach(card, data, None, folder / "teacher" / "teacher.safetensors")
    assert teacher.net is not None
    nets: list[tuple[str, int, Card, nn.Module]] = [("teacher", 0, card, teacher.net.eval())]
    for seed in seeds:
        for distilled in (True, False):
            name = "student, distilled" if distilled else "student, labels alone"
            nets.append((name, seed, card, student(card, data, teacher, seed, distilled, folder)))
        other = with_ds_cnn(card, seed)
        parts = examples_of(other, train), examples_of(other, validation)
        alone = teach(other, parts, None, folder / f"ds-cnn-{seed}" / "teacher.safetensors")
        assert alone.net is not None
        nets.append(("DS-CNN, labels alone", seed, other, alone.net.eval()))
    subjects, figures = list[Subject](), list[dict[str, Any]]()
    kept = keep_split(validation, folder / "val")
    test = load_clip_test(card, source)  # the one time
    every = {"val": validation, "test": test}
    for name, seed, mine, net in nets:
        for precision in ("fp32", "int8"):
            file = folder / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}-{precision}.onnx"
            if precision == "fp32":
                export(net, mine, target, file, {})
            else:
                fp32 = file.with_name(file.name.replace("int8", "fp32"))
                make_variant(fp32, "int8", target, calibration_images(train, 256), file)
            logits = {
                part: cpu_logits(file, task_of(mine.data), split.read(np.arange(len(split))))
                for part, split in every.items()
            }
            if precision == "fp32":
                parity(net, mine, validation.read(np.arange(len(validation))), logits["val"])
            scores = {part: float((logits[part].argmax(1) == split.labels).mean()) for part, split in every.items()}
            row = {"model": name, "seed": seed, "precision": precision, **scores, "size_bytes": file.stat().st_size}
            row |= {"params": count_params(net), "macs": count_macs(net, mine.data)}
            figures.append(row | {"confusion": confusion(logits["test"], test.labels).tolist()})
            subjects.append(Subject(name=file.stem, file=file, precision=precision))
            print(json.dumps(row), flush=True)
    first = [place for place, row in enumerate(figures) if row["seed"] == 0]
    timed = measure_speed([subjects[place] for place in first], connect(target), kept, None, Effort(placement=False))
    for place, model in zip(first, timed, strict=True):
        p50 = model.latency_p50_ms
        figures[place] |= {"latency_p50_ms": p50.value, "interval": [p50.low, p50.high], "notes": list(model.notes)}
    content = {
        "clips": {part: len(split) for part, split in {"train": train, **every}.items()},
        "keywords": list(card.data.classes),
        "target": target.name,
        "cpu": Local().facts().model,
        "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "figures": figures,
    }
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
