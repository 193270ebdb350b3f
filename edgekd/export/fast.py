"""A fast export to ONNX for networks of convolutions, for the many untrained candidates of a search.

`torch.onnx.export` needs two seconds for a small network, this needs a twentieth of one. It knows the operations that
such networks consist of and refuses all others, so that the caller can use the full exporter for these. The graph has
the same operators as that of the full exporter, with BatchNorm folded into the convolution before it.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgekd.export.trace import Call, Traced, trace

__all__ = ["UnknownOperationError", "convert"]


class UnknownOperationError(Exception):
    """The network calls an operation, or calls it in a way, that this exporter does not know."""


def convert(net: nn.Module, inputs: Tensor, opset: int, names: tuple[str, str], axis: str | int) -> onnx.ModelProto:
    """Convert `net` to ONNX by recording its forward pass on `inputs`, whose first axis becomes free and is called
    `axis`, or has that size. `names` are those of the input and the output.

    Raises UnknownOperationError if the network cannot be converted in this way. The result is only as general as one
    forward pass tells, so compare it with the network.
    """
    if len(inputs) < 2:
        raise ValueError("a batch of one cannot be told from other sizes of one; give at least two inputs")
    try:
        traced = trace(net, inputs)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UnknownOperationError(str(error)) from error
    graph = _Graph(traced, len(inputs))
    for call in traced.calls:
        graph.add(call)
    return graph.model(inputs, opset, names, axis)


class _Graph:
    def __init__(self, traced: Traced, batch: int) -> None:
        self.traced, self.batch = traced, batch
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, NDArray[Any]] = {}
        self.renamed: dict[str, str] = {}
        self.uses = Counter(name for call in traced.calls for name in _inputs(call))
        self.uses[traced.output] += 1
        self.conv_of: dict[str, onnx.NodeProto] = {}

    def add(self, call: Call) -> None:
        """Add the nodes of one operation."""
        name = call.op.removeprefix("aten.")
        function = _CONVERTERS.get(name) or _CONVERTERS.get(name.replace("_.", ".", 1))
        if function is None:
            raise UnknownOperationError(f"{call.op} is not known to the fast exporter")
        try:
            function(self, call)
        except (KeyError, TypeError, IndexError) as error:
            raise UnknownOperationError(f"{call.op} with these arguments is not known: {error!r}") from error

    def put(self, kind: str, inputs: list[str], call: Call, output: str = "", **attributes: Any) -> onnx.NodeProto:
        """Add a node, whose output has the call's name or `output`."""
        node = helper.make_node(kind, inputs, [output or call.output], **attributes)
        self.nodes.append(node)
        return node

    def value(self, thing: Any) -> str:
        """The name, in the ONNX graph, of an argument: a value, a constant or a number."""
        if not isinstance(thing, str):
            return self.constant(np.asarray(thing, np.float32))
        if thing in self.traced.constants:
            self.weights[thing] = self.traced.constants[thing].contiguous().numpy()
        return self.renamed.get(thing, thing)

    def constant(self, array: NDArray[Any]) -> str:
        """The name of an initializer with this content; equal contents share one."""
        key = f"{array.dtype.char}{'x'.join(map(str, array.shape))}_{'_'.join(map(str, array.ravel().tolist()))}"
        self.weights[key] = array
        return key

    def same(self, call: Call) -> None:
        """The operation changes nothing: its output is its first argument."""
        self.renamed[call.output] = self.value(call.args[0])
        self.uses[call.args[0]] += self.uses[call.output] - 1
        if call.args[0] in self.conv_of:
            self.conv_of[call.output] = self.conv_of[call.args[0]]

    def model(self, inputs: Tensor, opset: int, names: tuple[str, str], axis: str | int) -> onnx.ModelProto:
        final = {self.traced.input: names[0], self.renamed.get(self.traced.output, self.traced.output): names[1]}
        short = {name: f"v{number}" for number, name in enumerate(self._made())} | final
        # ONNX infers no named batch behind a Resize, without which ONNX Runtime fuses no addition there.
        known = [
            helper.make_tensor_value_info(short[name], TensorProto.FLOAT, [axis, *self.traced.shapes[name][1:]])
            for name in (node.output[0] for node in self.nodes if node.op_type == "Resize")
            if short[name] != names[1]
        ]
        for node in self.nodes:
            node.input[:] = [short.get(name, name) for name in node.input]
            node.output[:] = [short.get(name, name) for name in node.output]
            node.name = f"{node.op_type}_{node.output[0]}"
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(str(inputs.dtype).removeprefix("torch.")))
        first = helper.make_tensor_value_info(names[0], kind, [axis, *inputs.shape[1:]])
        rest = self.traced.shapes[self.traced.output][1:]
        last = helper.make_tensor_value_info(names[1], TensorProto.FLOAT, [axis, *rest])
        used = {name for node in self.nodes for name in node.input}
        weights = [numpy_helper.from_array(array, key) for key, array in self.weights.items() if key in used]
        graph = helper.make_graph(self.nodes, "main_graph", [first], [last], weights, value_info=known)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])

    def _made(self) -> list[str]:
        return [name for node in self.nodes for name in node.output]


