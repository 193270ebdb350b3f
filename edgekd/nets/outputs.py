"""Finds the logits of a network among several outputs, and computes them if the network gives probabilities."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgekd.errors import ConfigError, EdgekdError, did_you_mean

__all__ = [
    "TINY",
    "Head",
    "add_head",
    "are_probabilities",
    "are_sigmoids",
    "head_of",
    "log_of",
    "settle_head",
    "sigmoid_words",
]

TINY = torch.finfo(torch.float32).tiny
"""The smallest normal number. Smaller probabilities are set to it, so the smallest logarithm is −87.3."""

_ENDINGS = {"_softmax": "Softmax", "_log_softmax": "LogSoftmax", "sigmoid": "Sigmoid", "hardsigmoid": "Sigmoid"}
_PASSING = {
    "view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "clone", "detach", "_to_copy", "alias", "select", "slice"
}  # fmt: skip
"""Operations of torch that do not change values."""


@dataclass
class Head:
    """A forward hook that replaces the network's outputs by its logits (B, classes), or (B, classes, H, W)."""

    classes: int
    output: str
    """The card's `output`; empty if the card does not name one."""
    where: str
    """The start of messages: the card's file, and `teacher` or `student`."""
    axes: int = 2
    """The number of axes of the logits."""
    logarithm: bool = False
    """Whether the network gives probabilities; the logits are then their logarithms."""

    def __call__(self, module: nn.Module, given: Any, found: Any) -> Any:
        logits = found if isinstance(found, Tensor) else self._chosen(_outputs(found))
        return log_of(logits) if self.logarithm else logits

    def _chosen(self, outputs: dict[str, Any]) -> Tensor:
        tensors = {name: value for name, value in outputs.items() if isinstance(value, Tensor)}
        if self.output:
            if self.output not in tensors:
                raise ConfigError(f"{self.where}.output: {self.output!r} is unknown; {_known(self.output, tensors)}")
            return tensors[self.output]
        fitting = [value for value in tensors.values() if value.dim() == self.axes and value.shape[1] == self.classes]
        if "logits" in tensors:
            return tensors["logits"]
        if not fitting:
            raise ConfigError(
                f"{self.where}: the network gives several outputs, and none of them is a tensor (batch, "
                f"{self.classes}{', …' if self.axes > 2 else ''}); name the logits with "
                f'{self.where.rpartition(" ")[2]}.output = "…". '
                f"{_known('', tensors)}"
            )
        return fitting[0]


def add_head(net: nn.Module, head: Head) -> nn.Module:
    """Make the network give only its logits, by means of a forward hook; return the same network."""
    net.register_forward_hook(head)
    return net


def head_of(net: nn.Module) -> Head | None:
    """The head that `add_head` added to the network; None if there is none."""
    return next((hook for hook in net._forward_hooks.values() if isinstance(hook, Head)), None)


def settle_head(net: nn.Module, whole: nn.Module, inputs: Tensor) -> None:
    """Find out whether the network gives probabilities, from its last operation and its outputs for `inputs`.

    `whole` is the network with its preprocessing. Raises ConfigError for independent sigmoids. Does nothing if the
    network cannot take the inputs, because later checks report this.
    """
    head = head_of(net)
    assert head is not None  # the caller has called add_head
    training, producers = net.training, _Producers()
    try:
        with torch.no_grad(), _same_numbers(), producers:
            answers = whole.eval()(inputs)
    except EdgekdError:
        raise
    except Exception:  # the user's own code can raise any exception
        return
    finally:
        net.train(training)
    if not isinstance(answers, Tensor) or answers.dim() != head.axes:
        return
    ending = producers.ending(answers)
    if ending == "Sigmoid":
        raise ConfigError(f"{head.where}: the network {sigmoid_words('its last operation is a sigmoid')}")
    head.logarithm = ending != "LogSoftmax" and are_probabilities(answers)


def are_probabilities(answers: Tensor) -> bool:
    """Whether every row of (B, C, …) along C is a probability distribution: numbers from 0 to 1 whose sum is 1."""
    sums = answers.double().sum(dim=1)
    return bool((answers >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all())


def are_sigmoids(answers: Tensor) -> bool:
    """Whether outputs (B, C) for real examples look like independent probabilities of the classes."""
    inside = bool((answers >= 0).all()) and bool((answers <= 1).all())
    return inside and not are_probabilities(answers) and float(answers.max() - answers.min()) > 0.5


def sigmoid_words(why: str) -> str:
    """The second part of a message about a network with sigmoid outputs."""
    return (
        f"gives each class a probability of its own ({why}), as for several labels at once; edgekd needs logits of "
        "classes that exclude one another: leave the sigmoid out"
    )


def log_of(probabilities: Tensor) -> Tensor:
    """Logits (B, C) whose softmax is the given probabilities (B, C)."""
    return probabilities.float().clamp(min=TINY).log()


def _outputs(found: Any) -> dict[str, Any]:
    """The network's outputs by name; the name of a tuple's item is its index."""
    if isinstance(found, Mapping):
        return {str(name): value for name, value in found.items()}
    if hasattr(found, "_asdict"):
        named: dict[str, Any] = found._asdict()
        return named | {str(number): value for number, value in enumerate(named.values())}
    if isinstance(found, tuple | list):
        return {str(number): value for number, value in enumerate(found)}
    return dict(vars(found)) if hasattr(found, "__dict__") else {}


def _known(name: str, tensors: dict[str, Tensor]) -> str:
    shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in tensors.items()) or "no tensor"
    hint = did_you_mean(name, tensors).split("Known:")[0] if name else ""
    return f"{hint}The network gives {shapes}."


class _Producers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records for each tensor whether a softmax, a sigmoid or an operation that only changes the shape made it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made: dict[int, tuple[str, Tensor, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            name = func.overloadpacket.__name__
            self._made.pop(id(found), None)  # an entry of a deleted tensor with the same id
            if name in _ENDINGS or name in _PASSING:
                self._made[id(found)] = (name, found, args[0])
        return found

    def ending(self, answers: Tensor) -> str:
        """The last operation that changed values, if it is in _ENDINGS; else an empty string."""
        name, _, source = self._made.get(id(answers), ("", None, None))
        while name in _PASSING:
            name, _, source = self._made.get(id(source), ("", None, None))
        return _ENDINGS.get(name, "")


@contextlib.contextmanager
def _same_numbers() -> Iterator[None]:
    """Restore the random generator's state afterwards, in case the network draws random numbers during the check."""
    with torch.random.fork_rng(devices=[]):
        yield
