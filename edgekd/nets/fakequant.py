"""Fake quantization: a network that computes in float, and rounds its values as its int8 file will.

The rounding of activations is placed where the exported file has a QuantizeLinear and a DequantizeLinear, so that ONNX
Runtime fuses every operation between them into one int8 kernel. Activations are quantised per tensor, weights per
channel and symmetrically to int8, and biases to int32 with the scale s_x · s_w. Numbers are rounded half to even, as in
ONNX. Gradients pass the rounding unchanged (straight-through estimator; Bengio et al. 2013, arXiv 1308.3432), and the
scales of the activations are learned (LSQ; Esser et al. 2020, arXiv 1902.08153).
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from edgekd.card import Data, TextData
from edgekd.errors import ConfigError, ModelError
from edgekd.nets.graph import folded_graph, kind_of, moved_activations
from edgekd.target import Quantization

__all__ = ["Quantizer", "calibrated", "deployable", "fake_quantized", "refuse_scheme"]

TINY = 1e-12
"""The smallest scale; it only replaces the scale of values that are all zero."""

BOUNDS = 64
"""Number of the bounds that are tried for the weights of a layer, each nine tenths of the one before."""

LARGEST_BIAS = 2.0**30
"""Biases are kept below this number of steps, so that they and the sum of products fit into 32 bits."""


def _rounded(x: Tensor) -> Tensor:
    """Round half to even; the gradient is that of the identity."""
    return x + (x.round() - x).detach()


class Quantizer(nn.Module):
    """Rounds activations to 256 levels: y = (clip(round(x / scale) + zero) − zero) · scale.

    While `observing`, it only records the range of its inputs.
    """

    def __init__(self, scheme: Quantization, positive: bool) -> None:
        super().__init__()
        self.kind = torch.uint8 if scheme.activation == "uint8" else torch.int8
        self.low, self.high = (0, 255) if scheme.activation == "uint8" else (-128, 127)
        self.positive, self.symmetric = positive, scheme.symmetric_activation
        self.observing = self.deployed = False
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("zero", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(2), persistent=False)

    @property
    def computes_relu(self) -> bool:
        """Whether clipping to the range of the levels is a ReLU, so that the file needs none."""
        return self.positive and not self.symmetric

    def forward(self, x: Tensor) -> Tensor:
        if self.observing:
            seen = self.get_buffer("seen")
            torch.stack([torch.minimum(seen[0], x.min()), torch.maximum(seen[1], x.max())], out=seen)
            return x
        scale, zero = self.scale.clamp(min=TINY), self.get_buffer("zero")
        if self.deployed:
            return _through_int8(x, scale.detach(), zero.to(self.kind), self.kind)
        # The gradient of a scale is divided as in LSQ, section 2.2, by the number of values it acts on.
        share = (x[0].numel() * self.high) ** -0.5
        scale = scale * share + (scale * (1 - share)).detach()
        levels = _rounded(x.float() / scale) + zero
        rounded: Tensor = (levels.clamp(self.low, self.high) - zero) * scale
        return rounded

    def settle(self) -> None:
        """Set scale and zero point by the range that was seen, which is widened to include 0."""
        low, high = (float(value) for value in self.get_buffer("seen"))
        middle = (self.low + self.high + 1) // 2
        if self.symmetric:
            scale, zero = max(-low, high) / (self.high - middle), middle
        else:
            low = 0.0 if self.positive else low
            scale = (high - low) / (self.high - self.low)
            zero = round(self.low - low / max(scale, TINY))
        with torch.no_grad():
            self.scale.fill_(max(scale, TINY))
            self.get_buffer("zero").fill_(zero)


class GlobalAverage(nn.Module):
    """The average of each map (B, C, H, W), as (B, C, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.deployed = False

    def forward(self, x: Tensor) -> Tensor:
        if self.deployed:
            shape = (*x.shape[:2], 1, 1)
            return torch.onnx.ops.symbolic("GlobalAveragePool", (x,), dtype=torch.float32, shape=shape)
        return F.adaptive_avg_pool2d(x, 1)


class Padding(nn.Module):
    """Puts zeros around the last axes; `widths` are those of torch's `pad`: before and after the last axis, before and
    after the one before it, and so on."""

    def __init__(self, widths: tuple[int, ...], quantizer: Quantizer) -> None:
        super().__init__()
        self.widths, self.of = widths, (quantizer,)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, self.widths)
        if not self.of[0].deployed:
            return padded
        # ONNX Runtime does not fuse Pad, so the file pads the levels themselves, between the two nodes.
        wide, of = [*self.widths, *[0] * (2 * x.dim() - len(self.widths))], self.of[0]
        scale, zero = of.scale.detach(), of.get_buffer("zero").to(of.kind)
        levels = torch.onnx.ops.symbolic("QuantizeLinear", (x, scale, zero), dtype=of.kind, shape=x.shape)
        widths = torch.tensor([*wide[-2::-2], *wide[::-2]])
        moved = torch.onnx.ops.symbolic("Pad", (levels, widths, zero), dtype=of.kind, shape=padded.shape)
        return torch.onnx.ops.symbolic("DequantizeLinear", (moved, scale, zero), dtype=x.dtype, shape=padded.shape)


