"""What int8 files are made from and judged by, for the choices among them. This module needs no torch."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.bench.measure import Subject, logits_of
from edgekd.bench.records import Effort
from edgekd.bench.runner import measure_pair
from edgekd.bench.statistics import Interval, between, ratios_of
from edgekd.devices.device import Site
from edgekd.export.precisions import make_variant
from edgekd.export.quantize import Examples, prepare, quantize_prepared
from edgekd.target import Quantization
from edgekd.tasks.task import Targets, Task

__all__ = ["EFFORT", "Material", "figures_of", "prepared_file", "shown", "time_ratio", "write_int8"]

EFFORT = Effort(processes=3, warmup_s=0.1, min_calls=30, max_calls=1_500, max_s=0.4)
"""The effort for each trial: so many pairs of processes."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What the trials need: the network, the data, and where to measure."""

    fp32: Path
    calibration: Examples | NDArray[Any] | None
    """None if activations are scaled at run time (dynamic int8), which needs no examples."""
    inputs: Path
    """Validation inputs, which workers map into memory."""
    targets: Targets
    """What is right for each of these inputs; where that is not known, the answers of the fp32 file."""
    task: Task
    site: Site
    folder: Path
    """Where files and logits of the trials are written."""


def prepared_file(material: Material) -> Path:
    """The fp32 file as ONNX Runtime's tool wants it before a static quantization; it is made once, in the folder."""
    file = material.folder / "prepared.onnx"
    if not file.exists():
        prepare(material.fp32, file)
    return file


def write_int8(material: Material, scheme: Quantization, file: Path, in_float: Collection[str] = ()) -> None:
    """Quantise the network by `scheme`, with the nodes `in_float` of the prepared file left in float: static with the
    material's examples, dynamic without. Raises ModelError if ONNX Runtime cannot quantise it."""
    if material.calibration is None:
        assert not in_float  # layers are left in float only after a calibration
        target = dataclasses.replace(material.site.target, quantization=scheme)
        make_variant(material.fp32, "int8", target, None, file)
    else:
        quantize_prepared(prepared_file(material), file, scheme, material.calibration, material.fp32, in_float)


def figures_of(file: Path, material: Material, name: str = "") -> NDArray[np.float64]:
    """The task's figure (n,) of each validation input on the target's provider, in which higher is better.

    The answers are kept in the material's folder under `name`, by default the file's.
    """
    subject = Subject(name=name or file.stem, file=file, precision="int8")
    outputs = logits_of(subject, material.site, material.inputs, material.folder, material.task)
    figures = material.task.each(outputs, material.targets)
    return figures if material.task.scores[0].better == "higher" else -figures


def shown(score: float, task: Task) -> str:
    """A score in which higher is better as text, in the task's own direction."""
    kind = task.scores[0]
    return kind.show(score if kind.better == "higher" else -score)


def time_ratio(file: Path, baseline: Path, material: Material) -> Interval:
    """The time of `file` divided by that of `baseline`, measured by turns in a few processes."""
    ratios = []
    for turn in range(EFFORT.processes):
        record = measure_pair(file, baseline, material.site, material.inputs, EFFORT, turn)
        other = record.baseline
        assert other is not None  # a pair has two sides
        loads = record.load_s, other["load_s"]
        ratios.append(ratios_of(record.latency_s, other["latency_s"], record.block_calls, *loads).p50)
    return between(ratios)
