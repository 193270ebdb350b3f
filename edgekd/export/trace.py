"""Record the ATen operations that one forward pass of a network calls: a flat list, in milliseconds.

It serves two purposes that `torch.export` is too slow for, where many untrained networks are tried: the fast export to
ONNX (edgekd/export/fast.py), and the features of the latency model (edgekd/search/features.py). Control flow in Python
is recorded as it ran, so what is made of the list must be checked against the network.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Call", "trace"]


@dataclass(frozen=True)
class Call:
    """One operation of the forward pass that depends on the network's input."""

    op: str
    """Name of the overload, such as `aten.convolution.default`."""
    args: tuple[Any, ...]
    """The arguments; tensors are replaced by the names of their values."""
    kwargs: dict[str, Any]
    output: str
    """Name of the (first) output's value."""
    shape: tuple[int, ...]
    """Shape of the (first) output."""


@dataclass(frozen=True)
class Traced:
    """The operations of one forward pass, and the values that do not depend on its input."""

    calls: list[Call]
    constants: dict[str, Tensor]
    """Parameters, buffers and what is computed of them alone, by name."""
    shapes: dict[str, tuple[int, ...]]
    """The shape of every value, by name."""
    input: str
    output: str


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, net: nn.Module, inputs: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.constants: dict[str, Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {"input": tuple(inputs.shape)}
        self.names: dict[int, str] = {id(inputs): "input"}
        self.alive: list[Tensor] = [inputs]  # `id` may give the same number again after a tensor is freed
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            self._keep_constant(name, tensor)

    def _keep_constant(self, name: str, tensor: Tensor) -> None:
        self.constants[name] = tensor.detach()
        self._name(name, tensor)

    def _name(self, name: str, tensor: Tensor) -> None:
        self.names[id(tensor)] = name
        self.shapes[name] = tuple(tensor.shape)
        self.alive.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        first = next((one for one in _tensors(result)), None)
        if first is None:
            return result
        used = [self._name_of(tensor) for tensor in _tensors((args, tuple(kwargs.values())))]
        if all(name in self.constants for name in used):
            self._keep_constant(f"constant_{len(self.constants)}", first)
            return result
        call = Call(
            op=str(func),
            args=tuple(self._named(one) for one in args),
            kwargs={key: self._named(one) for key, one in kwargs.items()},
            output=f"value_{len(self.calls)}",
            shape=tuple(first.shape),
        )
        self.calls.append(call)
        self._name(call.output, first)  # an operation that works in place gives its tensor another name
        return result

    def _name_of(self, tensor: Tensor) -> str:
        if id(tensor) not in self.names:  # made outside of any operation, such as by torch.from_numpy
            self._keep_constant(f"constant_{len(self.constants)}", tensor)
        return self.names[id(tensor)]

    def _named(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return _Name(self._name_of(value))
        if isinstance(value, list | tuple):
            return tuple(self._named(one) for one in value)
        return value


class _Name(str):
    """The name of a value, in place of a tensor among arguments."""

    __slots__ = ()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def trace(net: nn.Module, inputs: Tensor) -> Traced:
    """Run `net` on `inputs` once, in evaluation mode, and return the operations that depend on them.

    `net` and `inputs` may be on the meta device; then only shapes are computed. `net` must return one tensor, else
    ValueError is raised.
    """
    recorder = _Recorder(net, inputs)
    training = net.training
    try:
        with torch.no_grad(), recorder:
            answer = net.eval()(inputs)
    finally:
        net.train(training)
    if not isinstance(answer, Tensor):
        raise ValueError(f"the network returns a {type(answer).__name__}; one tensor is needed")
    return Traced(
        calls=recorder.calls,
        constants=recorder.constants,
        shapes=recorder.shapes,
        input="input",
        output=recorder.names.get(id(answer), ""),
    )
