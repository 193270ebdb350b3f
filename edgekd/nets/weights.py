"""Weights files: safetensors, or a checkpoint that `torch.load(weights_only=True)` accepts. No code is run."""

import argparse
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from edgekd.errors import InputError, cut, one_line
from edgekd.files import atomic

__all__ = ["load_file", "load_into", "read_state", "read_states", "save_state"]

State = dict[str, Tensor]
"""Tensors by name."""

WRAPPERS = (
    "state_dict", "model_state_dict", "model", "net", "network", "ema", "ema_state_dict", "state_dict_ema", "model_ema",
    "module",
)  # fmt: skip
"""Keys under which training scripts keep a state dict, the first ones first."""

PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.")
"""What DataParallel, Lightning, torch.compile and wrappers put before every name."""


class _Inert(dict):  # type: ignore[type-arg]
    """Stands for a class of Lightning or of pathlib that a checkpoint names beside its weights."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__()


_LIGHTNING = (
    "lightning_fabric.utilities.data",
    "lightning.fabric.utilities.data",
    "pytorch_lightning.utilities.parsing",
)

_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(name)) for name in ("bool", "int32", "int64", "float16", "float32", "float64", "U1")},
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_Inert, f"pathlib.{kind}") for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *((_Inert, f"pathlib._local.{kind}") for kind in ("PosixPath", "WindowsPath")),
    *((_Inert, f"{place}.AttributeDict") for place in _LIGHTNING),
]
"""What checkpoints often hold beside tensors, and none of it runs code: options, numbers of numpy, paths."""


def save_state(net: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """The network's state dict as safetensors, written atomically; equal weights give equal bytes. What two names share
    is written twice, for safetensors shares nothing."""
    whole = torch.contiguous_format
    state = {name: tensor.detach().clone(memory_format=whole) for name, tensor in net.state_dict().items()}
    with atomic(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(state, metadata))


def read_state(path: Path) -> State:
    """The tensors of a weights file by name: of several state dicts in it the first of `WRAPPERS`.

    Raises InputError for a missing, truncated or unknown file, and for a pickle that holds anything but tensors, plain
    containers and options (its code is not run).
    """
    state = next(iter(read_states(path).values()))
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def read_states(path: Path) -> dict[str, State]:
    """Every state dict in a weights file, by the key that holds it: empty for the file itself, or `model.ema`.

    Raises InputError as `read_state` does.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    try:
        if not str(path).isprintable():  # safetensors opens only paths that are UTF-8
            return {"": safetensors.torch.load(path.read_bytes())}
        return {"": safetensors.torch.load_file(path)}
    except Exception as error:  # SafetensorError; KeyError for a dtype of a later version; what torch makes of the rest
        if _begins_as_torch(path):
            return _read_torch(path)
        raise InputError(
            f"{path}: neither a whole safetensors file nor a PyTorch state dict ({one_line(error, 100)}); "
            "truncated, or another format?"
        ) from error


def _begins_as_torch(path: Path) -> bool:
    """Whether it may be a file of torch.save: a zip archive, or a pickle as older versions wrote it."""
    with path.open("rb") as file:
        return file.read(2).startswith((b"PK", b"\x80"))


def _read_torch(path: Path) -> dict[str, State]:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")  # of an unusual pickle protocol; what cannot be read is refused below
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: is a pickle that holds more than tensors; it was not loaded, for a pickle can run code. "
            "Save the state dict: torch.save(model.state_dict(), …) or safetensors"
        ) from error
    except Exception as error:  # torch raises whatever a broken pickle leads it to
        raise InputError(f"{path}: not a readable PyTorch file: {one_line(error, 120)}") from error
    found = dict(_states(loaded, "", 3))
    if not found:
        raise InputError(f"{path}: holds no state dict (names and tensors): it {_what_is(loaded)}")
    for state in found.values():
        for name, tensor in state.items():
            _refuse_unusual(name, tensor, path)
    return found


def _what_is(loaded: Any) -> str:
    """What a file without a state dict holds in its place."""
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict):
        return f"is a {type(loaded).__name__}"
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            return f"has {cut(repr(name))}, a {type(name).__name__}, with a {type(value).__name__}"
    return "is empty"


