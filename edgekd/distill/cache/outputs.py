"""What the teachers say of each view: kept in the cache, or computed while the student learns."""

import contextlib
import hashlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.card import Card
from edgekd.console import say
from edgekd.data.examples import Examples
from edgekd.distill.cache.blocks import file_bytes
from edgekd.distill.cache.files import cache_folder, cache_limit_bytes
from edgekd.distill.cache.store import fits, open_cache, outputs
from edgekd.distill.digests import state_digest
from edgekd.distill.distributed import barrier, device, summed, world
from edgekd.distill.loop import Outputs
from edgekd.distill.optimise import autocast, computes_bf16
from edgekd.distill.terms.layers import Taps, core, probe
from edgekd.errors import ConfigError
from edgekd.external import file_digest
from edgekd.nets.teachers import Teacher
from edgekd.recipe import Recipe
from edgekd.tasks.known import task_of

__all__ = ["combined", "shapes", "teaching"]

BLOCK = 500
"""Examples that the teacher sees at once when the cache is filled."""


def shapes(teacher: Teacher, examples: Examples, layers: Sequence[str]) -> dict[str, torch.Size]:
    """The shapes of a teacher's logits and layers, without the batch; ConfigError for an unknown layer."""
    inputs = examples.batch(np.arange(min(2, len(examples))), 0).inputs
    return probe(teacher.module.cpu(), inputs, layers, "recipe.features: teacher")


@contextlib.contextmanager
def teaching(
    card: Card, teachers: Sequence[Teacher], examples: Examples, layers: Sequence[str], online: bool
) -> Iterator[Outputs]:
    """The teachers' outputs for any batch of the examples' views: from the cache, which is filled as views are asked
    for, or with `online`, and where the cache is too small, computed on the spot. Layers are the first teacher's.
    """
    recipe = card.recipe
    with contextlib.ExitStack() as stack:
        each = []
        for number, teacher in enumerate(teachers):
            names = tuple(layers) if number == 0 else ()
            stack.callback(teacher.module.to, "cpu")
            each.append(None if online else _cached(stack, card, teacher, examples, names))
            if each[-1] is None:
                each[-1] = _online(stack, teacher, recipe, names)
        yield combined([one for one in each if one is not None], recipe)


def combined(each: Sequence[Outputs], recipe: Recipe) -> Outputs:
    """Several teachers as one: the logits' weighted mean, whose softmax is the geometric mean of theirs (normalised),
    or for each example the logits of the teacher whose softmax has the largest maximum. Features are the first one's.
    """
    if not each:
        return lambda k, indices, inputs: {}
    if len(each) == 1:
        return each[0]
    weights = torch.tensor(recipe.teacher_weights or (1.0,) * len(each))

    def together(k: int, indices: NDArray[np.int64], inputs: Tensor) -> dict[str, Tensor]:
        found = [one(k, indices, inputs) for one in each]
        logits = torch.stack([one["logits"] for one in found])  # (teachers, B, C)
        if recipe.combine == "confidence":
            surest = logits.softmax(dim=2).amax(dim=2).argmax(dim=0)
            chosen = logits[surest, torch.arange(logits.shape[1], device=logits.device)]
        else:
            shares = (weights / weights.sum()).to(logits.device)
            chosen = torch.einsum("t,tbc->bc", shares, logits)
        return found[0] | {"logits": chosen}

    return together


def _online(stack: contextlib.ExitStack, teacher: Teacher, recipe: Recipe, names: tuple[str, ...]) -> Outputs:
    run = _runner(stack, teacher, recipe, names)
    return lambda k, indices, inputs: run(inputs)


def _runner(
    stack: contextlib.ExitStack, teacher: Teacher, recipe: Recipe, names: tuple[str, ...]
) -> Callable[[Tensor], dict[str, Tensor]]:
    """The teacher as a function of its inputs, on the device."""
    taps = Taps(core(teacher.module), names, "recipe.features: teacher")
    stack.callback(taps.remove)
    teacher.module.eval().to(device()).to(memory_format=torch.channels_last)

    def run(inputs: Tensor) -> dict[str, Tensor]:
        with torch.no_grad(), autocast(recipe.precision):
            logits = teacher.module(inputs)
        # An ONNX teacher answers on the CPU.
        return {"logits": logits.float().to(inputs.device)} | {name: taps.values[name] for name in names}

    return run


