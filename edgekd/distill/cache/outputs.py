"""The teachers' outputs for each view of the data: read from the cache, or computed in every training step."""

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
from edgekd.data.translation import PairExamples
from edgekd.distill.cache.blocks import file_bytes
from edgekd.distill.cache.files import cache_folder, cache_limit_bytes
from edgekd.distill.cache.store import fits, open_cache, outputs
from edgekd.distill.cache.tokens import KEPT, packed, packed_shape, unpacked
from edgekd.distill.digests import state_digest
from edgekd.distill.distributed import barrier, device, summed, world
from edgekd.distill.loop import Outputs
from edgekd.distill.optimise import autocast, computes_bf16
from edgekd.distill.terms.layers import Taps, core, probe
from edgekd.errors import ConfigError
from edgekd.external import file_digest
from edgekd.nets.teachers import LoadedTeacher
from edgekd.recipe import Recipe
from edgekd.tasks.known import task_of

__all__ = ["combined", "key_of", "shapes", "teaching"]


def shapes(teacher: LoadedTeacher, examples: Examples, layers: Sequence[str]) -> dict[str, torch.Size]:
    """The shapes of a teacher's logits and layers, without the batch dimension; ConfigError for an unknown layer."""
    inputs = examples.batch(np.arange(min(2, len(examples))), 0).inputs
    return probe(teacher.module.cpu(), inputs, layers, "recipe.features: teacher")


