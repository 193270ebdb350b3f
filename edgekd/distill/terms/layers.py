"""Outputs of layers inside a network, which are named by module path and read with forward hooks."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.distill.terms.features import attention_map, pooled
from edgekd.errors import ConfigError, EdgekdError, did_you_mean, one_line, shown

__all__ = ["Taps", "as_config_error", "core", "outputs_of", "probe", "reduced"]


class Taps:
    """Forward hooks that store the outputs of the named layers in `values`, anew in every forward pass.

    A name is a module path. `layer1|attention` and `layer1|pooled` store the attention map, or the mean over the
    positions, instead of the whole output: some losses need only this, and it is much smaller.
    """

    def __init__(self, net: nn.Module, names: Sequence[str], where: str) -> None:
        self.values: dict[str, Tensor] = {}
        self._handles = [self._hook(net, name, where) for name in names]

    def _hook(self, net: nn.Module, name: str, where: str) -> Any:
        path = name.partition("|")[0]
        known = [path for path, _ in net.named_modules() if path]
        if path not in known:
            raise ConfigError(
                f"{where}: unknown layer {shown(path)}; {did_you_mean(path, known)} "
                "edgekd models CARD --layers shows each with its shape"
            )

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise ConfigError(
                    f"{where}: layer {shown(path)} gives a {type(output).__name__}; name one that gives a tensor"
                )
            try:
                self.values[name] = reduced(name, output)
            except ConfigError as error:
                raise ConfigError(f"{where}: layer {shown(path)}: {error}") from error

        return net.get_submodule(path).register_forward_hook(keep)

    def remove(self) -> None:
        """Remove the hooks from the network."""
        for handle in self._handles:
            handle.remove()


def reduced(name: str, output: Tensor) -> Tensor:
    """A layer's output (B, …), reduced as the part of `name` after the bar says."""
    form = name.partition("|")[2]
    if form == "attention":
        return attention_map(output)
    return pooled(output) if form == "pooled" else output


def core(net: nn.Module) -> nn.Module:
    """The network without its preprocessing; module paths and saved weights belong to this inner network."""
    inside = getattr(net, "net", None)
    return inside if isinstance(inside, nn.Module) else net


def outputs_of(net: nn.Module, inputs: Tensor, where: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """Path, class and output shape (without the batch dimension) of every layer that gives a tensor, in the order in
    which the layers finish.

    Raises ConfigError if the network cannot take the inputs.
    """
    found: dict[str, tuple[str, str, tuple[int, ...]]] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                found[path] = (path, type(module).__name__, tuple(output.shape[1:]))

        return hook

    handles = [layer.register_forward_hook(keep(path)) for path, layer in core(net).named_modules() if path]
    try:
        with torch.no_grad(), as_config_error(where):
            net.eval()(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())


def probe(net: nn.Module, inputs: Tensor, names: Sequence[str], where: str) -> dict[str, torch.Size]:
    """The shapes (without the batch dimension) of those layers' outputs, and of the logits under the name `logits`.

    Raises ConfigError for an unknown layer, with the nearest known name, and if the network cannot take the inputs.
    """
    training = net.training
    taps = Taps(core(net), names, where)
    try:
        with torch.no_grad(), as_config_error(where):
            logits = net.eval()(inputs)
            if not isinstance(logits, Tensor):
                raise ConfigError(f"{where}: the network gives a {type(logits).__name__}; it should give its logits")
    finally:
        taps.remove()
        net.train(training)
    missing = [name for name in names if name not in taps.values]
    if missing:
        raise ConfigError(f"{where}: layer {shown(missing[0])} takes no part in the forward pass; name another")
    return {"logits": logits.shape[1:]} | {name: value.shape[1:] for name, value in taps.values.items()}


@contextlib.contextmanager
def as_config_error(where: str) -> Iterator[None]:
    """Turn any exception of a network into a ConfigError whose message begins with `where`, because the cause is the
    card: a size that the network cannot take, or the user's own code."""
    try:
        yield
    except EdgekdError:
        raise
    except Exception as error:
        raise ConfigError(f"{where}: the network cannot take the card's data: {one_line(error, 200)}") from error
