"""What a training step costs: forward and backward pass and optimiser of a CIFAR ResNet-20 on noise, one thread.

    python tests/benchmarks/step.py OUT.json [--rounds 9] [--compile]

The ways take turns; the seconds are of this process's CPU time, so that other programs disturb them less. A ratio above
1 means more images per second than bf16 with batches of 128 at 32 pixels (fp32 where the CPU has no bf16), formed
within a round; shown are the median and the extremes of the rounds.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from edgekd.devices.local import Local
from edgekd.distill.optimise import autocast, make_optimizer
from edgekd.files import write_json
from edgekd.nets.cifar_resnet import CifarResNet, CifarResNetShape
from edgekd.recipe import Training

FIRST = "batch 128"
WAYS: dict[str, dict[str, Any]] = {
    FIRST: {},
    "batch 64": {"batch": 64},
    "batch 32": {"batch": 32},
    "batch 16": {"batch": 16},
    "24 pixels": {"size": 24},
    "ReLU in place": {"in_place": True},
    "fp32": {"precision": "fp32"},
    "fp32, 24 pixels": {"precision": "fp32", "size": 24},
}


def step_of(
    batch: int = 128, size: int = 32, precision: str = "auto", in_place: bool = False, compiled: bool = False
) -> Callable[[], float]:
    """A function that makes one step and returns its images per second of CPU time."""
    torch.manual_seed(0)
    net: nn.Module = CifarResNet(CifarResNetShape(depth=20), 3, 10).to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(net, Training(epochs=1))
    run = torch.compile(net) if compiled else net
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    wanted = torch.randn(batch, 10).softmax(1)

    def step() -> float:
        begin, plain = time.process_time(), F.relu
        F.relu = torch.relu_ if in_place else plain  # type: ignore[assignment]
        try:
            optimizer.zero_grad()
            with autocast(precision):
                logits = run(images)
            F.cross_entropy(logits.float(), wanted).backward()
            optimizer.step()
        finally:
            F.relu = plain
        return batch / (time.process_time() - begin)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which takes minutes first")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    ways = WAYS | ({"torch.compile": {"compiled": True}} if asked.compile else {})
    steps = {name: step_of(**way) for name, way in ways.items()}
    for step in steps.values():
        step()
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(asked.rounds):
        for name, step in steps.items():
            rates[name].append(step())
    shown: dict[str, Any] = {}
    for name, found in rates.items():
        ratios = [one / first for one, first in zip(found, rates[FIRST], strict=True)]
        shown[name] = {
            "images_per_s": round(median(found), 1),
            "ratio": round(median(ratios), 3),
            "from": round(min(ratios), 3),
            "to": round(max(ratios), 3),
        }
        print(name, shown[name], flush=True)
    about = {"cpu": Local().facts().model, "torch": torch.__version__, "rounds": asked.rounds, "threads": 1}
    write_json(asked.out, {"schema_version": 1, **about, "ways": shown})


if __name__ == "__main__":
    main()