def _inputs(call: Call) -> list[str]:
    found = []
    for one in (*call.args, *call.kwargs.values()):
        found += [part for part in (one if isinstance(one, tuple) else (one,)) if isinstance(part, str)]
    return found


def _option(call: Call, place: int, key: str, default: Any) -> Any:
    """The argument at this place or of this name."""
    return call.args[place] if len(call.args) > place else call.kwargs.get(key, default)


def _pair(value: Any) -> list[int]:
    values = list(value) if isinstance(value, tuple) else [value]
    return values * 2 if len(values) == 1 else values


def _convolution(graph: _Graph, call: Call) -> None:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = call.args
    if transposed or len(graph.traced.shapes[weight]) != 4 or weight not in graph.traced.constants:
        raise UnknownOperationError("this kind of convolution is not known to the fast exporter")
    inputs = [graph.value(x), graph.value(weight), *([graph.value(bias)] if bias is not None else [])]
    node = graph.put(
        "Conv",
        inputs,
        call,
        kernel_shape=graph.traced.shapes[weight][2:],
        strides=_pair(stride),
        pads=_pair(padding) * 2,
        dilations=_pair(dilation),
        group=groups,
    )
    graph.conv_of[call.output] = node


def _batch_norm(graph: _Graph, call: Call) -> None:
    x, *others = call.args[:5]
    epsilon = call.args[-1]
    gamma, beta, mean, var = (_array(graph, name) for name in others)
    conv = graph.conv_of.get(x)
    if conv is None or graph.uses[x] > 1:
        names = [graph.value(name) for name in others]
        graph.put("BatchNormalization", [graph.value(x), *names], call, epsilon=epsilon)
        return
    scale = gamma / np.sqrt(var + epsilon)
    weight = graph.weights[conv.input[1]]
    bias = graph.weights[conv.input[2]] if len(conv.input) > 2 else np.zeros_like(mean)
    name = conv.input[1]
    folded = f"{name}_{call.output}"  # another layer may share the weight
    graph.weights[folded] = (weight * scale[:, None, None, None]).astype(np.float32)
    graph.weights[f"{folded}.bias"] = ((bias - mean) * scale + beta).astype(np.float32)
    conv.input[:] = [conv.input[0], folded, f"{folded}.bias"]
    graph.renamed[call.output] = graph.renamed.get(x, x)


def _array(graph: _Graph, name: str) -> NDArray[Any]:
    array: NDArray[Any] = graph.traced.constants[name].numpy()
    return array


def _matrix(graph: _Graph, call: Call) -> None:
    bias, x, weight = call.args
    if call.kwargs or weight not in graph.traced.constants:
        raise UnknownOperationError("this kind of matrix product is not known to the fast exporter")
    turned = f"{weight}_turned"
    graph.weights[turned] = graph.traced.constants[weight].t().contiguous().numpy()
    graph.put("Gemm", [graph.value(x), turned, graph.value(bias)], call, transB=1)


def _plain(kind: str, **attributes: Any) -> Callable[[_Graph, Call], None]:
    """A node with one input and fixed attributes."""

    def add(graph: _Graph, call: Call) -> None:
        if len(call.args) > 1 or call.kwargs:
            raise UnknownOperationError(f"{call.op} with more arguments is not known to the fast exporter")
        graph.put(kind, [graph.value(call.args[0])], call, **attributes)

    return add


def _two(kind: str) -> Callable[[_Graph, Call], None]:
    """A node with two inputs, of which one may be a number."""

    def add(graph: _Graph, call: Call) -> None:
        if call.kwargs:
            raise UnknownOperationError(f"{call.op} with a factor is not known to the fast exporter")
        graph.put(kind, [graph.value(one) for one in call.args[:2]], call)

    return add


