"""fp32, fp16 and int8 of a model on the CUDA provider, with coverage; to be run wherever an NVIDIA GPU is at hand.

    python tests/gpu/bench_cuda.py MODEL-fp32.onnx OUT.json [INPUTS.npy]

INPUTS (n, …) calibrate int8 and feed the calls; without them seeded random inputs do both. CPU fallback is allowed
here, so that its coverage can be seen: int8 has few CUDA kernels.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

from edgekd.bench.measure import Subject, measure_each
from edgekd.bench.records import Effort
from edgekd.bench.worker import Feeds
from edgekd.devices.local import connect
from edgekd.errors import EdgekdError
from edgekd.export.precisions import make_variant
from edgekd.files import write_json
from edgekd.result import model_json
from edgekd.tables import comparison_rows, markdown_table
from edgekd.target import Precision, load_target

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


def bench(model: Path, out: Path, inputs: Path | None) -> None:
    site = connect(load_target("cuda"))
    base = site.target
    target = dataclasses.replace(base, provider=dataclasses.replace(base.provider, allow_cpu_fallback=True))
    with tempfile.TemporaryDirectory() as folder:
        images = np.load(inputs)[:256] if inputs else _random_inputs(model)
        subjects = []
        for precision in PRECISIONS:
            file = Path(folder, f"{model.stem}-{precision}.onnx")
            make_variant(model, precision, target, images, file)
            subjects.append(Subject(name=precision, file=file, precision=precision))
        taken = measure_each(subjects, dataclasses.replace(site, target=target), inputs, None, Effort(costliest=10))
    figures = [entry for entry in taken if not isinstance(entry, EdgekdError)]
    for entry in taken:
        if isinstance(entry, EdgekdError):
            print(entry)
    write_json(out, {"schema_version": 1, "target": target.name, "models": [model_json(m) for m in figures]})
    print(markdown_table(*comparison_rows([(target.name, m) for m in figures])))


def _random_inputs(model: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    feeds = Feeds(session, {"batch_size": 1, "inputs": None, "mode": "latency"})
    return np.concatenate([next(iter(feed.values())) for feed in feeds.ready])


if __name__ == "__main__":
    files = [Path(argument) for argument in sys.argv[1:]]
    bench(files[0], files[1], files[2] if len(files) > 2 else None)
