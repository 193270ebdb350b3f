"""Structured pruning: whole channels are removed, so that the result is a smaller dense network.

The library torch-pruning finds which channels depend on one another. The pruned network is described by plain data, the
sizes of its layers, and is built from them without the library.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.card import Data, TextData
from edgekd.errors import ModelError, one_line
from edgekd.imports import require
from edgekd.nets.cifar_resnet import CifarResNet
from edgekd.nets.deployed import Deployed, noise_inputs
from edgekd.recipe import Importance

__all__ = ["Widths", "narrowed", "prunable", "pruned", "require_pruning", "widths_of"]

Widths = dict[str, list[int]]
"""The sizes of each convolution, matrix product and normalisation by its name: inputs and outputs, or channels."""

_IMPORTANCE = {
    "magnitude": "GroupMagnitudeImportance",
    "taylor": "GroupTaylorImportance",
    "bn-scale": "BNScaleImportance",
}


def require_pruning() -> Any:
    """The library torch-pruning. Raises UnavailableError, with the pip command, if it is not installed."""
    return require("torch_pruning", "prune", "[recipe.prune]")


def prunable(net: nn.Module) -> nn.Module:
    """A copy of `net` that computes the same and in which every channel can be removed: the shortcuts of option A of a
    CIFAR ResNet become 1×1 convolutions whose weights are zeros and ones."""
    copied = copy.deepcopy(net)
    if isinstance(copied, CifarResNet):
        copied.with_convolutions()
    return copied


def widths_of(net: nn.Module) -> Widths:
    """The sizes of all layers that pruning changes, as plain data."""
    found: Widths = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            found[name] = [module.in_channels, module.out_channels, module.groups]
        elif isinstance(module, nn.Linear):
            found[name] = [module.in_features, module.out_features]
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            found[name] = [module.num_features]
    return found


def narrowed(net: nn.Module, widths: Widths) -> nn.Module:
    """A copy of `net`, which `prunable` made, with layers of these sizes and new weights; it needs no library.

    Raises ModelError if the sizes are of another network.
    """
    copied = copy.deepcopy(net)
    whole = widths_of(copied)
    if whole.keys() != widths.keys():
        other = sorted(whole.keys() ^ widths.keys())[0]
        raise ModelError(f"the sizes of the layers are of another network: {other} is only in one of them")
    for name, sizes in widths.items():
        if sizes != whole[name]:
            copied.set_submodule(name, _resized(copied.get_submodule(name), sizes))
    return copied.eval()


def _resized(layer: nn.Module, sizes: list[int]) -> nn.Module:
    resized: nn.Module
    if isinstance(layer, nn.Conv2d):
        inside, outside, groups = sizes
        how: dict[str, Any] = {name: getattr(layer, name) for name in _CONVOLUTION}
        resized = nn.Conv2d(inside, outside, groups=groups, bias=layer.bias is not None, **how)
    elif isinstance(layer, nn.Linear):
        resized = nn.Linear(sizes[0], sizes[1], bias=layer.bias is not None)
    else:
        assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)  # widths_of lists no others
        how = {name: getattr(layer, name) for name in _NORMALISATION}
        resized = type(layer)(sizes[0], **how)
    return resized


_CONVOLUTION = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
_NORMALISATION = ("eps", "momentum", "affine", "track_running_stats")


def pruned(
    net: nn.Module,
    data: Data | TextData,
    whole: Widths,
    ratio: float,
    *,
    importance: Importance = "magnitude",
    multiple: int = 8,
    loss: Callable[[nn.Module], Tensor] | None = None,
) -> nn.Module:
    """A copy of `net` in which each layer keeps 1 − `ratio` of the outputs that it has in `whole`, rounded to
    `multiple` and at least that many; the least important ones are removed. The last layer keeps its outputs.

    `magnitude` is the norm of all weights of a channel, `bn-scale` the factor of its batch normalisation (Liu et al.
    2017, arXiv 1708.06519) or, of a layer without one, the norm; `taylor` is the first-order change of `loss`, a
    function of the network (Molchanov et al. 2019, arXiv 1906.10771). Raises ModelError if torch-pruning cannot follow
    the network.
    """
    library = require_pruning()
    copied = copy.deepcopy(net).eval()
    measure, norm = (getattr(library.importance, _IMPORTANCE[name])() for name in (importance, "magnitude"))
    deployed = Deployed(copied, data)
    inputs = deployed.preprocess(noise_inputs(data, 2))
    try:
        graph = library.DependencyGraph().build_dependency(copied, inputs)
        if loss is not None:
            copied.zero_grad()
            loss(copied).backward()  # type: ignore[no-untyped-call]
        groups = list(graph.get_all_groups([_last_layer(copied, inputs)], (nn.Conv2d, nn.Linear)))
        for group in groups:
            layer, function = group[0][0].target.module, group[0][0].handler
            name = next(name for name, module in copied.named_modules() if module is layer)
            count, first = len(group[0][1]), whole[name][1]
            keep = min(first, max(multiple, round(first * (1 - ratio) / multiple) * multiple))
            if keep < count:
                group = graph.get_pruning_group(layer, function, list(range(count)))
                scores = measure(group)
                scores = norm(group) if scores is None else scores
                least = scores.argsort()[: count - keep].tolist()
                graph.get_pruning_group(layer, function, least).prune()
        copied.zero_grad()
        with torch.no_grad():
            copied(inputs)
    except Exception as error:  # the library and the network's own code
        raise ModelError(f"torch-pruning cannot prune the network: {one_line(error, 150)}") from error
    built = narrowed(net, widths_of(copied))  # as it is built again later, without the library
    built.load_state_dict(copied.state_dict())
    return built


def _last_layer(net: nn.Module, inputs: Tensor) -> nn.Module:
    """The convolution or matrix product that runs last; its outputs are the logits."""
    order: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: order.append(module))
        for module in net.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        net(inputs)
    for hook in hooks:
        hook.remove()
    if not order:
        raise ModelError("the network has no convolution or matrix product")
    return order[-1]