def _clip(graph: _Graph, call: Call) -> None:
    low, high = _option(call, 1, "min_val", -1.0), _option(call, 2, "max_val", 1.0)
    graph.put("Clip", [graph.value(call.args[0]), graph.value(float(low)), graph.value(float(high))], call)


def _clamp(graph: _Graph, call: Call) -> None:
    low, high = _option(call, 1, "min", None), _option(call, 2, "max", None)
    ends = ["" if end is None else graph.value(float(end)) for end in (low, high)]
    graph.put("Clip", [graph.value(call.args[0]), *(ends if ends[1] else ends[:1])], call)


def _silu(graph: _Graph, call: Call) -> None:
    x, gate = graph.value(call.args[0]), f"{call.output}_gate"
    graph.put("Sigmoid", [x], call, gate)
    graph.put("Mul", [x, gate], call)


def _max_pool(graph: _Graph, call: Call) -> None:
    x, kernel = call.args[:2]
    stride, padding = _option(call, 2, "stride", ()) or kernel, _option(call, 3, "padding", 0)
    dilation, ceil = _option(call, 4, "dilation", 1), _option(call, 5, "ceil_mode", False)
    sizes: dict[str, Any] = {"kernel_shape": _pair(kernel), "strides": _pair(stride), "pads": _pair(padding) * 2}
    graph.put("MaxPool", [graph.value(x)], call, dilations=_pair(dilation), ceil_mode=int(ceil), **sizes)


def _average_pool(graph: _Graph, call: Call) -> None:
    x, kernel = call.args[:2]
    stride, padding = _option(call, 2, "stride", ()) or kernel, _option(call, 3, "padding", 0)
    ceil, counted = _option(call, 4, "ceil_mode", False), _option(call, 5, "count_include_pad", True)
    if ceil or _option(call, 6, "divisor_override", None) is not None:
        raise UnknownOperationError("this kind of average pooling is not known to the fast exporter")
    sizes: dict[str, Any] = {"kernel_shape": _pair(kernel), "strides": _pair(stride), "pads": _pair(padding) * 2}
    graph.put("AveragePool", [graph.value(x)], call, count_include_pad=int(counted), **sizes)


