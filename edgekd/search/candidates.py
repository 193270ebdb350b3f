"""Measure before training: export, quantise and time untrained candidates on the target."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.bench.measure import Subject, measure_speed
from edgekd.bench.records import Effort
from edgekd.candidate import Candidate, Shape, shape_name
from edgekd.card import Card
from edgekd.console import progress, say
from edgekd.data.examples import Examples
from edgekd.devices.device import Site
from edgekd.distill.student import check_student
from edgekd.errors import ConfigError, EdgekdError, InputError, ModelError
from edgekd.export.onnx import export
from edgekd.export.trial import check_answers
from edgekd.export.variants import make_variant
from edgekd.figures import Figure, ModelFigures
from edgekd.files import read_json, write_json
from edgekd.nets.deployed import Deployed, count_macs, count_params
from edgekd.nets.families import make, make_shapes
from edgekd.nets.folding import folded
from edgekd.run import Run
from edgekd.search.estimate import with_estimates
from edgekd.target import Target

__all__ = ["measure_candidates"]

# History of the format of candidates.json:
# 1 - shape, params, macs, and per precision size_bytes, latency_p50_ms, peak_memory_mb
# 2 - left_out: shape and reason of each candidate that cannot be used
SCHEMA_VERSION = 2

EFFORT = Effort(processes=3, min_processes=2, warmup_s=0.1, max_calls=500, max_s=0.2, budget_s=4.0, placement=False)
"""A ranking needs less certainty than a verdict."""


def measure_candidates(
    card: Card, site: Site, examples: Examples, inputs: Path, calibration: NDArray[np.uint8] | None, run: Run
) -> list[Candidate]:
    """Measure every shape of the card's student family untrained, and write each one to `run.candidates` at once.

    Each shape is first tried on two training `examples`. A shape that cannot be built, trained or exported is left out;
    the reason is printed and written. `inputs` holds real images or sentences (.npy) for the timing, `calibration` (n,
    H, W, C) a few images for int8. Candidates that are already in `run.candidates` are not measured again; those that
    were left out are tried again until a training has begun. Raises ConfigError if no candidate is left.
    """
    shapes = make_shapes(card, card.student)
    done, left_out = _read(run.candidates)
    if not run.student_weights.parent.exists():
        left_out = []
    with progress() as bar:
        for shape in bar.track(shapes, description="measuring candidates"):
            if any(candidate.shape == shape for candidate in done) or any(one.shape == shape for one in left_out):
                continue
            try:
                subjects = _prepare(card, shape, site.target, examples, inputs, calibration, run.scratch)
            except (ConfigError, InputError, ModelError) as error:
                left_out.append(LeftOut(shape, _reason(error, card, shape)))
                if len(shapes) > 1:
                    say(f"search: {shape_name(shape)} is left out: {left_out[-1].reason}")
            else:
                done.append(_measure(shape, subjects, site, inputs))
            _write(run.candidates, site.target, done, left_out)
    shutil.rmtree(run.scratch, ignore_errors=True)
    if not done:
        raise ConfigError(_none_left(card, left_out))
    return done


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A shape that cannot be used, and the reason."""

    shape: Shape
    reason: str


def _reason(error: EdgekdError, card: Card, shape: Shape) -> str:
    """Remove from the error message what the line about the candidate already says."""
    text = str(error).removeprefix(f"{card.file}: ")
    for start in (f"student: {shape_name(shape)}: ", "student: ", "student.knobs: "):
        text = text.removeprefix(start)
    return text


def _none_left(card: Card, left_out: list[LeftOut]) -> str:
    first = left_out[0]
    many = f"none of the {len(left_out)} candidates can be used; " if len(left_out) > 1 else ""
    named = f"{shape_name(first.shape)}: " if first.shape else ""
    return f"{card.file}: student: {many}{named}{first.reason}"


def _prepare(
    card: Card,
    shape: Shape,
    target: Target,
    examples: Examples,
    inputs: Path,
    calibration: NDArray[np.uint8] | None,
    scratch: Path,
) -> list[Subject]:
    """Export an untrained student of that shape in each precision of the target, and try it on a few inputs."""
    check_student(card, shape, examples)
    torch.manual_seed(card.recipe.seed)
    net = folded(make(card, card.student, shape, "student.knobs").eval(), card.data)
    fp32 = scratch / "candidate-fp32.onnx"
    export(net, card, target, fp32, {"trained": "no"})
    check_answers(Deployed(net, card.data), card, np.load(inputs, mmap_mode="r")[:2], fp32)
    params, macs = count_params(net), count_macs(net, card.data)
    subjects = []
    for precision in target.precisions:
        file = scratch / f"candidate-{precision}.onnx"
        if precision != "fp32":
            make_variant(fp32, precision, target, calibration, file)
        subjects.append(Subject(name=precision, file=file, precision=precision, params=params, macs=macs))
    return subjects


def _measure(shape: Shape, subjects: list[Subject], site: Site, inputs: Path) -> Candidate:
    figures = with_estimates(measure_speed(subjects, site, inputs, None, EFFORT), subjects, site)
    params, macs = subjects[0].params, subjects[0].macs
    assert params is not None and macs is not None  # _prepare counts them
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


def _write(path: Path, target: Target, candidates: list[Candidate], left_out: list[LeftOut]) -> None:
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "target": target.name,
        "candidates": [dataclasses.asdict(candidate) for candidate in candidates],
        "left_out": [dataclasses.asdict(one) for one in left_out],
    }
    write_json(path, content)


def _read(path: Path) -> tuple[list[Candidate], list[LeftOut]]:
    if not path.exists():
        return [], []
    content = read_json(path)
    left_out = [LeftOut(entry["shape"], entry["reason"]) for entry in content.get("left_out", [])]
    candidates = [
        Candidate(
            shape=entry["shape"],
            params=entry["params"],
            macs=entry["macs"],
            precisions={
                precision: {key: Figure(**figure) for key, figure in figures.items()}
                for precision, figures in entry["precisions"].items()
            },
        )
        for entry in content["candidates"]
    ]
    return candidates, left_out
