"""The record of one finished training: its recipe, its accuracies, and its latency beside another model's.

    python tests/benchmarks/finished.py RUN OUT.json [--rival MODEL.onnx] [--pairs 24] [--target cpu-x86]
    python tests/benchmarks/finished.py TEACHER.safetensors OUT.json --card CARD --data DIR

TEACHER is what `edgekd teach CARD` wrote; it is read with the test images once. RUN is the folder of a finished
`edgekd distill`. The shipped model and the rival (such as the U8S8 file of the given
ResNet-20 that `prepare.py` writes) take turns in each of the processes; the ratio is the geometric mean over the
processes, with its 95 % interval.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from edgekd.bench.records import PAIR
from edgekd.bench.runner import measure_pair
from edgekd.bench.statistics import between, ratios_of
from edgekd.devices.local import connect
from edgekd.files import read_json, write_json
from edgekd.target import load_target

KEPT = ("name", "precision", "size_bytes", "params", "macs", "agreement")


def ratio(model: Path, rival: Path, target: str, pairs: int) -> dict[str, Any]:
    """The ratio of the median calls of `model` and `rival`."""
    found, calls = [], []
    for turn in range(pairs):
        record = measure_pair(model, rival, connect(load_target(target)), None, PAIR, turn)
        other = record.baseline or {}
        found.append(
            ratios_of(record.latency_s, other["latency_s"], record.block_calls, record.load_s, other["load_s"]).p50
        )
        calls.append((sorted(record.latency_s)[len(record.latency_s) // 2], record.fingerprint))
    interval = between(found)
    return {
        "rival": rival.name,
        "processes": pairs,
        "ratio": round(interval.value, 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
        "fastest_p50_ms": round(1e3 * min(call for call, _ in calls), 4),
        "machine": calls[0][1].get("cpu", ""),
    }


def record(folder: Path) -> dict[str, Any]:
    """What the run tells of its training and its models."""
    run, result = read_json(folder / "run.json"), read_json(folder / "result.json")
    history = read_json(folder / "student" / "history.json")["epochs"]
    card = run["card"]
    return {
        "schema_version": 1,
        "card": {key: card[key] for key in ("augment", "teacher", "student", "recipe")},
        "validation_fraction": card["data"]["validation_fraction"],
        "shape": result["shape"],
        "verdict": result["verdict"],
        "chosen": result["chosen"],
        "test_reads": result["test_reads"],
        "training": result["training"],
        "validation": [round(epoch["validation_accuracy"], 4) for epoch in history],
        "models": [
            {key: model[key] for key in KEPT} | {score["name"]: score["value"] for score in model["scores"]}
            for model in result["models"]
        ],
    }


def teacher(file: Path, name: str, data: Path) -> dict[str, Any]:
    """The training of a teacher, and its accuracy in fp32 on validation and test images."""
    from edgekd.data.sources import load_test, load_train_and_validation
    from edgekd.distill.tasks.classification import accuracy
    from edgekd.distill.tasks.known import examples_of
    from edgekd.nets.deployed import count_macs, count_params
    from edgekd.nets.teachers import load_teacher_file
    from edgekd.tasks.known import load_card

    card = load_card(name)
    loaded = load_teacher_file(card, file)
    assert loaded.net is not None
    kept = read_json(file.with_name(f"{file.stem}-history.json"))
    train, validation = load_train_and_validation(card, data)
    parts = {"validation": validation, "test": load_test(card, data)}
    found = {key: accuracy(loaded.module, examples_of(card, part), "fp32") for key, part in parts.items()}
    return {
        "schema_version": 1,
        "augment": dataclasses.asdict(card.augment),
        "family": card.teacher.family,
        "shape": card.teacher.shape,
        "training": kept.get("training") or dataclasses.asdict(card.teacher.training or card.recipe),
        "training_images": len(train),
        "params": count_params(loaded.net),
        "macs": count_macs(loaded.net, card.data),
        "epochs": len(kept["epochs"]),
        "seconds": round(sum(epoch["seconds"] for epoch in kept["epochs"]), 1),
        "accuracy": {key: round(value, 4) for key, value in found.items()},
        "validation": [round(epoch["validation_accuracy"], 4) for epoch in kept["epochs"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rival", type=Path)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--target", default="cpu-x86")
    parser.add_argument("--card", default="cifar10-fast")
    parser.add_argument("--data", type=Path)
    asked = parser.parse_args()
    if asked.run.suffix == ".safetensors":
        write_json(asked.out, teacher(asked.run, asked.card, asked.data))
        return
    found = record(asked.run)
    if asked.rival:
        found["latency"] = ratio(asked.run / "model.onnx", asked.rival, asked.target, asked.pairs)
    write_json(asked.out, found)


if __name__ == "__main__":
    main()
