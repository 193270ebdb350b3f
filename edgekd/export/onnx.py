"""Export a PyTorch network to ONNX with preprocessing in the graph and a dynamic batch, and check opset and parity."""

import contextlib
import dataclasses
import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.tools.onnx_model_utils import fix_output_shapes, make_input_shape_fixed
from torch import Tensor, nn

import edgekd
from edgekd import __version__
from edgekd.bench.worker import Generating, WorkerError, opened
from edgekd.card import Card, caller_rule
from edgekd.errors import ConfigError, ModelError, one_line
from edgekd.export.front_end import with_front_end
from edgekd.export.parts import parts_of
from edgekd.export.resize import SHAPE_KEY, with_resize
from edgekd.export.shrink import save_model
from edgekd.export.suppress import (
    before_suppression,
    final_detections,
    refuse_suppression,
    suppression_notes,
    two_stages,
    with_suppression,
)
from edgekd.external import decoder_of, name_decoder
from edgekd.files import atomic
from edgekd.nets.deployed import Deployed, example_inputs
from edgekd.nets.generation import generate
from edgekd.nets.translation import Seq2Seq
from edgekd.target import Target
from edgekd.tasks.front_end import FrontEnd
from edgekd.tasks.known import task_of
from edgekd.tasks.task import Task
from edgekd.tasks.translation import texts_of, tokenizer_from

__all__ = [
    "Parity",
    "compared",
    "converted",
    "cpu_logits",
    "describe",
    "export",
    "fix_shapes",
    "parity",
    "quiet_export",
    "refuse_free_shapes",
    "save_model",
    "taking_any_size",
]

MAX_RELATIVE_DIFFERENCE = 1e-3
"""Largest allowed |torch − ONNX Runtime|, relative to the largest |torch| output; 5e-7 is usual for fp32."""
MIN_AGREEMENT = 0.999


@dataclass(frozen=True)
class Parity:
    """How closely an exported file agrees with torch on real examples."""

    examples: int
    """Their number."""
    max_abs: float
    relative: float
    """max_abs divided by the largest absolute output."""
    same: float | None
    """The share of examples with the same answer; None if that says nothing for the task."""
    same_words: str
    """Describes that share: `same class`."""
    outputs: str = "logits"
    """What was compared: logits, or boxes and scores."""


def export(net: nn.Module, card: Card, target: Target, path: Path, provenance: dict[str, str]) -> None:
    """Write `net` with its preprocessing (uint8 (batch, H, W, C) to logits, or int32 (batch, length)) as ONNX. A
    network that generates becomes two files, see `parts_of`.

    With the card's `export.resize`, H and W are free, and the graph resizes and crops.

    Raises ModelError as `converted` does.
    """
    if task_of(card.data).generates:
        *others, main = parts_of(net, card.data, path)
        for part in others:
            save_model(_exported(part.module, part.inputs, target, part.names, part.free), part.file)
        model = _exported(main.module, main.inputs, target, main.names, main.free)
    else:
        module, example, name = exported_part(net, card.data)
        model = converted(module, example, target, (name, task_of(card.data).output), task_of(card.data).free)
    describe(model, card, target, provenance)
    if task_of(card.data).generates:
        name_decoder(model, decoder_of(path))
    save_model(completed(model, card), path)


def converted(
    module: nn.Module, example: Tensor, target: Target, names: tuple[str, str], free: Mapping[int, str]
) -> onnx.ModelProto:
    """`module` as ONNX, of the target's opset. `names` are those of input and output, `free` the names of the input's
    dynamic axes by position. If the target wants fixed shapes, a call takes one example and no axis is dynamic.

    Raises ModelError if torch cannot export the network, or if the opset that torch wrote is not the target's.
    """
    dynamic = {axis: torch.export.Dim(name) for axis, name in free.items()}
    model = _exported(module, (example,), target, ([names[0]], [names[1]]), (dynamic,) if dynamic else None)
    if target.fixed_shapes:  # afterwards, because torch writes other operators for a batch of one
        fix_shapes(model, (1, *example.shape[1:]))
    return model


def _exported(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    target: Target,
    names: tuple[list[str], list[str]],
    free: tuple[Any, ...] | None,
) -> onnx.ModelProto:
    """Export a module of several inputs and outputs. Raises ModelError as `converted` does."""
    try:
        with quiet_export():
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                verbose=False,
                external_data=False,
                opset_version=target.opset.export,
                input_names=names[0],
                output_names=names[1],
                dynamic_shapes=free,
            )
    except Exception as error:  # the exporter's many passes may raise any exception
        raise ModelError(f"torch cannot export the network to ONNX: {_reason(error)}") from error
    assert program is not None  # only the older exporter returns None
    model = program.model_proto
    written = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if written != target.opset.export:
        raise ModelError(
            f"torch wrote opset {written}, target {target.name} wants opset.export = {target.opset.export}; "
            f"set it to {written} if the device can load that"
        )
    return model


