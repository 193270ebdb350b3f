"""The record of one finished training: its recipe, its accuracies, and its latency beside another model's.

    python tests/benchmarks/finished.py RUN OUT.json [--rival MODEL.onnx] [--pairs 24] [--target cpu-x86]

RUN is the folder of a finished `edgekd distill`. The shipped model and the rival (such as the U8S8 file of the given
ResNet-20 that `prepare.py` writes) take turns in each of the processes; the ratio is the geometric mean over the
processes, with its 95 % interval.
"""

import argparse
from pathlib import Path
from typing import Any

from edgekd.bench.records import PAIR
from edgekd.bench.runner import measure_pair
from edgekd.bench.statistics import between, ratios_of
from edgekd.devices.local import connect
from edgekd.files import read_json, write_json
from edgekd.target import load_target

KEPT = ("name", "precision", "size_bytes", "params", "macs", "accuracy", "agreement")


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
        "models": [{key: model[key] for key in KEPT} for model in result["models"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rival", type=Path)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--target", default="cpu-x86")
    asked = parser.parse_args()
    found = record(asked.run)
    if asked.rival:
        found["latency"] = ratio(asked.run / "model.onnx", asked.rival, asked.target, asked.pairs)
    write_json(asked.out, found)


if __name__ == "__main__":
    main()