class Again(nn.Module):
    """Marks, in the exported file alone, that values were moved and still have the levels of their quantizer."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.of = (quantizer,)  # in a tuple, so that it is not registered a second time

    def forward(self, x: Tensor) -> Tensor:
        return self.of[0](x) if self.of[0].deployed else x


class Activation(nn.Module):
    """ReLU, or ReLU6 with `top` = 6. It is left out of the exported file if the quantizer after it clips at the same
    values."""

    def __init__(self, top: float | None, quantizer: Quantizer) -> None:
        super().__init__()
        self.top, self.of = top, (quantizer,)

    def forward(self, x: Tensor) -> Tensor:
        if self.of[0].deployed and self.of[0].computes_relu:
            return x
        return F.relu(x) if self.top is None else F.hardtanh(x, 0.0, self.top)


class Layer(nn.Module):
    """A convolution or a matrix product with int8 weights and an int32 bias, both rounded in every step."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, source: Quantizer, scheme: Quantization) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(layer.weight.detach().clone()), None
        if layer.bias is not None:
            self.bias = nn.Parameter(layer.bias.detach().clone())
        self.of, self.per_channel, self.top = (source,), scheme.per_channel, 64 if scheme.reduce_range else 127
        self.convolution = (
            (layer.stride, layer.padding, layer.dilation, layer.groups) if isinstance(layer, nn.Conv2d) else None
        )
        self.observing = self.deployed = False
        self.register_buffer("power", torch.zeros(()), persistent=False)

    def scales(self) -> tuple[Tensor, Tensor]:
        """The scales of the weights (outputs,), or () for one scale, and of the bias."""
        rows = self.weight.detach().flatten(1).abs().amax(dim=1)
        largest = rows if self.per_channel else rows.max()
        scale, of_input = (largest / self.top).clamp(min=TINY), self.of[0].scale.detach().clamp(min=TINY)
        if self.bias is not None:  # a channel whose weights are almost zero may have a large bias
            bias = self.bias.detach().abs() if self.per_channel else self.bias.detach().abs().max()
            scale = torch.maximum(scale, bias / (of_input * LARGEST_BIAS))
        return scale, scale * of_input

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if self.observing:
            inputs = 1 if self.convolution else x.dim() - 1
            every = [axis for axis in range(x.dim()) if axis != inputs]
            self.power = self.get_buffer("power") + x.float().square().sum(every)
        else:
            weight, bias = self._exported() if self.deployed else self._rounded()
        if self.convolution is None:
            return F.linear(x, weight, bias)
        stride, padding, dilation, groups = self.convolution
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    def _rounded(self) -> tuple[Tensor, Tensor | None]:
        scale, of_bias = self.scales()
        wide = scale.view(-1, *(1,) * (self.weight.dim() - 1)) if self.per_channel else scale
        weight = _rounded(self.weight / wide).clamp(-self.top, self.top) * wide
        return weight, None if self.bias is None else _rounded(self.bias / of_bias) * of_bias

    def settle(self) -> None:
        """Clip the weights at the bound of the smallest error, which counts by the power of the values they multiply.

        Otherwise a channel whose values are always 0 spoils the one scale of a layer: its batch normalisation divides
        by nearly 0, and next to its folded weights those of all other channels are rounded to 0."""
        groups = self.convolution[3] if self.convolution else 1
        rows, each = self.weight.shape[:2]
        power = self.get_buffer("power").view(groups, each).repeat_interleave(rows // groups, dim=0)
        power = power.view(rows, each, *(1,) * (self.weight.dim() - 2))
        with torch.no_grad():
            largest = self.weight.abs().max()

            def error(bound: Tensor) -> float:
                scale = (bound / self.top).clamp(min=TINY)
                rounded = (self.weight / scale).round().clamp(-self.top, self.top) * scale
                return float((power * (rounded - self.weight).square()).sum())

            bound = min((largest * 0.9**step for step in range(BOUNDS)), key=error)
            self.weight.clamp_(-bound, bound)

    def deploy(self) -> None:
        """Keep the weights and the bias as whole numbers, for the export."""
        scale, of_bias = self.scales()
        weight, bias = (None if one is None else one.detach() for one in self._rounded())
        assert weight is not None
        wide = scale.view(-1, *(1,) * (weight.dim() - 1)) if self.per_channel else scale
        self.register_buffer("int8", (weight / wide).round().to(torch.int8))
        self.register_buffer("scale", scale)
        if bias is not None:
            self.register_buffer("int32", (bias / of_bias).round().to(torch.int32))
            self.register_buffer("of_bias", of_bias)
        self.deployed = True

    def _exported(self) -> tuple[Tensor, Tensor | None]:
        weight = _dequantized(self.get_buffer("int8"), self.get_buffer("scale"))
        return weight, None if self.bias is None else _dequantized(self.get_buffer("int32"), self.get_buffer("of_bias"))


def _through_int8(x: Tensor, scale: Tensor, zero: Tensor, kind: torch.dtype) -> Tensor:
    levels = torch.onnx.ops.symbolic("QuantizeLinear", (x, scale, zero), dtype=kind, shape=x.shape)
    return torch.onnx.ops.symbolic("DequantizeLinear", (levels, scale, zero), dtype=torch.float32, shape=x.shape)


def _dequantized(numbers: Tensor, scale: Tensor) -> Tensor:
    zeros = torch.zeros(scale.shape, dtype=numbers.dtype)
    axis: dict[str, Any] = {"axis": 0} if scale.dim() else {}
    return torch.onnx.ops.symbolic(
        "DequantizeLinear", (numbers, scale, zeros), axis, dtype=torch.float32, shape=numbers.shape
    )


def refuse_scheme(scheme: Quantization, where: str) -> None:
    """Raise ConfigError, which begins with `where`, if the scheme asks for weights other than symmetric int8, or for
    activations of another width."""
    if scheme.activation not in ("uint8", "int8"):
        raise ConfigError(
            f"{where}: quantization.activation: got {scheme.activation!r}; [recipe.qat] of the card trains for "
            "activations of 8 bits"
        )
    if scheme.weight != "int8":
        raise ConfigError(
            f"{where}: quantization.weight: got {scheme.weight!r}; [recipe.qat] of the card trains for 'int8' weights"
        )


def fake_quantized(net: nn.Module, data: Data | TextData, scheme: Quantization) -> fx.GraphModule:
    """A copy of `net` with folded batch normalisation, in which every layer computes with rounded weights and
    activations. `calibrated` must set its scales before it is used.

    Raises ModelError for an operation that would stay in float in the int8 file.
    """
    graph = folded_graph(net, data)
    moved_activations(graph)
    return _Placing(graph, scheme).place()


class _Placing:
    """Places the quantizers in a graph, node by node."""

    def __init__(self, graph: fx.GraphModule, scheme: Quantization) -> None:
        self.graph, self.scheme = graph, scheme
        self.quantizers: dict[fx.Node, Quantizer] = {}
        """The quantizer of each node whose values are rounded."""

    def place(self) -> fx.GraphModule:
        kinds = {node: kind_of(self.graph, node) for node in self.graph.graph.nodes}
        for node, kind in kinds.items():
            if kind == "input":
                self._after(node)
            elif kind in ("layer", "add"):
                self._compute(node, kind)
            elif kind in ("average", "cat"):
                self._as_global(node)
                self._after(node)
            elif kind in ("max", "moves"):
                self._again(node)
            elif kind == "pad":
                self._pad(node)
            elif kind not in ("output", "relu") or (kind == "relu" and node not in self.quantizers):
                raise ModelError(f"{self._named(node)} has no int8 kernel, so the network cannot be trained for int8")
        self.graph.graph.lint()
        self.graph.delete_all_unused_submodules()
        self.graph.recompile()
        return self.graph

    def _compute(self, node: fx.Node, kind: str) -> None:
        """A layer or an addition: its output is rounded after its activation, if it has one."""
        inputs = [one for one in node.args if isinstance(one, fx.Node)]
        if kind == "add" and len(inputs) != 2:
            raise ModelError(f"{self._named(node)} adds a constant, so the network cannot be trained for int8")
        if kind == "layer":
            layer = self.graph.get_submodule(str(node.target))
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
                raise ModelError(f"{self._named(node)} pads with other values than zeros")
            self._replace(node, Layer(layer, self.quantizers[inputs[0]], self.scheme))
        users = list(node.users)
        if len(users) == 1 and kind_of(self.graph, users[0]) == "relu":
            six = self._named(users[0]).lower().startswith("relu6")
            quantizer = self._after(users[0], positive=True)
            self.quantizers[users[0]] = quantizer
            self._as_module(users[0], Activation(6.0 if six else None, quantizer))
        elif not (kind == "layer" and all(user.op == "output" for user in users)):
            self._after(node)  # the logits stay in float: they would only lose precision

    def _after(self, node: fx.Node, positive: bool = False) -> Quantizer:
        """Round the values of `node` for all that use them."""
        quantizer = Quantizer(self.scheme, positive)
        self.quantizers[self._insert(node, quantizer)] = quantizer
        return quantizer

    def _as_global(self, node: fx.Node) -> None:
        """Replace an average over the whole map by a module that is exported as the one node with an int8 kernel."""
        given = self.graph.get_submodule(str(node.target)).output_size if node.op == "call_module" else node.args[1:2]
        if kind_of(self.graph, node) == "average" and given in (1, (1, 1), [1, 1], (1,), ((1, 1),), ([1, 1],)):
            self._as_module(node, GlobalAverage())

    def _pad(self, node: fx.Node) -> None:
        named: dict[str, Any] = dict(zip(("x", "pad", "mode", "value"), node.args, strict=False))
        given = named | node.kwargs
        source, widths = node.args[0], given["pad"]
        if given.get("mode", "constant") != "constant" or given.get("value"):
            raise ModelError(f"{self._named(node)} pads with other values than zeros")
        assert isinstance(source, fx.Node)
        self.quantizers[node] = self.quantizers[source]
        self._as_module(node, Padding(tuple(widths), self.quantizers[source]))

    def _again(self, node: fx.Node) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        quantizer = self.quantizers[source]
        self.quantizers[self._insert(node, Again(quantizer))] = quantizer

    def _insert(self, node: fx.Node, module: nn.Module) -> fx.Node:
        name = f"quantizer_{node.name}"
        self.graph.add_submodule(name, module)
        with self.graph.graph.inserting_after(node):
            added = self.graph.graph.call_module(name, (node,))
        node.replace_all_uses_with(added, delete_user_cb=lambda user: user is not added)
        return added

    def _replace(self, node: fx.Node, module: nn.Module) -> None:
        name = str(node.target).replace(".", "_") + "_int8"
        self.graph.add_submodule(name, module)
        node.target = name

    def _as_module(self, node: fx.Node, module: nn.Module) -> None:
        name = f"{node.name}_activation"
        self.graph.add_submodule(name, module)
        node.op, node.target, node.args, node.kwargs = "call_module", name, (node.args[0],), {}

    def _named(self, node: fx.Node) -> str:
        """The operation of a node for people: `GELU (act1)`."""
        if node.op == "call_module":
            return f"{type(self.graph.get_submodule(str(node.target))).__name__} ({node.target})"
        return f"{getattr(node.target, '__name__', node.target)} ({node.name})"


def calibrated(net: nn.Module, batches: Iterator[Tensor]) -> None:
    """Set the scale and the zero point of every quantizer in `net` by the range of its values for `batches`, which are
    inputs of `net`, and clip the weights of layers that have one scale for all of them."""
    net.eval()
    found: list[Quantizer | Layer] = [module for module in net.modules() if isinstance(module, Quantizer)]
    found += [module for module in net.modules() if isinstance(module, Layer) and not module.per_channel]
    for part in found:
        part.observing = True
    with torch.no_grad():
        for batch in batches:
            net(batch)
    for part in found:
        part.settle()
        part.observing = False


def deployable(net: fx.GraphModule) -> fx.GraphModule:
    """A copy whose export has QuantizeLinear and DequantizeLinear nodes and weights stored as int8. It can only be
    exported, not run."""
    copied = copy.deepcopy(net).eval()
    for module in copied.modules():
        if isinstance(module, Layer):
            module.deploy()
        elif isinstance(module, Quantizer | GlobalAverage):
            module.deployed = True
    return copied
