"""The p50 of `edgekd bench` against a bare loop around `session.run`, for ONNX files that Python wheels ship.

    pip download --no-deps -d WHEELS $(python tests/benchmarks/wheels.py --requirements)
    python tests/benchmarks/wheels.py OUT.json WHEELS [--rounds 4]

Both get the same arrays, of the shapes for which each model is documented, with batch 1 and one thread. In each round a
bare loop runs in a process of its own before `edgekd bench --quick`, and another one after it; their mean is compared
with what the command says. The table has the median of the rounds. On a machine that is busy with other work, put
`chrt -r 1 taskset -c 1` before the second command, as root, and say so with `--note`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime

from edgekd import __version__
from edgekd.devices.host import machine
from edgekd.files import file_sha256, write_json

VERSIONS = {
    "rapidocr-onnxruntime": "1.4.4",
    "silero-vad": "6.2.3",
    "faster-whisper": "1.2.1",
    "magika": "1.0.3",
    "nudenet": "3.4.2",
    "ddddocr": "1.6.1",
    "basic-pitch": "0.4.0",
    "speechmos": "0.0.1.1",
}
OCR, VAD = "rapidocr_onnxruntime/models", "silero_vad/data"
MODELS: list[tuple[str, str, dict[str, tuple[int, ...]], dict[str, Any]]] = [
    # The wheel, the file in it, the shapes of random inputs by name, and constants by name.
    ("rapidocr-onnxruntime", f"{OCR}/ch_PP-OCRv4_rec_infer.onnx", {"x": (1, 3, 48, 320)}, {}),
    ("rapidocr-onnxruntime", f"{OCR}/ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x": (1, 3, 48, 192)}, {}),
    ("silero-vad", f"{VAD}/silero_vad.onnx", {"input": (1, 576), "state": (2, 1, 128)}, {"sr": 16000}),
    ("silero-vad", f"{VAD}/silero_vad_op18_ifless.onnx", {"input": (1, 576), "state": (2, 1, 128)}, {"sr": 16000}),
    ("faster-whisper", "faster_whisper/assets/silero_vad_v6.onnx",
     {"input": (64, 576), "h": (1, 1, 128), "c": (1, 1, 128)}, {}),
    ("magika", "magika/models/standard_v3_3/model.onnx", {"bytes": (1, 2048)}, {}),
    ("nudenet", "nudenet/320n.onnx", {"images": (1, 3, 320, 320)}, {}),
    ("ddddocr", "ddddocr/common_old.onnx", {"input1": (1, 1, 64, 160)}, {}),
    ("basic-pitch", "basic_pitch/saved_models/icassp_2022/nmp.onnx", {"serving_default_input_2:0": (1, 43844, 1)}, {}),
    ("speechmos", "speechmos/dnsmos_models/model_v8.onnx", {"input_1": (1, 900, 120)}, {}),
    ("rapidocr-onnxruntime", f"{OCR}/ch_PP-OCRv4_det_infer.onnx", {"x": (1, 3, 736, 736)}, {}),
    ("ddddocr", "ddddocr/common_det.onnx", {"images": (1, 3, 416, 416)}, {}),
]  # fmt: skip

BARE = """
import sys, time
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.log_severity_level = 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feed = dict(np.load(sys.argv[2]))
spent, begin = [], time.perf_counter()
while time.perf_counter() < begin + 1.5 or len(spent) < 12:
    start = time.perf_counter()
    session.run(None, feed)
    spent.append(time.perf_counter() - start)
print(1e3 * float(np.median(spent[len(spent) // 4 :])))
"""


def bare_ms(model: Path, feed: Path) -> float:
    """The median of the calls of a bare loop, without the first quarter of them."""
    command = [sys.executable, "-P", "-c", BARE, str(model), str(feed)]
    # Linux shares the CPU between sessions, and edgekd's workers, too, have one of their own.
    done = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=True)
    return float(done.stdout)


def bench_ms(model: Path, feed: Path, fixed: list[str], folder: Path) -> float:
    """The p50 that `edgekd bench` writes for the model."""
    out = folder / "bench.json"
    command = [sys.executable, "-m", "edgekd", "bench", str(model), "--target", "cpu-x86", "--quick"]
    subprocess.run([*command, "--data", str(feed), *fixed, "--json", str(out)], capture_output=True, check=True)
    (figures,) = json.loads(out.read_text())["models"]
    return float(figures["latency_p50_ms"])


def feed_of(path: Path, model: Path, shapes: dict[str, tuple[int, ...]], values: dict[str, Any]) -> None:
    """Write one array for each input."""
    rng = np.random.Generator(np.random.PCG64(0))
    kinds = {spec.name: spec.type for spec in onnxruntime.InferenceSession(model).get_inputs()}
    drawn: dict[str, Any] = {}
    for name, shape in shapes.items():
        whole = rng.integers(0, 256, shape).astype(np.int32)
        drawn[name] = whole if kinds[name] == "tensor(int32)" else rng.standard_normal(shape).astype(np.float32) / 10
    np.savez(path, **drawn, **{name: np.array(value) for name, value in values.items()})  # type: ignore[arg-type]


def compare(model: Path, shapes: dict[str, tuple[int, ...]], values: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Measure one model in `rounds` rounds."""
    fixed = ["--batch-axis", "none"] if next(iter(shapes.values()))[0] > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        feed = Path(folder, "feed.npz")
        feed_of(feed, model, shapes, values)
        rows = []
        for _ in range(rounds):
            before, ours = bare_ms(model, feed), bench_ms(model, feed, fixed, Path(folder))
            rows.append({"bare_ms": (before + bare_ms(model, feed)) / 2, "bench_ms": ours})
    ratios = [row["bench_ms"] / row["bare_ms"] for row in rows]
    found = {key: median(row[key] for row in rows) for key in ("bare_ms", "bench_ms")}
    return found | {"ratio": median(ratios), "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("wheels", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--note", default="", help="what a reader must know about the machine")
    parser.add_argument("--requirements", action="store_true")
    asked = parser.parse_args()
    if asked.requirements:
        print(*(f"{name}=={version}" for name, version in VERSIONS.items()))
        return
    known = {"edgekd": __version__, "onnxruntime": onnxruntime.__version__, "cpu": machine().model, "note": asked.note}
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for wheel, inside, shapes, values in MODELS:
            (archive,) = asked.wheels.glob(f"{wheel.replace('-', '_')}-{VERSIONS[wheel]}-*.whl")
            with zipfile.ZipFile(archive) as packed:
                model = Path(packed.extract(inside, folder))
            about = {"wheel": f"{wheel} {VERSIONS[wheel]}", "file": inside, "sha256": file_sha256(model)}
            found = compare(model, shapes, values, asked.rounds)
            results.append(about | {"shapes": shapes, "values": values} | found)
            write_json(asked.out, {"how": __doc__, **known, "rounds": asked.rounds, "models": results})
            print(f"{found['bare_ms']:9.3f} {found['bench_ms']:9.3f} {found['ratio']:.3f} {inside}", flush=True)


if __name__ == "__main__":
    main()
