"""Limits for a first card, from a short bench of the teacher and of the smallest student."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekd import units
from edgekd.bench.measure import Subject, measure_speed
from edgekd.bench.records import Effort
from edgekd.card import Card
from edgekd.devices.device import Site
from edgekd.draft.facts import DataFacts
from edgekd.export.onnx import export
from edgekd.export.precisions import make_variant
from edgekd.export.teacher import export_teacher
from edgekd.figures import ModelFigures
from edgekd.nets.deployed import Deployed, count_params
from edgekd.nets.families import UnbuildableError, make, make_shapes
from edgekd.nets.folding import folded
from edgekd.nets.published import weights_file
from edgekd.nets.teachers import LoadedTeacher, load_teacher_file, make_teacher_net
from edgekd.tasks.known import task_of

__all__ = ["Limits", "limits_from", "teacher_of"]

EFFORT = Effort(processes=4, min_processes=2, warmup_s=0.2, max_s=0.5, budget_s=7.0, placement=False)
"""About 20 seconds for teacher and student together."""
ROOM = 1.2
"""The factor between a limit and the smallest student's figure, if half or a quarter of the teacher's figure is too
little for that student."""
ROOM_FOR_TIME = 1.5
"""The same for a time, which a short bench on a busy machine tells within a third or so."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The proposed budget."""

    always: dict[str, Any]
    """What is asked on every target."""
    here: dict[str, Any]
    """What is asked on the target of the bench."""
    guesses: tuple[str, ...]


def teacher_of(card: Card) -> LoadedTeacher:
    """The card's teacher with its weights, or untrained if it has none: its size and latency are the same."""
    path = weights_file(card, card.teacher, card.teacher.shape)
    if path is not None and card.teacher.training is None:
        return load_teacher_file(card, path)
    torch.manual_seed(0)
    return LoadedTeacher(Deployed(make_teacher_net(card), card.data).eval(), Path("untrained"))


def limits_from(
    card: Card, site: Site, timed: bool, inputs: np.ndarray[Any, Any], data: DataFacts, folder: Path
) -> Limits:
    """Export the teacher and the smallest student, measure them on the target, and derive limits from that.

    `inputs` are real examples as the exported files take them; `folder` is for temporary files. Unless `timed`, because
    the target cannot be measured here, there is no limit for the latency.
    """
    teacher, student, networks = _export(card, site, inputs, folder)
    figures: Sequence[ModelFigures] = []
    if timed:
        np.save(folder / "inputs.npy", inputs)
        every = [Subject(name=file.stem, file=file, precision="fp32") for file in (teacher, *student)]
        figures = measure_speed(every, site, folder / "inputs.npy", None, EFFORT)
    size, why = _size(teacher, student)
    kind = task_of(card.data).scores[0]
    least = 2.0 if kind.share else 3.0
    drop = max(least, math.ceil(1000 / max(1, data.tests)) / 10) if kind.counted else least
    always = {"size_kb": size, kind.change_key: drop}
    guesses = [f"budget: {why}"]
    points = f"budget: at most {drop:g} {'points' if kind.share else kind.words} below the teacher"
    guesses.append(points if drop == least else f"{points}, for one of {data.tests} test examples is worth as much")
    here, why = _latency(figures, site, timed)
    return Limits(always=always, here=here, guesses=(*guesses, f"budget: {why}", networks))


def _export(card: Card, site: Site, inputs: np.ndarray[Any, Any], folder: Path) -> tuple[Path, list[Path], str]:
    """Write the teacher and the smallest student, in every precision of the target."""
    loaded = teacher_of(card)
    teacher = folder / "teacher.onnx"
    export_teacher(loaded, card, site.target, teacher)
    networks = []
    for shape in make_shapes(card, card.student):
        with contextlib.suppress(UnbuildableError):
            networks.append(make(card, card.student, shape, "student.knobs"))
    smallest = min(networks, key=count_params)
    fp32 = folder / "student-fp32.onnx"
    export(folded(smallest.eval(), card.data), card, site.target, fp32, {"trained": "no"})
    files = [fp32]
    for precision in site.target.precisions:
        if precision != "fp32":
            files.append(folder / f"student-{precision}.onnx")
            images = inputs if task_of(card.data).calibration == "static" else None
            make_variant(fp32, precision, site.target, images, files[-1])
    parameters = [units.count(count_params(net)) for net in sorted(networks, key=count_params)]
    own = f"the teacher has {units.count(count_params(loaded.net))} parameters, " if loaded.net else ""
    spread = f"{parameters[0]} to {parameters[-1]}" if len(parameters) > 1 else parameters[0]
    return teacher, files, f"student: {own}the {len(parameters)} candidates have {spread}"


def _size(teacher: Path, student: Sequence[Path]) -> tuple[float, str]:
    """The limit for the file's size in kB, and why."""
    whole, least = teacher.stat().st_size / 1000, min(file.stat().st_size for file in student) / 1000
    text = f"the teacher's file has {units.bytes_(whole * 1000)}"
    if whole / 4 >= ROOM * least:
        return _rounded(whole / 4), f"a quarter of the teacher's size; {text}"
    limit = _rounded(ROOM * least)
    return limit, f"{limit:g} kB, because the smallest student has {units.bytes_(least * 1000)}; {text}"


def _latency(figures: Sequence[ModelFigures], site: Site, timed: bool) -> tuple[dict[str, Any], str]:
    """The limit for the median latency in ms, and why."""
    known = [model.latency_p50_ms.value for model in figures]
    if not known or known[0] is None or all(one is None for one in known[1:]):
        reason = "the bench gave no figure" if timed else f"{site.target.name} cannot be measured on this machine"
        return {}, f"no limit for the latency, because {reason}; add latency_p50_ms when you know one"
    teacher, least = known[0], min(one for one in known[1:] if one is not None)
    text = f"the teacher takes {units.milliseconds(teacher)} on {site.target.name}, the smallest student "
    text += units.milliseconds(least)
    if teacher / 2 >= ROOM_FOR_TIME * least:
        return {"latency_p50_ms": _rounded(teacher / 2)}, f"half of the teacher's latency; {text}"
    limit = _rounded(ROOM_FOR_TIME * least)
    return {"latency_p50_ms": limit}, f"{limit:g} ms, because half of the teacher's is out of reach; {text}"


def _rounded(value: float) -> float:
    """The value rounded up to two significant digits."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    found = round(math.ceil(value / step - 1e-9) * step, 9)
    return int(found) if found >= 10 else found
