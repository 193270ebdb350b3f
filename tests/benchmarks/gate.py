"""How often `edgekd check` cries wolf, and how often it finds a slower model, on this machine.

    python tests/benchmarks/gate.py prepare FOLDER          models with 0, 2, 5, 10 and 20 % more work, and their true ratios
    python tests/benchmarks/gate.py record FOLDER OUT.json --minutes 60
    python tests/benchmarks/gate.py replay OUT.json RESULT.json
    python tests/benchmarks/gate.py live FOLDER RESULT.json --checks 60

`prepare` makes ResNet-8 and ResNet-20 in int8 and mobilenet_v2 in fp32, all with random weights, and the same
networks for larger images: more work in the same kernels. `record` measures process pairs, as `check` does, in random
order: with the other CPU idle, and with a bounded load on it. `replay` lets the judge decide on windows of these
pairs; `live` runs whole checks.
"""

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

from edgekd.bench.records import PAIR, Effort
from edgekd.bench.runner import measure_pair
from edgekd.bench.statistics import ratios_of
from edgekd.run import write_json
from edgekd.target import Quantization, load_target

TARGET = "cpu-x86"
MODELS = ("resnet8-int8", "resnet20-int8", "mobilenet_v2-fp32")
MORE = (1.02, 1.05, 1.10, 1.20)
SIZES = {
    "resnet8-int8": [(32, 32, 1), (32, 32, 2), (32, 32, 3), (32, 33, 0), (32, 36, 0), (33, 33, 0), (32, 40, 0)],
    "resnet20-int8": [(32, 32, 3), (32, 32, 5), (32, 32, 7), (32, 33, 0), (32, 34, 0), (33, 33, 0), (32, 36, 0),
                      (34, 34, 0), (35, 35, 0), (32, 38, 0), (32, 40, 0)],
    "mobilenet_v2-fp32": [(224, 224, 1), (224, 224, 2), (224, 224, 3)]
    + [(224, w, 0) for w in (225, 227, 233, 237, 241, 247, 255, 263, 271, 279)],
}  # fmt: skip
"""Height, width, and linear layers (mobilenet: pairs of them) added at the end."""
BUSY = "import time\nwhile True:\n    end = time.perf_counter() + 0.06\n    while time.perf_counter() < end: pass\n    time.sleep(0.04)"


def make(model: str, size: tuple[int, int], more: int, path: Path) -> None:
    import numpy as np
    import onnx
    import torch
    import torchvision

    from edgekd.export.onnx import quiet_export, save_model
    from edgekd.export.quantize import quantize
    from edgekd.nets.cifar_resnet import CifarResNet, CifarResNetShape

    torch.manual_seed(0)
    if model == "mobilenet_v2-fp32":
        net: torch.nn.Module = torchvision.models.mobilenet_v2(weights=None)
        widths = [1280] + [128, 1280] * more
        extra = [torch.nn.Linear(inside, outside) for inside, outside in zip(widths, widths[1:], strict=False)]
        net.classifier = torch.nn.Sequential(*extra, net.classifier)  # type: ignore[arg-type]
    else:
        net = CifarResNet(CifarResNetShape(depth=8 if "resnet8" in model else 20), 3, 10)
        layers = [torch.nn.Linear(64, 64) for _ in range(more)]
        net.linear = torch.nn.Sequential(*layers, net.linear)  # type: ignore[arg-type]
    example = torch.randn(2, 3, *size)
    with quiet_export():
        batch = torch.export.Dim("batch")
        program = torch.onnx.export(
            net.eval(), (example,), dynamo=True, verbose=False, external_data=False, opset_version=20,
            dynamic_shapes=({0: batch},),
        )  # fmt: skip
    assert program is not None
    save_model(program.model_proto, path)
    if "int8" in model:
        images = np.random.default_rng(0).standard_normal((64, 3, *size)).astype(np.float32)
        quantize(path, path, Quantization(reduce_range=True), images)  # type: ignore[arg-type]
    if size in ((32, 32), (224, 224)) and not more:  # another file that computes the same
        again = onnx.load(path)
        again.doc_string = "the same network, saved again"
        save_model(again, path.with_name(f"{model}-again.onnx"))