def fix_shapes(model: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    """Give the only input of `model` this shape, and its outputs the shapes that follow from it."""
    make_input_shape_fixed(model.graph, model.graph.input[0].name, list(shape))
    fix_output_shapes(model)


def refuse_free_shapes(card: Card, target: Target) -> None:
    """Raise ConfigError if the card's files need free shapes, and the target wants fixed ones; if the model generates,
    and the target's runtime cannot; or if the provider cannot suppress boxes that the graph should."""
    refuse_suppression(card, target)
    if task_of(card.data).generates and target.provider.name == "wasm":
        raise ConfigError(
            f"{card.file}: task {card.task}: its model generates token by token, which target {target.name} cannot; "
            "take another target"
        )
    if not target.fixed_shapes:
        return
    if card.export.resize:
        raise ConfigError(
            f"{card.file}: export.resize: takes images of any size, and target {target.name} has fixed_shapes = true; "
            "leave export.resize out"
        )
    if len(task_of(card.data).free) > 1:
        raise ConfigError(
            f"{card.file}: task {card.task}: {task_of(card.data).units} have free lengths, and target {target.name} "
            "has fixed_shapes = true"
        )


def exported_part(net: nn.Module, data: Any) -> tuple[nn.Module, torch.Tensor, str]:
    """What the exporters convert: a module, an example of two inputs, and the name of its input.

    It is the network with its preprocessing. A front end for sound is left out, because `completed` puts it before the
    network as a smaller graph than an exporter would write.
    """
    task, example = task_of(data), example_inputs(data, 2)
    module = Deployed(net, data).eval()
    if isinstance(task.normalization(data), FrontEnd):
        with torch.no_grad():
            return module.net, module.preprocess(example), "features"
    return module, example, task.input


def completed(model: onnx.ModelProto, card: Card) -> onnx.ModelProto:
    """Put before a converted network what the exporters do not convert, the front end or the resizing of images, and
    behind it non-maximum suppression, if the card wants these."""
    task = task_of(card.data)
    if card.export.nms:
        return with_suppression(model, card.export)
    how = task.normalization(card.data)
    if isinstance(how, FrontEnd):
        return with_front_end(model, how, task.input)
    return with_resize(model, card) if card.export.resize else model


def _reason(error: BaseException) -> str:
    """Explain why an export failed: the first paragraph of the original error, and the line of the network's own
    code.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    paragraph = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().partition("\n\n")[0]
    paragraph = re.sub(r" \((unhinted: [^\n]*|Size-like symbols: none)\)\.?", "", paragraph)
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if not _of_library(frame.filename)]
    text = one_line(RuntimeError(paragraph or type(error).__name__), 200)
    if not places:
        return text
    return f"{text} ({Path(places[-1].filename).name}:{places[-1].lineno}: {(places[-1].line or '')[:80]})"


def _of_library(file: str) -> bool:
    """Whether a Python file belongs to torch, edgekd or onnx, and not to the user's network."""
    own = [Path(module.__file__ or "").parent for module in (torch, edgekd, onnx)]
    return file.startswith("<") or any(Path(file).is_relative_to(folder) for folder in own)


def describe(model: onnx.ModelProto, card: Card, target: Target, provenance: dict[str, str]) -> None:
    """Write card, target, preprocessing and `provenance` into the model's metadata, in place of what is there."""
    values = {
        "edgekd": __version__,
        "card": card.name,
        "target": target.name,
        **({"task": card.task} if card.task != Card.task else {}),
        **task_of(card.data).describe(card.data),
        **_resizing(card),
        **suppression_notes(card),
        **provenance,
    }
    if target.fixed_shapes and "input" in values:
        values["input"] = values["input"].replace("(batch,", "(1,")
    del model.metadata_props[:]
    for key, value in values.items():
        model.metadata_props.add(key=key, value=value)


def taking_any_size(model: onnx.ModelProto, card: Card) -> onnx.ModelProto:
    """Make a given model resize in the graph, and add what the caller must know to its metadata."""
    known = {entry.key for entry in model.metadata_props}
    for key, value in ({"edgekd": __version__} | _resizing(card)).items():
        if key not in known:
            model.metadata_props.add(key=key, value=value)
    return with_resize(model, card)


def _resizing(card: Card) -> dict[str, str]:
    """The metadata that differ if the graph resizes."""
    if not card.export.resize:
        return {}
    shape = 1, *(card.export.timed_size or ()), card.data.channels
    colour = "RGB" if card.data.channels == 3 else "grey"
    return {
        "input": f"uint8 (batch, height, width, {card.data.channels}), {colour}",
        "resize": caller_rule(dataclasses.asdict(card)),
        SHAPE_KEY: ",".join(map(str, shape)),
    }


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Hide the exporter's warnings and output about its internals, which do not concern the user."""
    level, aside = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(aside), contextlib.redirect_stderr(aside):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def cpu_logits(file: Path, task: Task, images: NDArray[Any]) -> NDArray[np.float32]:
    """Return the file's outputs (n, C) on the CPU provider for every target, because parity is a property of the
    file. For a model that generates they are the logits after each token, where the source is the target, too; raises
    ModelError if they are NaN or infinite. For a file with non-maximum suppression in its graph they are those before
    it; raises ModelError if its detections are not what NumPy leaves of these.
    """
    if task.generates:
        session = opened(str(file))
        try:
            return np.concatenate([_stepwise(session, part) for part in task.calls(images)])
        except WorkerError as error:
            raise ModelError(f"{file}: {error}") from error
    staged = two_stages(file) if task.writes == "boxes" else None
    given_model = staged.SerializeToString() if staged is not None else file
    session = onnxruntime.InferenceSession(given_model, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    calls = task.calls(images)
    if given.shape[0] == 1:  # the target wants fixed shapes
        calls = [call[number : number + 1] for call in calls for number in range(len(call))]
    if staged is not None:
        return before_suppression(session, [{given.name: call} for call in calls], file)
    logits: NDArray[np.float32] = np.concatenate([session.run(None, {given.name: call})[0] for call in calls])
    return logits


def _stepwise(session: Generating, ids: NDArray[Any]) -> NDArray[np.float32]:
    """Return the logits (T, V) after each token of the ids (1, T), which are source and target."""
    memory, past = session.begin(ids)
    rows = []
    for place in range(ids.shape[1]):
        logits, past = session.step(ids[:, place], memory, past)
        rows.append(logits)
    return np.concatenate(rows)


def keep_torch_logits(net: nn.Module, card: Card, inputs: Path, name: str = "student") -> NDArray[Any]:
    """Compute the student's outputs in torch for all `inputs` (.npy), as the task reads them, or its translations, and
    save them beside these as `STEM.NAME.npy`.
    """
    images, task = np.load(inputs, mmap_mode="r"), task_of(card.data)
    deployed, size = Deployed(net, card.data).eval(), min(256, task.together)
    logits: NDArray[Any]
    if isinstance(net, Seq2Seq):
        data = card.data
        ids = generate(net.eval(), images, data.max_length, data.beam, data.length_penalty)
        logits = texts_of(ids, tokenizer_from(data.tokenizer, "its tokenizer"))
    else:
        with torch.no_grad():
            parts = [
                deployed(torch.from_numpy(images[n : n + size].copy())).numpy() for n in range(0, len(images), size)
            ]
        export = card.export
        logits = np.concatenate([task.read(final_detections(p, export) if export.nms else p) for p in parts])
    with atomic(inputs.with_suffix(f".{name}.npy")) as temporary:
        np.save(temporary, logits)
    return logits


def parity(net: nn.Module, card: Card, images: NDArray[Any], logits: NDArray[np.float32]) -> Parity:
    """Compare ONNX Runtime's `logits` (n, C) for `images` (n, H, W, C), or ids (n, L), with torch's.

    Raises ModelError if they differ by more than the tolerance, so that such a file is not shipped.
    """
    with torch.no_grad():
        expected = Deployed(net, card.data).eval()(torch.from_numpy(images)).numpy()
    # A model that generates has a row for each token.
    return dataclasses.replace(compared(expected, logits, task_of(card.data)), examples=len(images))


def compared(expected: NDArray[np.float32], logits: NDArray[np.float32], task: Task) -> Parity:
    """Compare ONNX Runtime's outputs (n, …) with those of torch.

    Raises ModelError as `parity` does.
    """
    difference = float(np.abs(expected - logits).max())
    axes = {"rows": 2, "classes": 4, "boxes": 3}[task.writes]
    result = Parity(
        examples=len(expected),
        max_abs=difference,
        relative=difference / max(float(np.abs(expected).max()), 1e-12),
        same=task.same(expected, logits) if task.same and expected.ndim == axes else None,
        same_words=task.same_words,
        outputs=task.output_words,
    )
    if not result.relative <= MAX_RELATIVE_DIFFERENCE or (result.same is not None and result.same < MIN_AGREEMENT):
        same = ""
        if result.same is not None:
            same = f", {task.same_words} {100 * result.same:.2f} % ({100 * MIN_AGREEMENT:g} % asked)"
        raise ModelError(
            f"the exported file differs from torch on {result.examples} {task.units}: their {result.outputs} "
            f"differ by {difference:.3g} ({result.relative:.2g} of the largest, {MAX_RELATIVE_DIFFERENCE:g} "
            f"allowed){same}"
        )
    return result
