"""The start of a fine-tuning: a network takes what fits it from a weights file, and keeps the rest as it was made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.card import Card
from edgekd.errors import ConfigError, cut
from edgekd.nets.deployed import Deployed, noise_inputs
from edgekd.nets.weights import State, alike, load_into, load_part, spelled_states
from edgekd.tasks.known import task_of

__all__ = ["Start", "describe", "load_all_but_head", "load_fitting"]

_COUNTER = "num_batches_tracked"
"""A counter of BatchNorm that a trained network does not need, and that older files lack."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a network took from a weights file."""

    file: Path
    parameters: frozenset[str]
    """The names of the network's parameters that were loaded."""
    loaded: tuple[str, ...]
    """The paths of the layers (modules with tensors of their own) that were loaded."""
    new: tuple[str, ...]
    """The paths of the other layers, which keep their initial values."""
    outputs: Mapping[str, int] = field(default_factory=dict)
    """How many outputs a layer of `new` has in the file, for those that are there with another size."""
    unused: tuple[str, ...] = ()
    """The names of the file's tensors that belong to no layer of the network."""


def load_fitting(net: nn.Module, path: Path) -> Start:
    """Load the layers whose names and sizes fit from a weights file into the network.

    A layer is a module that has parameters or buffers of its own. It is loaded as a whole or not at all, because half
    a layer (a bias without its weight) is of no use. If the file has several state dicts, the one that fits best is
    taken, with or without the prefixes that wrappers add to names.

    Raises InputError if the file cannot be read, and ConfigError if no layer fits.
    """
    state = _best(net, spelled_states(path))
    start = _fitting(net, state, path)
    if not start.parameters:
        raise ConfigError(f"{path}: {_why_nothing(net, state)}")
    load_part(net, {name: value for name, value in state.items() if name.rpartition(".")[0] in start.loaded}, path)
    return start


def load_all_but_head(net: nn.Module, card: Card, path: Path) -> Start:
    """Load a weights file into the network, whose last layer may be of another size; that layer keeps its initial
    values.

    Raises InputError if the file cannot be read or if anything but the last layer differs.
    """
    state = _best(net, spelled_states(path))
    start = _fitting(net, state, path)
    heads = _heads(net, card) if start.new else ()
    replaced = [layer for layer in heads if layer in start.new and _same_input(net, state, layer)]
    others = {name: value for name, value in state.items() if name.rpartition(".")[0] not in replaced}
    own = {name: value for name, value in net.state_dict().items() if name.rpartition(".")[0] in replaced}
    why = "" if heads or not start.new else _no_head(card)
    load_into(net, others | own, path, why)
    return start


def _same_input(net: nn.Module, state: State, layer: str) -> bool:
    """Whether a layer takes as many inputs in the file as in the network, or is not in the file."""
    weight = state.get(_join(layer, "weight"))
    return weight is None or weight.shape[1:] == net.get_submodule(layer).get_parameter("weight").shape[1:]


def describe(who: str, start: Start, classes: int) -> str:
    """One line that says what was loaded, and what is trained from new; `who` is `teacher` or `student`."""
    count = len(start.loaded) + len(start.new)
    parts = [f"{len(start.loaded)} of {count} layers are loaded from {start.file}"]
    if who == "teacher" and start.new:
        was = start.outputs.get(start.new[0])
        there = f"the head of {was} outputs is replaced by one" if was else "the file has no head; it gets one"
        return f"teacher: {there} of {classes}, trained from new; {parts[0]}"
    if start.new:
        parts.append(f"trained from new: {_some(start.new)}")
    if start.unused:
        parts.append(f"not used: {len(start.unused)} tensors of the file ({_some(start.unused)})")
    return f"{who}: {'; '.join(parts)}"


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(cut(name or "the network's own tensors") for name in names[:3]) + (", …" if names[3:] else "")


def _join(layer: str, name: str) -> str:
    return f"{layer}.{name}" if layer else name