def one(model: Path, baseline: Path, turn: int, effort: Effort = PAIR) -> dict[str, Any]:
    begin = time.perf_counter()
    record = measure_pair(model, baseline, load_target(TARGET), None, effort, turn)
    other = record.baseline or {}
    ratios = ratios_of(record.latency_s, other["latency_s"], record.block_calls, record.load_s, other["load_s"])
    median = sorted(other["latency_s"])[len(other["latency_s"]) // 2]
    about = {key: record.disturbance.get(key) for key in ("others_cores", "waited", "steal")}
    return {
        "p50": round(ratios.p50, 6),
        "p95": None if ratios.p95 is None else round(ratios.p95, 6),
        "load": round(ratios.load, 6),
        "baseline_p50_ms": round(1e3 * median, 6),
        "calls": len(record.latency_s),
        "wall_s": round(time.perf_counter() - begin, 3),
        **{key: None if value is None else round(value, 4) for key, value in about.items()},
    }


def geometric(values: list[float]) -> tuple[float, float]:
    """Geometric mean, and the half-width of its 95 % interval as a factor − 1 (normal approximation)."""
    from math import exp, log

    logs = [log(value) for value in values]
    return exp(fmean(logs)), exp(NormalDist().inv_cdf(0.975) * stdev(logs) / len(logs) ** 0.5) - 1


def prepare(folder: Path) -> None:
    """Models at several image sizes; of each network those nearest to the wanted ratios are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = {}
    for model in MODELS:
        base = (32, 32) if "resnet" in model else (224, 224)
        baseline = folder / f"{model}.onnx"
        if not baseline.exists():
            make(model, base, 0, baseline)
        ratios = {}
        for height, width, more in SIZES[model]:
            path = folder / f"{model}-{height}x{width}{f'-{more}' if more else ''}.onnx"
            if not path.exists():
                make(model, (height, width), more, path)
            ratios[path.name] = geometric([one(path, baseline, turn)["p50"] for turn in range(6)])[0]
        print(model, {name: round(ratio, 3) for name, ratio in ratios.items()}, flush=True)
        kept[model] = {str(more): min(ratios, key=lambda name: abs(ratios[name] - more)) for more in MORE}
    write_json(folder / "gate.json", {"schema_version": 1, "models": kept})


def pairs_of(folder: Path) -> list[tuple[str, str, Path, Path]]:
    """(network, ratio wanted, model, baseline) for every comparison."""
    kept = json.loads((folder / "gate.json").read_text(encoding="utf-8"))["models"]
    pairs = []
    for model, chosen in kept.items():
        baseline = folder / f"{model}.onnx"
        pairs.append((model, "1", folder / f"{model}-again.onnx", baseline))
        pairs += [(model, more, folder / name, baseline) for more, name in chosen.items()]
    return pairs


def truth(folder: Path, out: Path, cpu: int) -> None:
    """The ratio of every comparison from 24 process pairs, each 2.5 times as long as in a check."""
    os.sched_setaffinity(0, {cpu})
    long = dataclasses.replace(PAIR, max_s=2.5 * PAIR.max_s, max_calls=10 * PAIR.max_calls)
    taken: dict[tuple[str, str], list[float]] = {(model, more): [] for model, more, _, _ in pairs_of(folder)}
    for turn in range(24):
        for model, more, file, baseline in pairs_of(folder):
            taken[model, more].append(one(file, baseline, turn, long)["p50"])
    found = []
    for (model, more), ratios in taken.items():
        value, half = geometric(ratios)
        found.append({"model": model, "more": more, "ratio": round(value, 5), "margin": round(half, 5), "pairs": len(ratios)})
        print(found[-1], flush=True)
    write_json(out, {"schema_version": 1, "target": TARGET, "truth": found})


def record(folder: Path, out: Path, minutes: float, cpu: int) -> None:
    """Process pairs in random order, in spells of two minutes: the other CPU idle, then 60 % busy."""
    os.sched_setaffinity(0, {cpu})
    taken: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))["pairs"] if out.exists() else []
    end, spell, turn = time.monotonic() + 60 * minutes, 0, 0
    draw = random.Random(len(taken))
    while time.monotonic() < end:
        busy = spell % 2 == 1
        load = None
        if busy:
            load = subprocess.Popen([sys.executable, "-c", BUSY], preexec_fn=lambda: os.sched_setaffinity(0, {1 - cpu}))  # noqa: PLW1509
        try:
            spell_end = time.monotonic() + 120
            while time.monotonic() < min(spell_end, end):
                todo = [pair for pair in pairs_of(folder) for _ in range(2 if pair[1] == "1" else 1)]
                draw.shuffle(todo)
                for model, more, file, baseline in todo:
                    pair = one(file, baseline, turn)
                    taken.append({"model": model, "more": more, "busy": busy, "turn": turn, "at": round(time.time(), 1)} | pair)
                turn += 1
        finally:
            if load:
                load.kill()
                load.wait()
        spell += 1
        write_json(out, {"schema_version": 1, "target": TARGET, "pairs": taken})
        print(len(taken), "pairs", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("prepare", "truth", "record"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--cpu", type=int, default=1, help="the CPU to measure on")
    asked = parser.parse_args()
    if asked.step == "prepare":
        prepare(asked.folder)
    elif asked.step == "truth":
        truth(asked.folder, asked.out, asked.cpu)
    else:
        record(asked.folder, asked.out, asked.minutes, asked.cpu)


if __name__ == "__main__":
    main()
