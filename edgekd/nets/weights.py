"""Weights files: safetensors, or a state dict that `torch.load(weights_only=True)` accepts. No code is run."""

import pickle
import warnings
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from edgekd.errors import InputError, cut, one_line
from edgekd.files import atomic

__all__ = ["load_into", "read_state", "save_state"]


def save_state(net: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """The network's state dict as safetensors, written atomically; equal weights give equal bytes. What two names share
    is written twice, for safetensors shares nothing."""
    whole = torch.contiguous_format
    state = {name: tensor.detach().clone(memory_format=whole) for name, tensor in net.state_dict().items()}
    with atomic(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(state, metadata))


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name.

    Raises InputError for a missing, truncated or unknown file, and for a pickle that holds anything but
    tensors and plain containers (its code is not run).
    """
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    try:
        if not str(path).isprintable():  # safetensors opens only paths that are UTF-8
            return safetensors.torch.load(path.read_bytes())
        return safetensors.torch.load_file(path)
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


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unusual pickle protocol; what cannot be read is refused below
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: is a pickle that holds more than tensors; it was not loaded, for a pickle can run code. "
            "Save the state dict: torch.save(model.state_dict(), …) or safetensors"
        ) from error
    except Exception as error:  # torch raises whatever a broken pickle leads it to
        raise InputError(f"{path}: not a readable PyTorch file: {one_line(error, 120)}") from error
    for wrapper in ("state_dict", "model"):  # how training scripts usually wrap it
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict):
        raise InputError(f"{path}: holds no state dict (names and tensors): it is a {type(loaded).__name__}")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            what = f"{cut(repr(name))}, a {type(name).__name__}, with a {type(value).__name__}"
            raise InputError(f"{path}: holds no state dict (names and tensors): it has {what}")
        _refuse_unusual(name, value, path)
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}


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


def load_into(net: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load the tensors into the network; InputError says which keys or shapes differ."""
    wanted = net.state_dict()
    # Counters of BatchNorm that older files lack do not matter for a trained network.
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in wanted]
    both = [name for name in wanted if name in state]
    other = [
        f"{name} is {cut(str(tuple(state[name].shape)))}, wanted {tuple(wanted[name].shape)}"
        for name in both
        if state[name].shape != wanted[name].shape
    ]
    kinds = [
        f"{name} is {_dtype(state[name])}, wanted {_dtype(wanted[name])}"
        for name in both
        if _kind(state[name]) != _kind(wanted[name])
    ]
    problems = [
        f"{len(keys)} {what} ({', '.join(cut(key, 160) for key in keys[:3])}{', …' if len(keys) > 3 else ''})"
        for keys, what in (
            (missing, "missing"),
            (unknown, "not in the network"),
            (other, "of another size"),
            (kinds, "of another kind of number"),
        )
        if keys
    ]
    if problems:
        raise InputError(f"{path}: weights of another architecture: {'; '.join(problems)}")
    try:
        net.load_state_dict(state, strict=False)
    except Exception as error:  # a module's own hooks, or values that torch does not copy
        raise InputError(f"{path}: the network does not take these weights: {one_line(error, 160)}") from error


def _kind(tensor: Tensor) -> str:
    """What is copied without another meaning: torch would cut fractions off, and drop imaginary parts."""
    return "complex" if tensor.is_complex() else "float" if tensor.is_floating_point() else "whole"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