def _states(loaded: Any, key: str, depth: int) -> Iterator[tuple[str, State]]:
    """The state dicts in a checkpoint, by the keys that lead to them."""
    if not isinstance(loaded, dict) or not depth:
        return
    named = {name: value for name, value in loaded.items() if isinstance(name, str)}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    # A module's extra state is no tensor, and does not belong to its weights.
    others = [name for name in loaded if name not in tensors and not str(name).endswith("_extra_state")]
    if not others:
        yield key, tensors
        return
    for wrapper in WRAPPERS:
        yield from _states(named.get(wrapper), f"{key}.{wrapper}".lstrip("."), depth - 1)


def _refuse_unusual(name: str, tensor: Tensor, path: Path) -> None:
    """Raise InputError for a tensor whose elements are not there as plain numbers."""
    unusual = {
        "is on the device 'meta', where tensors have no values": tensor.is_meta,
        "is quantized": tensor.is_quantized,
        f"is sparse ({tensor.layout})": tensor.layout != torch.strided,
        "is nested": tensor.is_nested,
    }
    for what, so in unusual.items():
        if so:
            raise InputError(f"{path}: {cut(name)} {what}; save the state dict with dense tensors of numbers")


def load_file(net: nn.Module, path: Path) -> None:
    """Load the weights file into the network: the first of its state dicts that fits, with or without the prefixes that
    wrappers put before names.

    Raises InputError as `read_state` does, and for weights of another network, with what was tried.
    """
    states = read_states(path)
    tried: list[tuple[int, State]] = []
    for state in states.values():
        for _, spelled in _spellings(state):
            differences = _differences(net, spelled)
            if not differences:
                load_into(net, spelled, path)
                return
            tried.append((sum(len(names) for names in differences.values()), spelled))
    _, nearest = min(tried, key=lambda one: one[0])
    keys = [key for key in states if key]
    prefixes = sorted({cut(prefix) for state in states.values() for prefix, _ in _spellings(state) if prefix})
    told = [f"state dicts {', '.join(keys)}"] if keys else []
    told += [f"names without {', '.join(prefixes)}"] if prefixes else []
    load_into(net, nearest, path, f"; tried: {'; '.join(told)}" if told else "")


def _spellings(state: State, prefix: str = "", depth: int = 3) -> Iterator[tuple[str, State]]:
    """The state dict as it is, and without the prefixes of wrappers, each with what was taken away.

    What does not begin with the prefix is left out: a loss with weights of its own, a counter.
    """
    yield prefix, state
    if any("._orig_mod." in name for name in state):  # a part of the network was compiled
        yield f"{prefix}_orig_mod.", {name.replace("._orig_mod.", "."): value for name, value in state.items()}
    if not depth:
        return
    for start in PREFIXES:
        inner = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
        if inner:
            yield from _spellings(inner, prefix + start, depth - 1)


def load_into(net: nn.Module, state: State, path: Path, tried: str = "") -> None:
    """Load the tensors into the network; InputError says which keys or shapes differ, and `tried`."""
    problems = [
        f"{len(keys)} {what} ({', '.join(cut(key, 160) for key in keys[:3])}{', …' if len(keys) > 3 else ''})"
        for what, keys in _differences(net, state).items()
    ]
    if problems:
        raise InputError(f"{path}: weights of another architecture: {'; '.join(problems)}{tried}")
    try:
        net.load_state_dict(state, strict=False)
    except Exception as error:  # a module's own hooks, or values that torch does not copy
        raise InputError(f"{path}: the network does not take these weights: {one_line(error, 160)}") from error


def _differences(net: nn.Module, state: State) -> dict[str, list[str]]:
    """Names that are missing, too many, of another size or kind, by these words; empty where the weights fit."""
    wanted = net.state_dict()
    both = [name for name in wanted if name in state]
    found = {
        # Counters of BatchNorm that older files lack do not matter for a trained network.
        "missing": [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")],
        "not in the network": [name for name in state if name not in wanted],
        "of another size": [
            f"{name} is {cut(str(tuple(state[name].shape)))}, wanted {tuple(wanted[name].shape)}"
            for name in both
            if state[name].shape != wanted[name].shape
        ],
        "of another kind of number": [
            f"{name} is {_dtype(state[name])}, wanted {_dtype(wanted[name])}"
            for name in both
            if _kind(state[name]) != _kind(wanted[name])
        ],
    }
    return {what: names for what, names in found.items() if names}


def _kind(tensor: Tensor) -> str:
    """What is copied without another meaning: torch would cut fractions off, and drop imaginary parts."""
    return "complex" if tensor.is_complex() else "float" if tensor.is_floating_point() else "whole"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
