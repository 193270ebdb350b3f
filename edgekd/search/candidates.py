"""Measure first, train later: untrained candidates exported, quantised and timed on the target."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.bench.measure import Subject, measure_speed
from edgekd.bench.records import Effort
from edgekd.candidate import Candidate, Shape
from edgekd.card import Card
from edgekd.console import progress
from edgekd.devices.device import Site
from edgekd.export.onnx import export
from edgekd.export.variants import make_variant
from edgekd.figures import Figure, ModelFigures
from edgekd.files import read_json, write_json
from edgekd.nets.deployed import count_macs, count_params
from edgekd.nets.families import make, make_shapes
from edgekd.run import Run
from edgekd.search.estimate import with_estimates
from edgekd.target import Target

__all__ = ["measure_candidates"]

# candidates.json history:
# 1 - shape, params, macs, and per precision size_bytes, latency_p50_ms, peak_memory_mb
SCHEMA_VERSION = 1

EFFORT = Effort(processes=3, min_processes=2, warmup_s=0.1, max_calls=500, max_s=0.2, budget_s=4.0, placement=False)
"""A ranking needs less certainty than a verdict."""


def measure_candidates(
    card: Card, site: Site, inputs: Path, calibration: NDArray[np.uint8] | None, run: Run
) -> list[Candidate]:
    """Every shape of the card's student family, measured untrained; written to `run.candidates` one by one.

    `inputs` holds real images or sentences (.npy) for the timing, `calibration` (n, H, W, C) a few images for int8.
    Candidates found in `run.candidates` are kept, not measured again.
    """
    shapes = make_shapes(card, card.student)
    done = _read(run.candidates)
    with progress() as bar:
        for shape in bar.track(shapes, description="measuring candidates"):
            if any(candidate.shape == shape for candidate in done):
                continue
            done.append(_measure(card, shape, site, inputs, calibration, run.scratch))
            _write(run.candidates, site.target, done)
    shutil.rmtree(run.scratch, ignore_errors=True)
    return done


def _measure(
    card: Card, shape: Shape, site: Site, inputs: Path, calibration: NDArray[np.uint8] | None, scratch: Path
) -> Candidate:
    torch.manual_seed(card.recipe.seed)
    net = make(card, card.student, shape, "student.knobs").eval()
    fp32 = scratch / "candidate-fp32.onnx"
    export(net, card, site.target, fp32, {"trained": "no"})
    params, macs = count_params(net), count_macs(net, card.data)
    subjects = []
    for precision in site.target.precisions:
        file = scratch / f"candidate-{precision}.onnx"
        if precision != "fp32":
            make_variant(fp32, precision, site.target, calibration, file)
        subjects.append(Subject(name=precision, file=file, precision=precision, params=params, macs=macs))
    figures = with_estimates(measure_speed(subjects, site, inputs, None, EFFORT), subjects, site)
    return Candidate(
        shape=shape,
        params=params,
        macs=macs,
        precisions={model.precision: _budgeted(model) for model in figures},
    )


def _budgeted(model: ModelFigures) -> dict[str, Figure]:
    return {
        "latency_p50_ms": model.latency_p50_ms,
        "size_kb": model.size_kb,
        "peak_memory_mb": model.peak_memory_mb,
    }


def _write(path: Path, target: Target, candidates: list[Candidate]) -> None:
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "target": target.name,
        "candidates": [dataclasses.asdict(candidate) for candidate in candidates],
    }
    write_json(path, content)


def _read(path: Path) -> list[Candidate]:
    if not path.exists():
        return []
    return [
        Candidate(
            shape=entry["shape"],
            params=entry["params"],
            macs=entry["macs"],
            precisions={
                precision: {key: Figure(**figure) for key, figure in figures.items()}
                for precision, figures in entry["precisions"].items()
            },
        )
        for entry in read_json(path)["candidates"]
    ]
