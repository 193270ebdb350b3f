"""The worker's median against that of a bare loop around `session.run`, in alternating pairs of processes.

    python tests/benchmarks/harness.py OUT.json MODEL... [--pairs 10] [--binding run|io]

The bare loop runs in a process of its own, with the same session options, inputs and binding, and nothing else.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

from edgekd.bench.records import Effort
from edgekd.bench.runner import make_plan
from edgekd.bench.statistics import between
from edgekd.devices.local import connect, run_worker, runtime_of
from edgekd.files import write_json
from edgekd.target import load_target

BARE = """
import sys, time, json
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.log_severity_level = 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
spec, rng = session.get_inputs()[0], np.random.Generator(np.random.PCG64(0))
shape = [d if isinstance(d, int) else 1 for d in spec.shape]
draw = (lambda: rng.integers(0, 256, shape).astype(np.uint8)) if "uint8" in spec.type else (
    lambda: rng.standard_normal(shape).astype(np.float32))
feeds = [{spec.name: draw()} for _ in range(8)]
bound = []
for feed in feeds:
    binding = session.io_binding()
    binding.bind_ortvalue_input(spec.name, onnxruntime.OrtValue.ortvalue_from_numpy(feed[spec.name]))
    binding.bind_output(session.get_outputs()[0].name)
    bound.append(binding)
spent, end = [], time.perf_counter() + float(sys.argv[2])
number = 0
while time.perf_counter() < end:
    begin = time.perf_counter()
    if sys.argv[3] == "io":
        session.run_with_iobinding(bound[number % 8])
    else:
        session.run(None, feeds[number % 8])
    spent.append(time.perf_counter() - begin)
    number += 1
print(json.dumps(spent[len(spent) // 5 :]))
"""


def bare(model: Path, binding: str, seconds: float) -> float:
    command = [sys.executable, "-P", "-c", BARE, str(model), str(seconds), binding]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    spent: list[float] = json.loads(done.stdout)
    return median(spent)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--binding", default="run")
    asked = parser.parse_args()
    target = load_target("cpu-x86")
    target = dataclasses.replace(target, session=dataclasses.replace(target.session, binding=asked.binding))
    effort = Effort()
    plan = make_plan(connect(target), effort, mode="latency", warmup_s=0.3, min_calls=12, max_calls=5_000, max_s=0.8)
    results = []
    for model in asked.models:
        ratios, ours, theirs = [], [], []
        for pair in range(asked.pairs):
            both = {}
            for kind in ("worker", "bare") if pair % 2 == 0 else ("bare", "worker"):
                if kind == "worker":
                    both[kind] = median(run_worker(plan, model, runtime_of(target)).latency_s)
                else:
                    both[kind] = bare(model, asked.binding, 1.1)
            ours.append(both["worker"])
            theirs.append(both["bare"])
            ratios.append(both["worker"] / both["bare"])
        over = between(ratios)
        results.append(
            {
                "model": model.name,
                "pairs": asked.pairs,
                "worker_p50_ms": 1e3 * median(ours),
                "bare_p50_ms": 1e3 * median(theirs),
                "median_ratio": median(ratios),
                "mean_ratio_95": [over.value, over.low, over.high],
                "ratios": ratios,
            }
        )
        print(model.name, f"worker {1e3 * median(ours):.4f} ms, bare {1e3 * median(theirs):.4f} ms,", results[-1])
    how = "fresh processes in alternating pairs, one thread, CPU provider, seeded random inputs"
    write_json(asked.out, {"binding": asked.binding, "how": how, "models": results})


if __name__ == "__main__":
    main()
