"""Networks as graphs of operations (torch.fx), with batch normalisation folded into the convolutions."""

import copy
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgekd.card import Data, TextData
from edgekd.errors import ModelError, one_line
from edgekd.nets.deployed import Deployed, noise_inputs
from edgekd.nets.folding import folded, refuse_change

__all__ = ["folded_graph", "kind_of", "moved_activations"]

_MODULES: dict[type[nn.Module], str] = {
    nn.Conv2d: "layer",
    nn.Linear: "layer",
    nn.ReLU: "relu",
    nn.ReLU6: "relu",
    nn.MaxPool2d: "max",
    nn.AvgPool2d: "average",
    nn.AdaptiveAvgPool2d: "average",
    nn.Flatten: "moves",
    nn.Dropout: "nothing",
    nn.Dropout2d: "nothing",
    nn.Identity: "nothing",
}
_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu",
    F.relu6: "relu",
    torch.relu: "relu",
    F.max_pool2d: "max",
    torch.max_pool2d: "max",
    F.avg_pool2d: "average",
    F.adaptive_avg_pool2d: "average",
    torch.flatten: "moves",
    torch.reshape: "moves",
    operator.getitem: "moves",
    F.pad: "pad",
    F.dropout: "nothing",
    operator.add: "add",
    operator.iadd: "add",
    torch.add: "add",
    torch.cat: "cat",
}
_METHODS = {"relu": "relu", "relu_": "relu", "flatten": "moves", "view": "moves", "reshape": "moves", "add": "add"}


def kind_of(graph: fx.GraphModule, node: fx.Node) -> str:
    """What a node does: `layer` (a convolution or matrix product), `relu`, `add`, `cat`, `max`, `average`, `moves`
    (moves values without changing them), `pad`, `nothing`, `input`, `output`; empty for all other operations."""
    if node.op in ("placeholder", "output"):
        return "input" if node.op == "placeholder" else "output"
    if node.op == "call_module":
        return _MODULES.get(type(graph.get_submodule(str(node.target))), "")
    if node.op == "call_function":
        return _FUNCTIONS.get(node.target, "")
    return _METHODS.get(str(node.target), "") if node.op == "call_method" else ""


def folded_graph(net: nn.Module, data: Data | TextData) -> fx.GraphModule:
    """A copy of `net` in evaluation mode as a graph, with folded branches and with each BatchNorm2d folded into the
    convolution before it.

    Raises ModelError if torch.fx cannot trace the network, or if the copy gives other logits.
    """
    whole = copy.deepcopy(folded(net, data)).eval()
    inputs = noise_inputs(data, 4)
    with torch.no_grad():
        expected = Deployed(whole, data).eval()(inputs)
    try:
        graph = _dropout_free(fx.symbolic_trace(whole))
        _fold_normalisation(graph)
        with torch.no_grad():
            answers = Deployed(graph, data).eval()(inputs)
    except Exception as error:  # the network's own code
        raise ModelError(f"torch.fx cannot trace the network: {one_line(error, 150)}") from error
    refuse_change(expected, answers, "batch normalisation")
    return graph


def _dropout_free(graph: fx.GraphModule) -> fx.GraphModule:
    """Remove the nodes that do nothing in evaluation mode."""
    for node in list(graph.graph.nodes):
        if kind_of(graph, node) == "nothing":
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    return _renewed(graph)


def _fold_normalisation(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        before = node.args[0] if node.args else None
        if not (isinstance(before, fx.Node) and len(before.users) == 1):
            continue
        if {node.op, before.op} != {"call_module"}:
            continue
        convolution, norm = graph.get_submodule(str(before.target)), graph.get_submodule(str(node.target))
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            graph.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(before)
            graph.graph.erase_node(node)
    _renewed(graph)


def moved_activations(graph: fx.GraphModule) -> None:
    """Put each ReLU that follows a maximum pooling before it, which gives the same values, so that the layer before
    both computes it."""
    for node in list(graph.graph.nodes):
        pool = node.args[0] if node.args else None
        if kind_of(graph, node) != "relu" or not isinstance(pool, fx.Node) or kind_of(graph, pool) != "max":
            continue
        if len(pool.users) == 1:
            source = pool.args[0]
            assert isinstance(source, fx.Node)
            node.replace_all_uses_with(pool)
            node.replace_input_with(pool, source)
            pool.replace_input_with(source, node)
            pool.prepend(node)
    _renewed(graph)


def _renewed(graph: fx.GraphModule) -> fx.GraphModule:
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph
