"""Weights files: safetensors, or a checkpoint that `torch.load(weights_only=True)` accepts. Their code is not run."""

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

__all__ = ["alike", "load_file", "load_into", "load_part", "read_state", "read_states", "save_state", "spelled_states"]

State = dict[str, Tensor]
"""Tensors by name."""

WRAPPERS = (
    "state_dict", "model_state_dict", "model", "net", "network", "ema", "ema_state_dict", "state_dict_ema", "model_ema",
    "module",
)  # fmt: skip
"""Keys under which training scripts save a state dict, in order of preference."""

PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.")
"""Prefixes that DataParallel, Lightning, torch.compile and wrappers add to every name."""


class _Inert(dict):  # type: ignore[type-arg]
    """A harmless substitute for classes of Lightning or pathlib that a checkpoint contains beside its weights."""

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
"""Types that checkpoints often contain in addition to tensors and that run no code: options, NumPy numbers, paths."""


def save_state(net: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write the network's state dict as safetensors, atomically; equal weights give equal bytes. A tensor that two
    names share is written twice, because safetensors does not support shared tensors."""
    whole = torch.contiguous_format
    state = {name: tensor.detach().clone(memory_format=whole) for name, tensor in net.state_dict().items()}
    with atomic(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(state, metadata))


def read_state(path: Path) -> State:
    """The tensors of a weights file by name; if it has several state dicts, the first one in the order of `WRAPPERS`.

    Raises InputError for a missing or truncated file, for an unknown format, and for a pickle that holds anything but
    tensors, plain containers and options (its code is not run).
    """
    state = next(iter(read_states(path).values()))
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def read_states(path: Path) -> dict[str, State]:
    """Every state dict in a weights file, by its key, such as `model.ema`; the key is empty for the file itself.

    Raises InputError as `read_state` does.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    try:
        if not str(path).isprintable():  # safetensors only opens paths that are UTF-8
            return {"": safetensors.torch.load(path.read_bytes())}
        return {"": safetensors.torch.load_file(path)}
    except Exception as error:  # SafetensorError, KeyError for a newer dtype, or any exception of torch
        if _begins_as_torch(path):
            return _read_torch(path)
        raise InputError(
            f"{path}: neither a whole safetensors file nor a PyTorch state dict ({one_line(error, 100)}); "
            "truncated, or another format?"
        ) from error


def _begins_as_torch(path: Path) -> bool:
    """Whether torch.save may have written the file: it is a zip archive, or a pickle as in older versions."""
    with path.open("rb") as file:
        return file.read(2).startswith((b"PK", b"\x80"))


def _read_torch(path: Path) -> dict[str, State]:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")  # about an unusual pickle protocol; errors are handled below
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: is a pickle that holds more than tensors; it was not loaded, for a pickle can run code. "
            "Save the state dict: torch.save(model.state_dict(), …) or safetensors"
        ) from error
    except Exception as error:  # a broken pickle can make torch raise almost any exception
        raise InputError(f"{path}: not a readable PyTorch file: {one_line(error, 120)}") from error
    found = dict(_states(loaded, "", 3))
    if not found:
        raise InputError(f"{path}: holds no state dict (names and tensors): it {_what_is(loaded)}")
    for state in found.values():
        for name, tensor in state.items():
            _refuse_unusual(name, tensor, path)
    return found


def _what_is(loaded: Any) -> str:
    """The end of a message that says what a file without a state dict contains instead."""
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
    """The state dicts in a checkpoint, with the dotted path of keys that leads to each."""
    if not isinstance(loaded, dict) or not depth:
        return
    named = {name: value for name, value in loaded.items() if isinstance(name, str)}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    # A module's extra state is not a tensor, and is not part of its weights.
    others = [name for name in loaded if name not in tensors and not str(name).endswith("_extra_state")]
    if not others:
        yield key, tensors
        return
    for wrapper in WRAPPERS:
        yield from _states(named.get(wrapper), f"{key}.{wrapper}".lstrip("."), depth - 1)


def _refuse_unusual(name: str, tensor: Tensor, path: Path) -> None:
    """Raise InputError for a tensor that does not store its elements as plain numbers."""
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
    """Load a weights file into the network. Uses the first of its state dicts that fits, with or without the prefixes
    that wrappers add to names.

    Raises InputError as `read_state` does. Raises InputError also if none fits; the message says what was tried.
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
    variants = [f"state dicts {', '.join(keys)}"] if keys else []
    variants += [f"names without {', '.join(prefixes)}"] if prefixes else []
    load_into(net, nearest, path, f"; tried: {'; '.join(variants)}" if variants else "")


def spelled_states(path: Path) -> list[State]:
    """Every state dict in a weights file, unchanged and without the prefixes of wrappers, in order of preference.

    Raises InputError as `read_state` does.
    """
    return [spelled for state in read_states(path).values() for _, spelled in _spellings(state)]


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape and the same kind of number."""
    return one.shape == other.shape and _kind(one) == _kind(other)


def _spellings(state: State, prefix: str = "", depth: int = 3) -> Iterator[tuple[str, State]]:
    """The state dict unchanged, and with the prefixes of wrappers removed; each with the prefix that was removed.

    Tensors whose names do not begin with the prefix are left out, such as the weights of a loss, or a counter.
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
    """Load the tensors into the network. Raises InputError, which lists the keys or shapes that differ; `tried` ends
    its message."""
    problems = [
        f"{len(keys)} {what} ({', '.join(cut(key, 160) for key in keys[:3])}{', …' if len(keys) > 3 else ''})"
        for what, keys in _differences(net, state).items()
    ]
    if problems:
        raise InputError(f"{path}: weights of another architecture: {'; '.join(problems)}{tried}")
    load_part(net, state, path)


def load_part(net: nn.Module, state: State, path: Path) -> None:
    """Load these tensors into the network, whose other tensors do not change. Raises InputError if a module of the
    network refuses them."""
    try:
        net.load_state_dict(state, strict=False)
    except Exception as error:  # a module's own hooks failed, or torch cannot copy a value
        raise InputError(f"{path}: the network does not take these weights: {one_line(error, 160)}") from error


def _differences(net: nn.Module, state: State) -> dict[str, list[str]]:
    """Names that are missing, superfluous, or differ in size or kind, by the words of the message; empty if all fit."""
    wanted = net.state_dict()
    both = [name for name in wanted if name in state]
    found = {
        # Older files lack BatchNorm's counters, which a trained network does not need.
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
    """The kind of number. Tensors are only copied within a kind, because torch would truncate fractions and drop
    imaginary parts."""
    return "complex" if tensor.is_complex() else "float" if tensor.is_floating_point() else "whole"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