def _cached(
    stack: contextlib.ExitStack, card: Card, teacher: Teacher, examples: Examples, names: tuple[str, ...]
) -> Outputs | None:
    """The outputs from the cache; None, said why, where the limit or the disk does not hold them."""
    recipe, among = card.recipe, world()
    _refuse_lengths(card, teacher, examples, names)
    cache = stack.enter_context(
        open_cache(
            cache_folder(),
            _key(teacher, examples, recipe),
            len(examples),
            cache_limit_bytes(),
            block=BLOCK,
            shown={"teacher": teacher.file.name, "data": card.name},
        )
    )
    wanted = _wanted(len(examples), shapes(teacher, examples, names), min(recipe.views, recipe.epochs))
    held = torch.tensor(among.first and fits(cache, wanted), dtype=torch.int64)
    if not summed(held):  # the first process decides for all
        say("teacher: its outputs are computed while the student learns, in every epoch anew")
        return None
    run = _runner(stack, teacher, recipe, names)
    mapped: dict[int, dict[str, NDArray[Any]]] = {}

    def compute(k: int, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        found = run(examples.batch(indices, k).inputs.to(device()))
        return {
            name: value.to(torch.float32 if _single(name) else torch.float16).cpu().numpy()
            for name, value in found.items()
        }

    def look_up(k: int, indices: NDArray[np.int64], inputs: Tensor) -> dict[str, Tensor]:
        if k not in mapped:
            mapped.clear()  # an epoch shows one view
            mapped[k] = outputs(
                cache, k, ("logits", *names), lambda chosen: compute(k, chosen), among.rank, among.size, barrier
            )
        return {name: torch.from_numpy(values[indices]).to(inputs.device) for name, values in mapped[k].items()}

    return look_up


def _key(teacher: Teacher, examples: Examples, recipe: Recipe) -> dict[str, Any]:
    """Everything that the teacher's outputs depend on, as plain JSON values."""
    if teacher.net is None:
        what, runtime = {"file": file_digest(teacher.file)}, ["onnxruntime"]
    else:
        structure = hashlib.sha256(str(teacher.module).encode()).hexdigest()
        what, runtime = {"weights": state_digest(teacher.module.state_dict()), "structure": structure}, []
    libraries = ["torch", "torchvision", "scipy", "PIL", *runtime]  # all but the first and the last make views
    return {
        "teacher": what | dict(teacher.identity),
        "examples": dict(examples.key),
        "bf16": computes_bf16(recipe.precision),
        "device": device().type,
        "versions": {name: str(importlib.import_module(name).__version__) for name in libraries},
    }


def _refuse_lengths(card: Card, teacher: Teacher, examples: Examples, names: tuple[str, ...]) -> None:
    """ConfigError for a layer with one output a token: sentences of other lengths have others, and the cache keeps
    arrays of one shape."""
    if not names or len(task_of(card.data).free) < 2:
        return
    inputs = examples.batch(np.arange(min(BLOCK, len(examples))), 0).inputs  # as long as the longest of many
    # Whole outputs: a mean over tokens has one shape, and another value with each length, as padding counts.
    names = tuple(dict.fromkeys(name.partition("|")[0] for name in names))
    longer, shorter = (
        probe(teacher.module.cpu(), some, names, "recipe.features: teacher")
        for some in (inputs[:2], inputs[:2, : max(1, inputs.shape[1] - 1)])
    )
    for name in names:
        if longer[name] != shorter[name]:
            raise ConfigError(
                f"{card.file}: recipe.features: teacher: layer {name!r} gives {tuple(longer[name])} "
                f"for {inputs.shape[1]} tokens and {tuple(shorter[name])} for {inputs.shape[1] - 1}; the cache keeps "
                "one shape: name a layer behind the pooling over tokens, or use --online"
            )


def _single(name: str) -> bool:
    """Whether an output is kept in single precision: logits, and attention maps, which are squares, so that those of
    activations from 256 on are beyond half precision."""
    return name == "logits" or name.endswith("|attention")


def _wanted(count: int, found: dict[str, torch.Size], views: int) -> dict[str, int]:
    """Bytes of each output in all views."""
    return {
        name: views * file_bytes((count, *shape), np.float32 if _single(name) else np.float16)
        for name, shape in found.items()
    }