@contextlib.contextmanager
def teaching(
    card: Card, teachers: Sequence[LoadedTeacher], examples: Examples, layers: Sequence[str], online: bool
) -> Iterator[Outputs]:
    """Give a function that returns the teachers' outputs for a batch of any view of the examples.

    The outputs come from the cache, which is filled view by view when a view is first needed. With `online`, or if the
    cache is too small, they are computed for each batch. Only the first teacher gives outputs of `layers`.
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
    """Combine several teachers into one, as `recipe.combine` says. Features are those of the first teacher.

    The logits are the weighted mean of the teachers' logits, whose softmax is the normalised geometric mean of their
    softmaxes; or, with `confidence`, those of the teacher whose softmax has the largest maximum for the example.
    """
    if not each:
        return lambda k, indices, inputs: {}
    if len(each) == 1:
        return each[0]
    weights = torch.tensor(recipe.teacher_weights or (1.0,) * len(each))

    def together(k: int, indices: NDArray[np.int64], inputs: Tensor) -> dict[str, Tensor]:
        found = [one(k, indices, inputs) for one in each]
        logits = torch.stack([one["logits"] for one in found])  # (teachers, B, C, …)
        if recipe.combine == "confidence":
            surest = logits.softmax(dim=2).amax(dim=2, keepdim=True).argmax(dim=0, keepdim=True)
            chosen = logits.take_along_dim(surest, dim=0)[0]
        else:
            shares = (weights / weights.sum()).to(logits.device)
            chosen = torch.einsum("t,t...->...", shares, logits)
        return found[0] | {"logits": chosen}

    return together


def _online(stack: contextlib.ExitStack, teacher: LoadedTeacher, recipe: Recipe, names: tuple[str, ...]) -> Outputs:
    run = _runner(stack, teacher, recipe, names)
    return lambda k, indices, inputs: run(inputs)


def _runner(
    stack: contextlib.ExitStack, teacher: LoadedTeacher, recipe: Recipe, names: tuple[str, ...]
) -> Callable[[Tensor], dict[str, Tensor]]:
    """A function that runs the teacher on a batch of inputs, on the training device."""
    taps = Taps(core(teacher.module), names, "recipe.features: teacher")
    stack.callback(taps.remove)
    teacher.module.eval().to(device()).to(memory_format=torch.channels_last)

    def run(inputs: Tensor) -> dict[str, Tensor]:
        with torch.no_grad(), autocast(recipe.precision):
            logits = teacher.module(inputs)
        # An ONNX teacher returns its logits on the CPU.
        return {"logits": logits.float().to(inputs.device)} | {name: taps.values[name] for name in names}

    return run


def _cached(
    stack: contextlib.ExitStack, card: Card, teacher: LoadedTeacher, examples: Examples, names: tuple[str, ...]
) -> Outputs | None:
    """The outputs from the cache; None, after a message with the reason, if they exceed the cache limit or the disk."""
    recipe, among = card.recipe, world()
    longest = examples.longest if isinstance(examples, PairExamples) else None
    _refuse_lengths(card, teacher, examples, names)
    cache = stack.enter_context(
        open_cache(
            cache_folder(),
            key_of(teacher, examples, recipe) | ({} if longest is None else {"kept": KEPT, "rest": "logsumexp"}),
            len(examples),
            cache_limit_bytes(),
            block=task_of(card.data).together,  # in one forward pass of the teacher
            shown={"teacher": teacher.file.name, "data": card.name},
        )
    )
    found = shapes(teacher, examples, names)
    if longest is not None:
        found["logits"] = torch.Size(packed_shape(longest, card.data.vocabulary))
    views = min(recipe.views, recipe.epochs) if task_of(card.data).augment else 1
    wanted = _wanted(len(examples), found, views)
    held = torch.tensor(among.first and fits(cache, wanted), dtype=torch.int64)
    if not summed(held):  # rank 0 decides for all processes
        say("teacher: its outputs are computed while the student learns, in every epoch anew")
        return None
    run = _runner(stack, teacher, recipe, names)
    mapped: dict[int, dict[str, NDArray[Any]]] = {}

    def compute(k: int, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        inputs = examples.batch(indices, k).inputs.to(device())
        found = run(inputs)
        if longest is not None:
            found["logits"] = packed(found["logits"], inputs, longest)
        return {
            name: value.to(torch.float32 if _single(name) else torch.float16).cpu().numpy()
            for name, value in found.items()
        }

    def look_up(k: int, indices: NDArray[np.int64], inputs: Tensor) -> dict[str, Tensor]:
        k %= views  # where nothing is augmented, all views are equal
        if k not in mapped:
            mapped.clear()  # each epoch uses only one view
            mapped[k] = outputs(
                cache, k, ("logits", *names), lambda chosen: compute(k, chosen), among.rank, among.size, barrier
            )
        found = {name: torch.from_numpy(values[indices]).to(inputs.device) for name, values in mapped[k].items()}
        if longest is not None:
            found["logits"] = unpacked(found["logits"], inputs, card.data.vocabulary)
        return found

    return look_up


def key_of(teacher: LoadedTeacher, examples: Examples, recipe: Recipe) -> dict[str, Any]:
    """Everything that the teacher's outputs depend on, as JSON values."""
    if teacher.net is None:
        what, runtime = {"file": file_digest(teacher.file)}, ["onnxruntime"]
    else:
        structure = hashlib.sha256(str(teacher.module).encode()).hexdigest()
        what, runtime = {"weights": state_digest(teacher.module.state_dict()), "structure": structure}, []
    libraries = ["torch", "torchvision", "scipy", "PIL", *runtime]  # torchvision, scipy and PIL affect the views
    return {
        "teacher": what | dict(teacher.identity),
        "examples": dict(examples.key),
        "bf16": computes_bf16(recipe.precision),
        "device": device().type,
        "versions": {name: str(importlib.import_module(name).__version__) for name in libraries},
    }


def _refuse_lengths(card: Card, teacher: LoadedTeacher, examples: Examples, names: tuple[str, ...]) -> None:
    """Raise ConfigError for a layer that gives one output per token: its shape depends on the length of the sentence,
    but the cache stores arrays of one shape."""
    if not names or len(task_of(card.data).free) < 2:
        return
    if task_of(card.data).generates:
        raise ConfigError(
            f"{card.file}: recipe.features: teacher: its layers give one output for each token, and the cache keeps "
            "one shape; use --online"
        )
    many = np.arange(min(task_of(card.data).together, len(examples)))
    inputs = examples.batch(many, 0).inputs  # padded to the longest of many sentences
    # Compare whole outputs: a mean over tokens has one shape, but its value depends on the padding.
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
    """Whether an output is stored in single precision. Logits are, and attention maps: they are mean squares, and
    exceed the range of half precision if activations reach 256. Other outputs are stored in half precision."""
    return name == "logits" or name.endswith("|attention")


def _wanted(count: int, found: dict[str, torch.Size], views: int) -> dict[str, int]:
    """Bytes of each output, all views together."""
    return {
        name: views * file_bytes((count, *shape), np.float32 if _single(name) else np.float16)
        for name, shape in found.items()
    }
