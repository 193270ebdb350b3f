"""The fast export of an untrained shape beside the final file of the same shape: operators, size, and time by turns.

    python tests/benchmarks/fast_export.py OUT.json [--pairs 8] [--target cpu-x86]

Five shapes of five families for images of 32 × 32 pixels. The candidate is written as the search does it: random
weights, the fast exporter, int8 by a few images. The final file is written as after a training: other weights, other
statistics of batch normalisation, torch's exporter, int8 by 64 images. Operators are counted after ONNX Runtime's
optimisation on the CPU provider. Times are taken by turns in the same processes; `control` is a file by turns with
itself, which shows what the machine can tell apart.
"""

import argparse
import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from edgekd.bench.records import Effort
from edgekd.bench.runner import measure_pair
from edgekd.bench.statistics import Interval, between, ratios_of
from edgekd.card import Card, Student
from edgekd.devices.device import Site
from edgekd.devices.local import connect
from edgekd.export.onnx import export
from edgekd.export.precisions import make_variant
from edgekd.export.untrained import export_untrained, unequal, write_precisions
from edgekd.files import write_json
from edgekd.nets.deployed import count_params, noise_inputs
from edgekd.nets.families import make
from edgekd.nets.folding import folded
from edgekd.scratch import scratch
from edgekd.target import load_target
from edgekd.tasks.known import load_card

SHAPES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("cifar-resnet", {"depth": 20, "width": 16}),
    ("vgg", {"widths": [32, 32, 64]}),
    ("repvgg", {"widths": [32, 64], "layers": 2, "stem_stride": 2}),
    ("separable", {"width": 32}),
    ("inverted-residual", {"width": 16}),
)
EFFORT = Effort(processes=1, warmup_s=0.1, min_calls=30, max_calls=2_000, max_s=0.6)


def network(card: Card, family: str, shape: dict[str, Any], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make(card, Student(family=family), shape, "student.knobs").eval()


def as_trained(net: nn.Module) -> nn.Module:
    """Give the normalisations the statistics and factors of a network that was trained."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return net


def files(card: Card, site: Site, family: str, shape: dict[str, Any], folder: Path) -> dict[str, Path]:
    """The candidate and the final file, in fp32 and int8."""
    images = noise_inputs(card.data, 64).numpy()
    fast, final = folder / "fast.onnx", folder / "final.onnx"
    candidate = folded(unequal(network(card, family, shape, 0)), card.data)
    assert export_untrained(candidate, card, site.target, images, fast), "the fast exporter could not do it"
    made = {f"fast-{name}": file for name, file in write_precisions(fast, site.target, images).items()}
    trained = folded(as_trained(network(card, family, shape, 1)), card.data)
    export(trained, card, site.target, final, {})
    for precision in site.target.precisions:
        made[f"final-{precision}"] = final if precision == "fp32" else folder / f"final-{precision}.onnx"
        if precision != "fp32":
            make_variant(final, precision, site.target, images, made[f"final-{precision}"])
    return made


def operators(file: Path, folder: Path) -> dict[str, int]:
    """The number of nodes of each kind after the optimisation of the CPU provider."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return dict(sorted(Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node).items()))


def ratio(file: Path, other: Path, site: Site, inputs: Path, pairs: int) -> Interval:
    """The median time of `file` divided by that of `other`."""
    found = []
    for turn in range(pairs):
        record = measure_pair(file, other, site, inputs, EFFORT, turn)
        beside = record.baseline
        assert beside is not None
        loads = record.load_s, beside["load_s"]
        found.append(ratios_of(record.latency_s, beside["latency_s"], record.block_calls, *loads).p50)
    return between(found)


def compared(card: Card, site: Site, family: str, shape: dict[str, Any], pairs: int) -> dict[str, Any]:
    with scratch() as temporary:
        folder = Path(temporary)
        named, inputs = files(card, site, family, shape, folder), folder / "inputs.npy"
        np.save(inputs, noise_inputs(card.data, 32).numpy())
        entry: dict[str, Any] = {"family": family, "shape": shape}
        entry["params"] = count_params(network(card, family, shape, 0))
        for precision in site.target.precisions:
            fast, final = named[f"fast-{precision}"], named[f"final-{precision}"]
            counted = operators(fast, folder), operators(final, folder)
            entry[precision] = {
                "same_operators": counted[0] == counted[1],
                "operators_fast": counted[0],
                "operators_final": counted[1],
                "bytes_fast": fast.stat().st_size,
                "bytes_final": final.stat().st_size,
                "time_fast_over_final": dataclasses.asdict(ratio(fast, final, site, inputs, pairs)),
                "control": dataclasses.asdict(ratio(final, final, site, inputs, max(2, pairs // 2))),
            }
            print(family, precision, entry[precision], flush=True)
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--target", default="cpu-x86")
    asked = parser.parse_args()
    site, card = connect(load_target(asked.target)), load_card("cifar10")
    entries = [compared(card, site, family, shape, asked.pairs) for family, shape in SHAPES]
    here = site.device.facts()
    content = {"schema_version": 1, "target": asked.target, "cpu": here.model, "onnxruntime": onnxruntime.__version__}
    write_json(asked.out, content | {"torch": str(torch.__version__), "pairs": asked.pairs, "shapes": entries})


if __name__ == "__main__":
    main()
