"""How often `edgekd check` cries wolf, and how often it finds a slower model, on this machine.

    python tests/benchmarks/gate.py prepare FOLDER                    models with about 0, 2, 5, 10 and 20 % more work
    python tests/benchmarks/gate.py truth FOLDER TRUTH.json           how much slower they really are
    python tests/benchmarks/gate.py record FOLDER PAIRS.json --minutes 60
    python tests/benchmarks/gate.py replay PAIRS.json TRUTH.json RESULT.json
    python tests/benchmarks/gate.py live FOLDER RESULT.json --checks 60

`prepare` makes ResNet-8 and ResNet-20 in int8 and mobilenet_v2 in fp32, all with random weights, and the same
networks for larger images: more work in the same kernels. `record` measures process pairs, as `check` does, in random
order: with the other CPU idle, and with a bounded load on it. `replay` lets the judge decide on windows of these
pairs; `live` runs whole checks.
"""

import argparse
import dataclasses
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

from edgekd.bench.records import PAIR, Effort
from edgekd.bench.runner import measure_pair
from edgekd.bench.statistics import ratios_of
from edgekd.check.compare import paired_lines
from edgekd.check.looks import CONFIRMATION, PAIR_LOOKS
from edgekd.devices.local import connect
from edgekd.files import atomic, write_json
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
BUSY = """import time
while True:
    end = time.perf_counter() + 0.06
    while time.perf_counter() < end:
        pass
    time.sleep(0.04)
"""


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
        net = torchvision.models.mobilenet_v2(weights=None)
        widths = [1280] + [128, 1280] * more
        extra = [torch.nn.Linear(inside, outside) for inside, outside in itertools.pairwise(widths)]
        net.classifier = torch.nn.Sequential(*extra, net.classifier)
    else:
        net = CifarResNet(CifarResNetShape(depth=8 if "resnet8" in model else 20), 3, 10)
        layers = [torch.nn.Linear(64, 64) for _ in range(more)]
        net.linear = torch.nn.Sequential(*layers, net.linear)  # type: ignore[assignment]
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
        quantize(path, path, Quantization(reduce_range=True), images)
    if size in ((32, 32), (224, 224)) and not more:  # another file that computes the same
        again = onnx.load(path)
        again.doc_string = "the same network, saved again"
        save_model(again, path.with_name(f"{model}-again.onnx"))


def one(model: Path, baseline: Path, turn: int, effort: Effort = PAIR) -> dict[str, Any]:
    begin = time.perf_counter()
    record = measure_pair(model, baseline, connect(load_target(TARGET)), None, effort, turn)
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
        about = {"model": model, "more": more, "pairs": len(ratios)}
        found.append(about | {"ratio": round(value, 5), "margin": round(half, 5)})
        print(found[-1], flush=True)
    write_json(out, {"schema_version": 1, "target": TARGET, "truth": found})


def record(folder: Path, out: Path, minutes: float, cpu: int, idle_only: bool) -> None:
    """Process pairs in random order, in spells of two minutes: the other CPU idle, then 60 % busy."""
    os.sched_setaffinity(0, {cpu})
    taken = read_pairs(out) if out.exists() else []
    end, spell, turn = time.monotonic() + 60 * minutes, 0, 0
    draw = random.Random(len(taken))
    while time.monotonic() < end:
        busy = spell % 2 == 1 and not idle_only
        load = None
        if busy:
            load = subprocess.Popen([sys.executable, "-c", BUSY])
            os.sched_setaffinity(load.pid, {1 - cpu})
        try:
            spell_end = time.monotonic() + 120
            while time.monotonic() < min(spell_end, end):
                todo = [pair for pair in pairs_of(folder) for _ in range(2 if pair[1] == "1" else 1)]
                draw.shuffle(todo)
                for model, more, file, baseline in todo:
                    pair = one(file, baseline, turn)
                    about = {"model": model, "more": more, "busy": busy, "turn": turn, "at": round(time.time(), 1)}
                    taken.append(about | pair)
                turn += 1
        finally:
            if load:
                load.kill()
                load.wait()
        spell += 1
        write_pairs(out, taken)
        print(len(taken), "pairs", flush=True)


