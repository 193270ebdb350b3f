"""SST-2: teachers chosen on the dev sentences, students with and without distillation, in ONNX Runtime on the test.

    EDGEKD_DATA=DIR OMP_NUM_THREADS=1 python tests/benchmarks/sst2.py FOLDER tests/benchmarks/results/sst2.json

Training and every choice see train.tsv and dev.tsv; test.tsv is read once, after the last choice. FOLDER keeps what is
trained, so that an interrupted run goes on.
"""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from edgekd.bench.measure import Subject, measure_speed
from edgekd.bench.records import Effort
from edgekd.candidate import Shape
from edgekd.card import Card, Student, Teacher
from edgekd.data.arrays import keep_split
from edgekd.data.text import keep_tokenizer, load_test_text, load_text_training, settled
from edgekd.devices.local import Local, connect
from edgekd.distill.student import learn
from edgekd.distill.tasks.known import examples_of
from edgekd.distill.teacher import teach, validation_score
from edgekd.export.onnx import cpu_logits, export, parity
from edgekd.export.precisions import make_variant
from edgekd.nets.deployed import Deployed, count_macs, count_params
from edgekd.nets.families import make
from edgekd.nets.teachers import LoadedTeacher
from edgekd.nets.weights import load_into, read_state, save_state
from edgekd.target import load_target
from edgekd.tasks.known import load_card, task_of

SEEDS = (0, 1, 2)
TEACHERS: dict[str, tuple[str, Shape]] = {
    "lstm 64": ("lstm", {"embedding": 64, "hidden": 64}),
    "text-cnn 64": ("text-cnn", {"embedding": 64, "filters": 64}),
    "bag-of-words 64": ("bag-of-words", {"embedding": 64}),
}
STUDENT: Shape = {"embedding": 16, "hidden": 16}
TARGET = "cpu-x86-avx2"
PUBLISHED = [
    {"model": "naive Bayes, words", "accuracy": 0.818, "source": "Socher et al. 2013, table 1"},
    {"model": "SVM", "accuracy": 0.794, "source": "Socher et al. 2013, table 1"},
    {"model": "word vector averaging", "accuracy": 0.801, "source": "Socher et al. 2013, table 1"},
    {"model": "NBOW-RAND, mean of random word vectors", "accuracy": 0.814, "source": "Iyyer et al. 2015, table 1"},
    {"model": "DAN-RAND, the same with hidden layers", "accuracy": 0.832, "source": "Iyyer et al. 2015, table 1"},
    {"model": "CNN-rand, phrases in the training", "accuracy": 0.827, "source": "Kim 2014, table 2"},
]


def with_teacher(card: Card, name: str, seed: int) -> Card:
    """The card with that teacher, trained with that seed."""
    family, shape = TEACHERS[name]
    assert card.teacher.training is not None
    training = dataclasses.replace(card.teacher.training, seed=seed)
    if family == "text-cnn":
        training = dataclasses.replace(training, epochs=10)
    return dataclasses.replace(card, teacher=Teacher(family=family, shape=shape, training=training))


def teachers(card: Card, data: Any, folder: Path) -> list[dict[str, Any]]:
    """Every teacher with every seed, and its accuracy on the dev sentences."""
    rows = []
    for name in TEACHERS:
        for seed in SEEDS:
            mine, begin = with_teacher(card, name, seed), time.perf_counter()
            out = folder / f"{name.replace(' ', '-')}-{seed}" / "teacher.safetensors"
            there = out.exists()
            teacher = teach(mine, data, None, out)
            row = {"teacher": name, "seed": seed, "dev": validation_score(card, teacher, data[1]), "file": str(out)}
            rows.append(row | {"seconds": None if there else time.perf_counter() - begin})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def student(card: Card, data: Any, teacher: LoadedTeacher, seed: int, distilled: bool, folder: Path) -> torch.nn.Module:
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
    """Train, choose, then read the test sentences and write the figures."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    source, target, begin = Path(os.environ["EDGEKD_DATA"], "sst2"), load_target(TARGET), time.perf_counter()
    card = load_card("sst2")
    train, validation = load_text_training(card, source)
    card = settled(card, validation)
    data = (examples_of(card, train), examples_of(card, validation))
    rows = teachers(card, data, folder)
    means = {name: np.mean([row["dev"] for row in rows if row["teacher"] == name]) for name in TEACHERS}
    family = max(means, key=lambda name: means[name])
    best = max((row for row in rows if row["teacher"] == family), key=lambda row: row["dev"])
    card = with_teacher(card, family, best["seed"])
    teacher = teach(card, data, None, Path(best["file"]))
    assert teacher.net is not None
    nets = {("teacher", best["seed"]): teacher.net.eval()}
    for distilled in (True, False):
        for seed in SEEDS:
            name = "student, distilled" if distilled else "student, labels alone"
            nets[name, seed] = student(card, data, teacher, seed, distilled, folder)
            print(
                name, seed, validation_score(card, LoadedTeacher(Deployed(nets[name, seed], card.data), out), data[1])
            )
    trained_s = time.perf_counter() - begin

    keep_tokenizer(card, source, folder / "tokenizer.json")
    kept = keep_split(validation, folder / "dev")
    test = load_test_text(card, source, folder / "tokenizer.json")  # the one time
    subjects, figures = [], []
    for (name, seed), net in nets.items():
        file = folder / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}-fp32.onnx"
        int8 = file.with_name(file.name.replace("fp32", "int8"))
        export(net, card, target, file, {})
        make_variant(file, "int8", target, None, int8)
        for precision, one in (("fp32", file), ("int8", int8)):
            scores = {}
            for part, split in (("dev", validation), ("test", test)):
                ids = split.read(np.arange(len(split)))
                logits = cpu_logits(one, task_of(card.data), ids)
                scores[part] = float((logits.argmax(1) == split.labels).mean())
                if precision == "fp32" and part == "dev":
                    parity(net, card, ids, logits)
            figures.append({"model": name, "seed": seed, "precision": precision, **scores,
                            "size_bytes": one.stat().st_size, "params": count_params(net),
                            "macs": count_macs(net, card.data)})  # fmt: skip
            subjects.append(Subject(name=one.stem, file=one, precision=precision))
            print(json.dumps(figures[-1]), flush=True)
    first = [place for place, row in enumerate(figures) if row["model"] == "teacher" or row["seed"] == SEEDS[0]]
    timed = measure_speed([subjects[place] for place in first], connect(target), kept, None, Effort(placement=False))
    for place, model in zip(first, timed, strict=True):
        p50 = model.latency_p50_ms
        figures[place] |= {"latency_p50_ms": p50.value, "interval": [p50.low, p50.high], "notes": list(model.notes)}
    assert card.teacher.training is not None
    content = {
        "task": "SST-2, sentences alone: 6,920 to train, 872 dev, 1,821 test",
        "hardware": "AMD EPYC (Zen 3, AVX2), one thread, shared CPU",
        "cpu": Local().facts().model,
        "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "target": TARGET,
        "timed_length": card.data.timed_length,
        "data": dataclasses.asdict(card.data),
        "augment": dataclasses.asdict(card.augment),
        "teacher_training": dataclasses.asdict(card.teacher.training),
        "recipe": dataclasses.asdict(card.recipe),
        "student": {"family": card.student.family, "shape": STUDENT},
        "teachers": [{key: value for key, value in row.items() if key != "file"} for row in rows],
        "chosen_on_dev": {"family": family, "mean_dev": means, "seed": best["seed"]},
        "models": figures,
        "seconds_of_training": trained_s,
        "published": PUBLISHED,
    }
    out.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
