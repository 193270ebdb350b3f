"""Folds networks that have branches in training but not in deployment: MobileOne, RepVGG, RepViT, FastViT, …"""

import copy
import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgekd.card import Data, TextData
from edgekd.errors import ModelError, one_line
from edgekd.nets.deployed import Deployed, noise_inputs
from edgekd.nets.outputs import head_of

__all__ = ["folded", "folded_on", "folded_structure", "refuse_change"]

METHODS = ("fuse", "reparameterize", "switch_to_deploy", "reparameterize_unireplknet", "structural_reparam")
"""Names of methods with which modules fold their branches. They take no arguments; `fuse` returns a new module."""

MAX_RELATIVE_DIFFERENCE = 1e-4
"""Largest allowed difference between the logits before and after folding, relative to the largest logit."""


def folded(net: nn.Module, data: Data | TextData) -> nn.Module:
    """The network as it runs on a device: a copy with folded branches, or `net` itself if it has no branches to fold.

    Raises ModelError if the folding fails, or if the copy gives different logits.
    """
    return folded_on(net, lambda: Deployed(net, data).preprocess(noise_inputs(data, 4)))


def folded_on(net: nn.Module, inputs: Callable[[], Tensor]) -> nn.Module:
    """Like `folded`; the logits are compared on `inputs()`, which the network takes."""
    if not any(_method(module) for module in net.modules()):
        return net
    training, given = net.training, inputs()
    with torch.no_grad():
        expected = net.eval()(given)
    try:
        copied = _attempt(net)
    finally:
        net.train(training)
    with torch.no_grad():
        answers = copied.eval()(given)
    refuse_change(expected, answers, "the branches of the network", f" ({_names(net)})")
    return copied


def refuse_change(before: Tensor, after: Tensor, what: str, where: str = "") -> None:
    """Raise ModelError if the logits (B, classes) before and after folding `what` differ by more than is allowed."""
    difference = float((after - before).abs().max() / before.abs().max().clamp(min=1e-12))
    if not difference <= MAX_RELATIVE_DIFFERENCE:
        raise ModelError(
            f"{what} cannot be folded: afterwards the answers differ by {difference:.2g} of the largest logit, "
            f"{MAX_RELATIVE_DIFFERENCE:g} is allowed{where}"
        )


def folded_structure(net: nn.Module) -> nn.Module:
    """Like `folded`, without the comparison of the logits: for networks that have no values, on the meta device."""
    return _attempt(net) if any(_method(module) for module in net.modules()) else net


def _attempt(net: nn.Module) -> nn.Module:
    """A folded copy. If folding every module fails, only the outermost ones are folded, because some networks fold all
    their parts in one call, after which a part cannot be folded again."""
    try:
        return _fold(copy.deepcopy(net), inside=True)
    except Exception:
        try:
            return _fold(copy.deepcopy(net), inside=False)
        except Exception as error:  # the network's own code
            raise ModelError(
                f"the branches of the network cannot be folded ({_names(net)}): {one_line(error)}"
            ) from error


def _fold(net: nn.Module, inside: bool) -> nn.Module:
    whole = _visit(net, inside)
    head = head_of(net)
    if whole is not net and head is not None:
        whole.register_forward_hook(head)
    return whole.eval()


def _visit(module: nn.Module, inside: bool) -> nn.Module:
    """Fold `module` and its children; return `module`, or the new module that its `fuse` returns. With `inside`, the
    children of a folded module are folded, too."""
    method = _method(module)
    if method:
        given = getattr(module, method)()
        module = given if isinstance(given, nn.Module) else module
    if inside or not method:
        for name, child in list(module.named_children()):
            replaced = _visit(child, inside)
            if replaced is not child:
                setattr(module, name, replaced)
    return module


def _method(module: nn.Module) -> str:
    """The name of the method with which the module folds its branches; empty if it has none."""
    for name in METHODS:
        method = getattr(type(module), name, None)  # of the class, because a child module may have this name
        if inspect.isfunction(method):
            _, *others = inspect.signature(method).parameters.values()
            kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
            if all(one.default is not one.empty or one.kind in kinds for one in others):
                return name
    return ""


def _names(net: nn.Module) -> str:
    found = {f"{type(module).__name__}.{_method(module)}" for module in net.modules() if _method(module)}
    return ", ".join(sorted(found))