def _adaptive_pool(graph: _Graph, call: Call) -> None:
    x, wanted = call.args
    given = graph.traced.shapes[x][2:]
    if any(size % out for size, out in zip(given, wanted, strict=True)):
        raise UnknownOperationError("average pooling to a size that does not divide the input is not known")
    kernel = [size // out for size, out in zip(given, wanted, strict=True)]
    graph.put("AveragePool", [graph.value(x)], call, kernel_shape=kernel, strides=kernel, count_include_pad=1)


def _enlarge(mode: str, **attributes: Any) -> Callable[[_Graph, Call], None]:
    """A map of another height and width, by fixed factors. Torch gives the factors last."""

    def add(graph: _Graph, call: Call) -> None:
        x, corners, factors = call.args[0], call.args[2:-2], call.args[2:][-2:]
        if call.kwargs or any(corners) or len(factors) < 2 or None in factors:
            raise UnknownOperationError("this kind of scaling is not known to the fast exporter")
        scales = graph.constant(np.array([1, 1, *factors], np.float32))
        graph.put("Resize", [graph.value(x), "", scales], call, mode=mode, **attributes)

    return add


def _restride(graph: _Graph, call: Call) -> None:
    """A pooled map of one place, of which torch changes the order in memory alone."""
    x, shape = call.args[:2]
    if tuple(shape) != tuple(graph.traced.shapes[x]) or any(size != 1 for size in shape[2:]):
        raise UnknownOperationError("other strides are not known to the fast exporter")
    graph.same(call)


def _mean(graph: _Graph, call: Call) -> None:
    x, axes = call.args[:2]
    if call.kwargs.get("dtype") is not None:
        raise UnknownOperationError("a mean in another type is not known to the fast exporter")
    kept = int(_option(call, 2, "keepdim", False))
    graph.put("ReduceMean", [graph.value(x), graph.constant(np.array(axes, np.int64))], call, keepdims=kept)


def _view(graph: _Graph, call: Call) -> None:
    """The batch stays free: it must be the first size before and after."""
    before, after = graph.traced.shapes[call.args[0]], call.shape
    if before[0] != graph.batch or after[0] != graph.batch:
        raise UnknownOperationError("a view that changes the batch is not known to the fast exporter")
    shape = graph.constant(np.array([-1, *after[1:]], np.int64))
    graph.put("Reshape", [graph.value(call.args[0]), shape], call)


def _slice(graph: _Graph, call: Call) -> None:
    x = call.args[0]
    axis, start = _option(call, 1, "dim", 0), _option(call, 2, "start", None) or 0
    end, step = _option(call, 3, "end", None), _option(call, 4, "step", 1)
    end = 2**63 - 1 if end is None else end
    if start == 0 and step == 1 and end >= graph.traced.shapes[x][axis]:
        graph.same(call)
        return
    if axis == 0:
        raise UnknownOperationError("a part of the batch is not known to the fast exporter")
    ends = [graph.constant(np.array([value], np.int64)) for value in (start, end, axis, step)]
    graph.put("Slice", [graph.value(x), *ends], call)


def _pad(graph: _Graph, call: Call) -> None:
    x, widths = call.args[:2]
    if _option(call, 2, "value", 0) != 0:
        raise UnknownOperationError("padding with another value than 0 is not known to the fast exporter")
    rank = len(graph.traced.shapes[x])
    begin, end = [0] * rank, [0] * rank
    for place in range(len(widths) // 2):  # torch names the last axis first
        begin[rank - 1 - place], end[rank - 1 - place] = widths[2 * place], widths[2 * place + 1]
    graph.put("Pad", [graph.value(x), graph.constant(np.array(begin + end, np.int64))], call, mode="constant")


def _concat(graph: _Graph, call: Call) -> None:
    axis = _option(call, 1, "dim", 0)
    if len(call.args[0]) == 1:
        graph.same(dataclasses.replace(call, args=call.args[0]))
        return
    graph.put("Concat", [graph.value(one) for one in call.args[0]], call, axis=axis)


def _cast(graph: _Graph, call: Call) -> None:
    if call.kwargs.get("dtype") is not torch.float32:
        raise UnknownOperationError("a conversion to another type than float32 is not known to the fast exporter")
    graph.put("Cast", [graph.value(call.args[0])], call, to=TensorProto.FLOAT)


def _permute(graph: _Graph, call: Call) -> None:
    if call.args[1][0] != 0:
        raise UnknownOperationError("a permutation of the batch is not known to the fast exporter")
    graph.put("Transpose", [graph.value(call.args[0])], call, perm=call.args[1])


def _transpose(graph: _Graph, call: Call) -> None:
    rank = len(call.shape)
    first, second = (place % rank for place in call.args[1:3])
    if 0 in (first, second):
        raise UnknownOperationError("a permutation of the batch is not known to the fast exporter")
    order = list(range(rank))
    order[first], order[second] = second, first
    graph.put("Transpose", [graph.value(call.args[0])], call, perm=order)


_CONVERTERS: dict[str, Callable[[_Graph, Call], None]] = {
    "convolution.default": _convolution,
    "native_batch_norm.default": _batch_norm,
    "addmm.default": _matrix,
    "relu.default": _plain("Relu"),
    "hardswish.default": _plain("HardSwish"),
    "hardsigmoid.default": _plain("HardSigmoid", alpha=1 / 6, beta=0.5),
    "sigmoid.default": _plain("Sigmoid"),
    "exp.default": _plain("Exp"),
    "tanh.default": _plain("Tanh"),
    "silu.default": _silu,
    "hardtanh.default": _clip,
    "clamp.default": _clamp,
    "add.Tensor": _two("Add"),
    "sub.Tensor": _two("Sub"),
    "mul.Tensor": _two("Mul"),
    "div.Tensor": _two("Div"),
    "max_pool2d_with_indices.default": _max_pool,
    "avg_pool2d.default": _average_pool,
    "_adaptive_avg_pool2d.default": _adaptive_pool,
    "upsample_nearest2d.default": _enlarge(
        "nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    ),
    "upsample_bilinear2d.default": _enlarge("linear", coordinate_transformation_mode="half_pixel"),
    "as_strided.default": _restride,
    "mean.dim": _mean,
    "view.default": _view,
    "_unsafe_view.default": _view,
    "slice.Tensor": _slice,
    "constant_pad_nd.default": _pad,
    "cat.default": _concat,
    "permute.default": _permute,
    "transpose.int": _transpose,
    "_to_copy.default": _cast,
    "clone.default": _Graph.same,
    "detach.default": _Graph.same,
    "alias.default": _Graph.same,
    "lift_fresh.default": _Graph.same,
}
"""Maps the name of an ATen operation, without its `aten.`, to the function that adds its ONNX nodes. An operation in
place has the same name with `_` before the point."""