def write_pairs(path: Path, pairs: list[dict[str, Any]]) -> None:
    """A line a pair, for they are many; the keys stand once."""
    columns = list(pairs[0])
    rows = ",\n".join(json.dumps([pair[key] for key in columns], separators=(",", ":")) for pair in pairs)
    head = f'{{"schema_version": 1, "target": {json.dumps(TARGET)}, "columns": {json.dumps(columns)}, "rows": [\n'
    with atomic(path) as temporary:
        temporary.write_text(f"{head}{rows}\n]}}\n", encoding="utf-8")


def read_pairs(path: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return [dict(zip(content["columns"], row, strict=True)) for row in content["rows"]]


def replay(pairs_file: Path, truth_file: Path, out: Path) -> None:
    """Let the judge decide on windows of recorded pairs, 300 A/A and 100 a ratio for each network and condition.

    Windows are consecutive in time and start at random; they overlap where fewer were recorded, so that the intervals,
    which take checks for independent, are somewhat too narrow.
    """
    taken = read_pairs(pairs_file)
    truths = json.loads(truth_file.read_text(encoding="utf-8"))["truth"]
    results = []
    for truth_ in truths:
        for condition in ("idle", "busy"):
            mine = [p for p in taken if p["model"] == truth_["model"] and condition_of(p) == condition]
            cell, same = ([p for p in mine if p["more"] == more] for more in (truth_["more"], "1"))
            checks = 300 if truth_["more"] == "1" else 100
            if len(cell) >= PAIR_LOOKS[-1] + CONFIRMATION and len(same) >= PAIR_LOOKS[0]:
                results.append(truth_ | {"condition": condition, "recorded": len(cell)} | replayed(cell, same, checks))
                print(results[-1], flush=True)
    write_json(
        out, {"schema_version": 1, "target": TARGET, "looks": PAIR_LOOKS, "results": results, "sums": sums(results)}
    )


def condition_of(pair: dict[str, Any]) -> str:
    """busy: the bounded load ran, or something else kept the other CPU busy for a third of the time or more."""
    others = pair["others_cores"] or 0.0
    return "busy" if pair["busy"] or others >= 0.33 else "idle" if others < 0.1 else "between"


def replayed(cell: list[dict[str, Any]], same: list[dict[str, Any]], checks: int) -> dict[str, Any]:
    draw = random.Random(0)
    limits = {"max_slowdown": 0.025, "max_slowdown_p95": 0.10, "max_load_growth": 0.25}
    most = PAIR_LOOKS[-1] + CONFIRMATION
    found: dict[str, int] = {"pass": 0, "fail": 0, "inconclusive": 0}
    p50: dict[str, int] = {"pass": 0, "fail": 0, "inconclusive": 0}
    used, seconds = [], []
    for _ in range(checks):
        start, other = draw.randrange(len(cell)), draw.randrange(len(same))
        window = [cell[(start + k) % len(cell)] for k in range(most)]
        itself = [triple(same[(other + k) % len(same)]) for k in range(PAIR_LOOKS[0])]
        count = PAIR_LOOKS[0]
        while True:
            ratios = [triple(pair) for pair in window[:count]]
            timed = paired_lines(ratios, itself, limits)
            wanted = max(entry.pairs for entry in timed)
            if wanted <= count or any(entry.line.outcome == "fail" for entry in timed):
                break
            count = wanted
        outcomes = [entry.line.outcome for entry in timed]
        found["fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"] += 1
        p50[outcomes[0]] += 1
        used.append(count)
        seconds.append(sum(p["wall_s"] for p in window[:count]) + sum(p["wall_s"] for p in same[: PAIR_LOOKS[0]]))
    return {
        "checks": checks,
        "verdicts": found,
        "p50_verdicts": p50,
        "fail_interval": clopper_pearson(found["fail"], checks),
        "pairs_used": {"median": sorted(used)[checks // 2], "most": max(used)},
        "seconds": {"median": round(sorted(seconds)[checks // 2], 1), "most": round(max(seconds), 1)},
    }


def triple(pair: dict[str, Any]) -> tuple[float, float | None, float]:
    return pair["p50"], pair["p95"], pair["load"]


def sums(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Verdicts of all networks together, by ratio and condition."""
    found = []
    for more in ("1", *map(str, MORE)):
        for condition in ("idle", "busy"):
            mine = [r for r in results if r["more"] == more and r["condition"] == condition]
            total = {key: sum(r["verdicts"][key] for r in mine) for key in ("pass", "fail", "inconclusive")}
            checks = sum(total.values())
            if checks:
                interval = clopper_pearson(total["fail"], checks)
                found.append(
                    {"more": more, "condition": condition, **total, "checks": checks, "fail_interval": interval}
                )
    return found


def clopper_pearson(hits: int, total: int) -> list[float]:
    from scipy.stats import binomtest

    interval = binomtest(hits, total).proportion_ci(0.95, "exact")
    return [round(float(interval.low), 4), round(float(interval.high), 4)]


def live(folder: Path, out: Path, checks: int, cpu: int) -> None:
    """Whole checks by the command, half of them A/A and half against the network that is about 5 % slower."""
    os.sched_setaffinity(0, {cpu})
    done: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))["checks"] if out.exists() else []
    jobs = [pair for pair in pairs_of(folder) if pair[1] in ("1", "1.05")]
    for number in range(len(done), checks // 2 * len(jobs)):
        model, more, file, baseline = jobs[number % len(jobs)]
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            answer = Path(scratch, "answer.json")
            command = [sys.executable, "-m", "edgekd", "check", str(file), "--baseline", str(baseline)]
            exact = ("max_size_growth", "max_memory_growth", "max_coverage_loss", "max_fused_loss")  # no news here
            off = [word for key in exact for word in ("--tolerance", f"{key}=off")]
            subprocess.run([*command, "-t", TARGET, *off, "--json", str(answer)], capture_output=True, check=False)
            (judged,) = json.loads(answer.read_text(encoding="utf-8"))["judged"]
        lines = {line["key"]: line["outcome"] for line in judged["lines"]}
        slowdown = next(line["figure"]["value"] for line in judged["lines"] if line["key"] == "max_slowdown")
        wall = round(time.perf_counter() - begin, 1)
        entry = {"model": model, "more": more, "outcome": judged["outcome"], "lines": lines, "wall_s": wall}
        done.append(entry | {"slowdown": round(slowdown, 5), "loaded": any("loaded" in n for n in judged["notes"])})
        write_json(out, {"schema_version": 1, "target": TARGET, "checks": done, "sums": live_sums(done)})


def live_sums(done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for model in MODELS:
        for more in ("1", "1.05"):
            mine = [entry for entry in done if (entry["model"], entry["more"]) == (model, more)]
            if not mine:
                continue
            total = {key: sum(e["outcome"] == key for e in mine) for key in ("pass", "fail", "inconclusive", "error")}
            walls = sorted(entry["wall_s"] for entry in mine)
            seconds = {"median": walls[len(walls) // 2], "most": walls[-1]}
            interval = clopper_pearson(total["fail"], len(mine))
            found.append({"model": model, "more": more, **total, "fail_interval": interval, "seconds": seconds})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("prepare", "truth", "record", "replay", "live"))
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--idle-only", action="store_true", help="record: without the load on the other CPU")
    parser.add_argument("--checks", type=int, default=60, help="live: of each network")
    parser.add_argument("--cpu", type=int, default=1, help="the CPU to measure on")
    asked = parser.parse_args()
    steps: dict[str, Callable[..., None]] = {
        "prepare": prepare,
        "truth": partial(truth, cpu=asked.cpu),
        "record": partial(record, minutes=asked.minutes, cpu=asked.cpu, idle_only=asked.idle_only),
        "replay": replay,
        "live": partial(live, checks=asked.checks, cpu=asked.cpu),
    }
    steps[asked.step](*asked.paths)


if __name__ == "__main__":
    main()
