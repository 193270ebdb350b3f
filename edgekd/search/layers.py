"""Find the layers that int8 damages most, and return the fewest of them to float. This module needs no torch."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekd.bench.measure import Subject, logits_of
from edgekd.bench.statistics import Interval
from edgekd.console import progress
from edgekd.export.shrink import layer_names
from edgekd.search.material import Material, figures_of, prepared_file, shown, time_ratio, write_int8
from edgekd.target import Quantization

__all__ = ["Fallback", "LayerDamage", "fall_back", "sensitivity"]


@dataclass(frozen=True, kw_only=True)
class LayerDamage:
    """What int8 costs if only this layer, with the operators that follow it, is quantised."""

    name: str
    """The name of the layer's weights."""
    nodes: tuple[str, ...]
    """The names of the nodes of the prepared fp32 file."""
    sqnr_db: float
    """Power of the fp32 outputs divided by the power of the error, in dB: higher is better."""
    score: float
    """The accuracy, or another deciding score in which higher is better."""
    drop: float
    """The score of the fp32 file minus this score."""


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """The layers that were returned to float, and the result of it."""

    damage: tuple[LayerDamage, ...]
    """All layers, the most damaged first."""
    returned: tuple[str, ...]
    nodes: tuple[str, ...]
    """The names of these layers' nodes in the prepared fp32 file."""
    scheme: Quantization
    """How the other layers are quantised."""
    file: Path
    score: float
    ratio: Interval
    """Its time divided by that of the fp32 file."""
    enough: bool
    """Whether the accuracy that was asked is reached, and time is saved against fp32."""
    why: str

    def as_json(self) -> dict[str, Any]:
        """The fallback in the form in which a run keeps it."""
        layers = [
            {"name": layer.name, "sqnr_db": layer.sqnr_db, "score": layer.score, "drop": layer.drop}
            for layer in self.damage
        ]
        return {
            "returned_to_float": list(self.returned),
            "validation_score": self.score,
            "time_ratio_to_fp32": list(dataclasses.astuple(self.ratio)),
            "used": self.enough,
            "why": self.why,
            "layers": layers,
        }


def sensitivity(material: Material, scheme: Quantization, limit_s: float = 300.0) -> list[LayerDamage]:
    """Quantise each layer alone, and return the layers in the order of their damage, the worst first.

    They are ordered by the error of the outputs, because the accuracy on a few thousand inputs is too coarse for one
    layer.
    Operators that follow a layer and have no weights belong to it. If the time runs out, the layers that were not
    reached are missing; the time is checked after each layer.
    """
    graph = onnx.load(prepared_file(material)).graph
    groups = _groups(graph)
    every = {name for nodes in groups.values() for name in nodes}
    before = {node.name for node in graph.node} - every
    expected = _outputs(material.fp32, material)
    top = _score(material.fp32, material)
    found, end = [], time.monotonic() + limit_s
    with progress() as bar:
        for name, nodes in bar.track(groups.items(), total=len(groups), description="int8 in one layer at a time"):
            if time.monotonic() > end:
                break
            file = material.folder / "one-layer.onnx"
            write_int8(material, scheme, file, sorted(before | every - set(nodes)))
            score = _score(file, material)
            damage = {"sqnr_db": sqnr_db(expected, _outputs(file, material)), "score": score, "drop": top - score}
            found.append(LayerDamage(name=name, nodes=tuple(nodes), **damage))
    return sorted(found, key=lambda layer: layer.sqnr_db)


def _groups(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """The node names of each layer and of the operators after it, by the layer's name; in the order of the graph."""
    layers = layer_names(graph)
    groups: dict[str, list[str]] = {}
    current = ""
    for number, node in enumerate(graph.node):
        current = layers.get(number, current)
        if current:
            groups.setdefault(current, []).append(node.name)
    return groups


def sqnr_db(expected: NDArray[Any], outputs: NDArray[Any]) -> float:
    """10·log10 of the power of `expected` divided by the power of the difference; at most 200 dB."""
    power = float(np.square(expected.astype(np.float64)).sum())
    noise = float(np.square(expected.astype(np.float64) - outputs).sum())
    return float(10 * np.log10(max(power, 1e-30) / max(noise, 1e-20 * power, 1e-30)))


def fall_back(material: Material, scheme: Quantization, floor: float, limit_s: float = 300.0) -> Fallback:
    """Return the most damaged layers to float, one after another, until the validation score is at least `floor`.

    Then each of them is quantised again if the score stays, so that the fewest are in float. Half of the time is for
    ranking the layers. The result is to be used only if it is surely faster than fp32, see `Fallback.enough`.
    """
    scheme = dataclasses.replace(scheme, form="qdq")  # int8 operators and float ones are mixed in this form
    end = time.monotonic() + limit_s
    damage = sensitivity(material, scheme, limit_s / 2)
    chosen: list[LayerDamage] = []
    score = 0.0
    with progress() as bar:
        for layer in bar.track(damage, description="returning layers to float"):
            chosen.append(layer)
            score = _mixed(material, scheme, chosen)
            if score >= floor or time.monotonic() > end:
                break
    if score >= floor:
        chosen, score = _fewest(material, scheme, chosen, floor, end)
    file = material.folder / "mixed.onnx"
    score = _mixed(material, scheme, chosen)  # the file of exactly these layers
    ratio = time_ratio(file, material.fp32, material)
    enough = score >= floor and ratio.high < 1
    names = tuple(layer.name for layer in chosen)
    found = f"{len(names)} of {len(damage)} layers in float ({', '.join(names)}) give {shown(score, material.task)}"
    asked = f"{shown(floor, material.task)} asked, {ratio.value:.2f} of fp32's time"
    why = f"{found}, {asked}" if enough else f"{found}, {asked}: not used"
    return Fallback(
        damage=tuple(damage),
        returned=names,
        nodes=tuple(sorted(name for layer in chosen for name in layer.nodes)),
        scheme=scheme,
        file=file,
        score=score,
        ratio=ratio,
        enough=enough,
        why=why,
    )


def _fewest(
    material: Material, scheme: Quantization, chosen: list[LayerDamage], floor: float, end: float
) -> tuple[list[LayerDamage], float]:
    """Quantise layers again that need not be in float, the least damaged first."""
    score = _mixed(material, scheme, chosen)
    for layer in reversed(chosen[:-1]):
        fewer = [other for other in chosen if other is not layer]
        if time.monotonic() > end:
            break
        found = _mixed(material, scheme, fewer)
        if found >= floor:
            chosen, score = fewer, found
    return chosen, score


def _mixed(material: Material, scheme: Quantization, layers: Sequence[LayerDamage]) -> float:
    """Write `mixed.onnx` with these layers in float, and return its score."""
    names = sorted(name for layer in layers for name in layer.nodes)
    file = material.folder / "mixed.onnx"
    write_int8(material, scheme, file, names)
    return _score(file, material)


def _outputs(file: Path, material: Material) -> NDArray[Any]:
    subject = Subject(name=file.stem, file=file, precision="int8")
    return logits_of(subject, material.site, material.inputs, material.folder, material.task)


def _score(file: Path, material: Material) -> float:
    return float(figures_of(file, material).mean())
