"""Finished runs on the emulated cores: answers against this machine's, and instructions of a call.

    edgekd doctor --install qemu-aarch64
    edgekd distill digits --target cpu-arm --device local
    python tests/benchmarks/emulated.py OUT.json runs/digits@cpu-arm …

Every exported file of a run answers all test inputs on this machine and on both emulated cores. Accuracy, equal
classes, equal rows of logits (bit for bit) and the largest difference of a logit are compared. Instructions are counted
as docs/devices.md says; the kernels that compute in int8 are those of ONNX Runtime's profile on the core.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgekd import __version__
from edgekd.bench.instructions import instructions_of
from edgekd.bench.records import Effort
from edgekd.bench.runner import measure_instructions, measure_placement, predict
from edgekd.devices.device import Site
from edgekd.devices.emulated import CPUS, Emulated
from edgekd.devices.host import machine
from edgekd.devices.local import Local
from edgekd.files import file_sha256, write_json
from edgekd.target import load_target

TARGETS = {"cortex-a72": "cpu-arm", "cortex-a76": "cpu-arm-dotprod"}
"""The target that each core is."""


def on_core(core: str, model: Path, inputs: Path, labels: np.ndarray, here: np.ndarray, folder: Path) -> dict[str, Any]:
    """What one model does on one emulated core; `here` are the logits of this machine, (n, C)."""
    site = Site(load_target(TARGETS[core]), Emulated(f"qemu://{core}"))
    record = measure_instructions(model, site, inputs, Effort())
    counted = instructions_of(record)
    placement = measure_placement(model, site, inputs, Effort())
    predict(model, site, inputs, folder / "there.npy")
    there = np.load(folder / "there.npy")
    return {
        "accuracy": float((there.argmax(1) == labels).mean()),
        "same_class": float((there.argmax(1) == here.argmax(1)).mean()),
        "same_rows": float((there == here).all(axis=1).mean()),
        "largest_difference": float(np.abs(there.astype(np.float64) - here).max()),
        "instructions_m": counted.value,
        "instructions_m_range": [counted.low, counted.high],
        "calls": record.calls,
        "int8_kernels": placement.fused,
        "float_nodes_between": placement.unfused,
        "onnxruntime": record.fingerprint["onnxruntime"],
    }


def of_run(run: Path) -> list[dict[str, Any]]:
    """A row for each exported file of a run."""
    inputs, labels = run / "data" / "test.npy", np.load(run / "data" / "test.labels.npy")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model in sorted((run / "exported").glob("*.onnx")):
            here_file = Path(folder, "here.npy")
            predict(model, Site(load_target("cpu-x86"), Local()), inputs, here_file)
            here = np.load(here_file)
            cores = {core: on_core(core, model, inputs, labels, here, Path(folder)) for core in CPUS}
            accuracy = float((here.argmax(1) == labels).mean())
            about = {"run": run.name, "model": model.stem, "sha256": file_sha256(model), "examples": len(labels)}
            rows.append(about | {"accuracy_here": accuracy, "cores": cores})
            print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--note", default="")
    asked = parser.parse_args()
    found = [row for run in asked.runs for row in of_run(run)]
    write_json(asked.out, {"edgekd": __version__, "cpu": machine().model, "note": asked.note, "rows": found})
