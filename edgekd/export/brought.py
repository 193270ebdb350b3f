"""Write a given torch network as an ONNX file for a target, and compare the file with the network."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd import __version__
from edgekd.card import Card
from edgekd.errors import EdgekdError, InputError, ModelError, one_line
from edgekd.export.onnx import (
    Parity,
    compared,
    completed,
    converted,
    cpu_logits,
    describe,
    exported_part,
    save_model,
    taking_any_size,
)
from edgekd.files import atomic
from edgekd.nets.deployed import Deployed, Preprocess, example_inputs
from edgekd.nets.folding import folded, folded_on
from edgekd.target import Target
from edgekd.tasks.image_classification import IMAGE_CLASSIFICATION
from edgekd.tasks.known import task_of
from edgekd.tasks.task import Normalization, Task

__all__ = ["Brought", "Examples", "bring", "bring_by_card", "write"]


@dataclass(frozen=True, kw_only=True)
class Brought:
    """A network with what its file takes and gives."""

    module: nn.Module
    """Maps the inputs of the file to its outputs, in evaluation mode."""
    example: Tensor
    """Two inputs of the file."""
    part: tuple[nn.Module, Tensor, str] | None = None
    """What the exporter converts, as of `exported_part`, where the card says it; else `module` itself."""
    card: Card | None = None
    task: Task = IMAGE_CLASSIFICATION
    names: tuple[str, str] = ("input", "logits")
    notes: dict[str, str] = field(default_factory=dict)
    """Metadata of the file."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Inputs with which the file is compared with the network."""

    inputs: NDArray[Any]
    words: str


def bring(
    net: nn.Module, size: tuple[int, ...], classes: tuple[str, ...], normalization: Normalization | None
) -> Brought:
    """A network that no card describes; `size` is the shape of one example as it takes them. With a normalization the
    file takes uint8 images (batch, H, W, C) and computes it, otherwise it takes float32 (batch, *size).

    Raises ModelError for a network that does not give one tensor with a row for each example.
    """
    noise = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    _one_tensor(net, noise)
    net = folded_on(net, lambda: noise)
    labels = {"labels": json.dumps(classes)} if classes else {}
    notes = {"edgekd": __version__, **labels}
    if normalization is None:
        shape = ", ".join(map(str, size))
        return Brought(
            module=net, example=noise, notes=notes | {"input": f"float32 (batch, {shape}), as the network takes it"}
        )
    module = nn.Sequential(Preprocess(normalization), net).eval()
    channels, *sides = size
    colour = {1: ", grey", 3: ", RGB"}.get(channels, "")
    notes |= {
        "normalization": json.dumps(
            {"mean": normalization.mean, "std": normalization.std, "scale": "pixel / 255", "in_graph": True}
        ),
        "input": f"uint8 (batch, {sides[0]}, {sides[1]}, {channels}){colour}",
    }
    example = torch.zeros(2, *sides, channels, dtype=torch.uint8)
    return Brought(module=module, example=example, names=("image", "logits"), notes=notes)


def _one_tensor(net: nn.Module, noise: Tensor) -> None:
    try:
        with torch.no_grad():
            found = net.eval()(noise)
    except Exception as error:  # the network's own code
        raise ModelError(
            f"the network cannot take float32 {list(noise.shape)}: {one_line(error, 150)}; see --input"
        ) from error
    if not isinstance(found, Tensor) or found.dim() < 2 or len(found) != len(noise):
        what = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ModelError(
            f"the network gives {what} for a batch of two; give a function whose network returns one tensor (batch, …)"
        )


def bring_by_card(net: nn.Module, card: Card) -> Brought:
    """The network of a card's teacher, whose inputs and preprocessing the card describes."""
    task = task_of(card.data)
    net = folded(net, card.data)
    return Brought(
        module=Deployed(net, card.data).eval(),
        example=example_inputs(card.data, 2),
        part=exported_part(net, card.data),
        card=card,
        task=task,
        names=(task.input, task.output),
    )


def write(
    brought: Brought, target: Target, path: Path, folder: Path, examples: Callable[[onnx.ModelProto], Examples]
) -> tuple[Parity, str]:
    """Write the file, if ONNX Runtime gives the same answers as torch for `examples` of it; return how closely they
    agree, and on what. Temporary files lie in `folder`.

    Raises ModelError if torch cannot export the network, or if the answers differ.
    """
    free = {0: "batch"} if brought.card is None else brought.task.free
    module, example, name = brought.part or (brought.module, brought.example, brought.names[0])
    model = converted(module, example, target, (name, brought.names[1]), free)
    if brought.card is not None:
        describe(model, brought.card, target, {"trained": "elsewhere"})
        if name != brought.names[0] or brought.card.export.nms:  # the exporter knows neither front end nor suppression
            model = completed(model, brought.card)
    else:
        for key, value in (brought.notes | {"target": target.name}).items():
            fixed = value.replace("(batch,", "(1,") if key == "input" and target.fixed_shapes else value
            model.metadata_props.add(key=key, value=fixed)
    made = folder / "exported.onnx"
    save_model(model, made)
    some = examples(model)
    calls = brought.task.calls(some.inputs)
    with torch.no_grad():
        expected = np.concatenate([brought.module(torch.from_numpy(call)).numpy() for call in calls])
    found = compared(expected, _answers(made, brought.task, some.inputs), brought.task)
    if brought.card is not None and brought.card.export.resize:
        save_model(taking_any_size(onnx.load(made), brought.card), made)
    with atomic(path) as temporary:
        shutil.copyfile(made, temporary)
    return found, some.words


def _answers(file: Path, task: Task, inputs: NDArray[Any]) -> NDArray[np.float32]:
    try:
        return cpu_logits(file, task, inputs)
    except EdgekdError:
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base below Exception
        raise InputError(f"ONNX Runtime cannot run the exported file: {one_line(error, 150)}") from error