def _by_layer(state: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The tensors of a state dict by the path of the module that owns them, then by their name in it."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):  # a module's extra state may be anything
            layer, _, own = name.rpartition(".")
            found.setdefault(layer, {})[own] = value
    return found


def _fits(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    names = own.keys() - {_COUNTER}
    return names == other.keys() - {_COUNTER} and all(alike(own[name], other[name]) for name in names)


def _best(net: nn.Module, states: list[State]) -> State:
    """The state dict with the most numbers in layers that fit; of equal ones that with the fewest other tensors."""
    own = _by_layer(net.state_dict())

    def worth(state: State) -> tuple[int, int]:
        theirs = _by_layer(state)
        fitting = [layer for layer in own if layer in theirs and _fits(own[layer], theirs[layer])]
        others = [layer for layer in theirs if layer not in own]
        return sum(value.numel() for layer in fitting for value in own[layer].values()), -len(others)

    return max(states, key=worth)


def _fitting(net: nn.Module, state: State, path: Path) -> Start:
    own, theirs = _by_layer(net.state_dict()), _by_layer(state)
    loaded = tuple(layer for layer in own if layer in theirs and _fits(own[layer], theirs[layer]))
    new = tuple(layer for layer in own if layer not in loaded)
    weights = {layer: theirs[layer]["weight"] for layer in new if "weight" in theirs.get(layer, {})}
    return Start(
        file=path,
        parameters=frozenset(name for name, _ in net.named_parameters() if name.rpartition(".")[0] in loaded),
        loaded=loaded,
        new=new,
        outputs={layer: len(weight) for layer, weight in weights.items() if weight.dim()},
        unused=tuple(sorted(_join(layer, name) for layer in theirs if layer not in own for name in theirs[layer])),
    )


def _why_nothing(net: nn.Module, state: State) -> str:
    """The end of a message about a file of which no layer fits."""
    own = {name: value for name, value in net.state_dict().items() if isinstance(value, Tensor)}
    both = [name for name in own if name in state and not name.endswith(_COUNTER)]
    if both:
        name = next((name for name in both if not alike(own[name], state[name])), both[0])
        return (
            f"no layer fits the network: {len(both)} tensors have its names, but other sizes, such as {cut(name)}, "
            f"which is {cut(str(tuple(state[name].shape)))}, wanted {tuple(own[name].shape)}; choose a shape of the "
            "student (student.knobs) with the file's width, or other weights"
        )
    names = tuple(name for name in state if not name.endswith(_COUNTER))
    return (
        f"no layer fits the network: the file's names ({_some(names)}) are of another family than the "
        f"network's ({_some(tuple(own))})"
    )


def _heads(net: nn.Module, card: Card) -> tuple[str, ...]:
    """The paths of the layers that may be the head: linear layers and convolutions that have one output for each
    class, and after which no other such layer is run. A network may have several heads.

    The tuple is empty if the network cannot take the card's inputs, because later checks report this.
    """
    called: list[str] = []
    paths = {module: path for path, module in net.named_modules()}
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    hooks = [
        module.register_forward_hook(lambda module, given, found: called.append(paths[module]))
        for module in paths
        if isinstance(module, kinds)
    ]
    training, whole = net.training, Deployed(net, card.data).eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            whole(noise_inputs(card.data, 2))
    except Exception:  # the user's own code can raise any exception
        return ()
    finally:
        for hook in hooks:
            hook.remove()
        net.train(training)
    heads: list[str] = []
    for path in reversed(called):
        if len(net.get_submodule(path).get_parameter("weight")) != task_of(card.data).outputs(card.data):
            break
        heads.append(path)
    return tuple(heads)


def _no_head(card: Card) -> str:
    return (
        "; a head that could be replaced was not found: no linear layer or convolution with "
        f"{task_of(card.data).outputs(card.data)} outputs runs last"
    )
