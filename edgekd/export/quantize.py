"""Quantise to int8 with ONNX Runtime's own tool and a target's scheme: static, or dynamic for text. This module needs
no torch."""

import contextlib
import inspect
import io
import logging
import warnings
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgekd.errors import ModelError, one_line
from edgekd.export import front_end, resize
from edgekd.export.clip import clip_weights
from edgekd.export.equalize import correct_bias, equalize
from edgekd.export.pixels import normalize_rows
from edgekd.export.shrink import save_model, shrink
from edgekd.export.tied import gathers_of_tied_tables, tie
from edgekd.export.weights import store_weights
from edgekd.scratch import scratch
from edgekd.target import Quantization

__all__ = ["Examples", "prepare", "quantize", "quantize_prepared", "quantize_weights", "to_half"]

TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8, "uint16": QuantType.QUInt16}
FORMS = {"qdq": QuantFormat.QDQ, "qoperator": QuantFormat.QOperator}
METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
BATCH = 32

Examples = Mapping[str, NDArray[Any]]
"""Arrays by the name of the input that they are for; the first axis counts the examples."""


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    def __init__(self, examples: Examples, size: int) -> None:
        count = min(map(len, examples.values()))
        self.batches: Iterator[dict[str, NDArray[Any]]] = iter(
            # All batches have the same size: two of the calibration methods cannot take a smaller last batch.
            [
                {name: array[start : start + size] for name, array in examples.items()}
                for start in range(0, max(1, count - size + 1), size)
            ]
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self.batches, None)


@dataclass(frozen=True)
class _Calibration:
    """The examples by which a network is calibrated, and how many of them a call takes."""

    examples: Examples
    size: int

    def batches(self) -> _Batches:
        return _Batches(self.examples, self.size)


def quantize(source: Path, path: Path, scheme: Quantization, examples: Examples | NDArray[Any]) -> None:
    """Write `source` (fp32 ONNX) as static int8, calibrated on `examples`; a single array is for the first input.

    The file's metadata is kept, and everything else in it is made small. Raises ModelError if ONNX Runtime cannot
    quantise it.
    """
    with scratch() as folder:
        prepared = Path(folder, "prepared.onnx")
        prepare(source, prepared)
        quantize_prepared(prepared, path, scheme, examples, source)


def prepare(source: Path, path: Path) -> None:
    """Write `source` with shapes inferred and constants folded, as the quantization needs it.

    Raises ModelError if ONNX Runtime cannot do that.
    """
    try:
        with _quiet():
            quant_pre_process(source, path, skip_symbolic_shape=True)
    except Exception as error:  # the quantisation tool may raise any exception
        raise ModelError(f"{source}: ONNX Runtime cannot quantise it: {one_line(error)}") from error
    model = onnx.load(path)
    _name_nodes(model)
    onnx.save_model(model, path)


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name, because nodes are kept in float by their names."""
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"


def quantize_prepared(
    prepared: Path,
    path: Path,
    scheme: Quantization,
    examples: Examples | NDArray[Any],
    source: Path,
    in_float: Collection[str] = (),
) -> None:
    """Do the second half of `quantize`, for a file that `prepare` made of `source`.

    With float activations only the weights are stored in 8 bits, and nothing is calibrated. The nodes of `prepared`
    named in `in_float` are not quantised. The ranges of a calibration are kept beside
    `prepared` and used again, where this onnxruntime can do that.
    """
    original = onnx.load(source)
    if scheme.activation == "float":
        _keep_stored(onnx.load(prepared), original, path, scheme, in_float)
        return
    if not isinstance(examples, Mapping):
        examples = {original.graph.input[0].name: examples}
    calibration = _Calibration(examples, _fixed_batch(original) or BATCH)
    try:
        with _quiet():
            if scheme.equalize:
                prepared = _equalized(prepared)
            in_float = _in_float(prepared, original, in_float)
            model = _corrected(prepared, scheme, calibration, in_float)
    except Exception as error:  # the quantisation tool may raise any exception
        raise ModelError(f"{source}: ONNX Runtime cannot quantise it: {one_line(error)}") from error
    _keep_opset(model, onnx.load(prepared, load_external_data=False))
    if scheme.normalize_rows:
        normalize_rows(model)
    _keep(model, original, path)


def _in_float(prepared: Path, original: onnx.ModelProto, asked: Collection[str]) -> list[str]:
    """The names of all nodes that stay in float."""
    model = onnx.load(prepared)
    return [*_preprocessing(model), *_decoding(model, original), *asked]


def _corrected(
    prepared: Path, scheme: Quantization, calibration: _Calibration, in_float: Collection[str]
) -> onnx.ModelProto:
    """What ONNX Runtime's tool makes of the prepared file, after its weights were clipped and its biases corrected, if
    `scheme` asks for that."""
    source = _clipped(prepared, scheme, calibration, in_float) if scheme.clip_weights else prepared
    model = _static(source, scheme, calibration, in_float)
    if not scheme.correct_bias:
        return model
    corrected = onnx.load(prepared)  # with the weights as they were, so that what clipping takes away is corrected, too
    correct_bias(corrected, model, calibration.batches().batches)
    _take_constants(corrected, onnx.load(source))
    source = source.with_name(f"{source.stem}-corrected.onnx")
    onnx.save_model(corrected, source)
    source.with_suffix(f".{scheme.calibration}.json").unlink(missing_ok=True)  # ranges of other biases
    return _static(source, scheme, calibration, in_float)


def _equalized(prepared: Path) -> Path:
    path = prepared.with_name(f"{prepared.stem}-equalized.onnx")
    if not path.exists():
        model = onnx.load(prepared)
        equalize(model)
        onnx.save_model(model, path)
    return path


def _take_constants(model: onnx.ModelProto, other: onnx.ModelProto) -> None:
    """Give the constants of `model` the values that the `other` model has under the same names."""
    values = {tensor.name: tensor for tensor in other.graph.initializer}
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(values[tensor.name])


def _clipped(prepared: Path, scheme: Quantization, calibration: _Calibration, in_float: Collection[str]) -> Path:
    """The prepared file with clipped weights, which depend on the scheme and on the nodes that stay in float."""
    about = f"{scheme.weight} {scheme.reduce_range} {sorted(in_float)}"
    path = prepared.with_name(f"{prepared.stem}-clipped-{zlib.crc32(about.encode()):08x}.onnx")
    if not path.exists():
        model = onnx.load(prepared)
        clip_weights(model, scheme, calibration.batches().batches, in_float)
        onnx.save_model(model, path)
    return path


def _static(
    prepared: Path, scheme: Quantization, calibration: _Calibration, in_float: Collection[str]
) -> onnx.ModelProto:
    """What ONNX Runtime's tool makes of the prepared file."""
    with scratch() as folder:
        quantized = Path(folder, "int8.onnx")
        quantize_static(
            prepared,
            quantized,
            calibration.batches(),
            quant_format=FORMS[scheme.form],
            activation_type=TYPES[scheme.activation],
            weight_type=TYPES[scheme.weight],
            per_channel=scheme.per_channel,
            reduce_range=scheme.reduce_range,
            calibrate_method=METHODS[scheme.calibration],
            nodes_to_exclude=list(in_float),
            extra_options=_options(onnx.load(prepared), scheme),
            **_kept_ranges(prepared, scheme),
        )
        return onnx.load(quantized)


def _keep_opset(model: onnx.ModelProto, before: onnx.ModelProto) -> None:
    """Give the model the opset again that it had before the tool raised it to 21 for 16-bit operators, which are those
    of com.microsoft here. Where the conversion to 21 has changed an operator, the model keeps 21."""
    opsets = [next(e for e in each.opset_import if e.domain in ("", "ai.onnx")) for each in (model, before)]
    if opsets[0].version > opsets[1].version and not _operators(model) - _operators(before):
        opsets[0].version = opsets[1].version


def _operators(model: onnx.ModelProto) -> Counter[tuple[str, int, str]]:
    """The operators that do not quantise, with the number of their inputs and their attributes."""
    nodes = [node for node in model.graph.node if node.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    return Counter((n.op_type, len(n.input), str(sorted(n.attribute, key=lambda a: a.name))) for n in nodes)


def _options(model: onnx.ModelProto, scheme: Quantization) -> dict[str, bool]:
    """Options of the tool. Before opset 21 the 16-bit operators are those of com.microsoft, as QNN's page asks."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    wide = {"UseQDQContribOps": True} if scheme.activation == "uint16" and opset < 21 else {}
    return {"ActivationSymmetric": scheme.symmetric_activation, **wide}


def _kept_ranges(prepared: Path, scheme: Quantization) -> dict[str, Path]:
    if "calibration_cache_path" not in inspect.signature(quantize_static).parameters:
        return {}  # onnxruntime before 1.32
    return {"calibration_cache_path": prepared.with_suffix(f".{scheme.calibration}.json")}


def _keep_stored(
    model: onnx.ModelProto, original: onnx.ModelProto, path: Path, scheme: Quantization, in_float: Collection[str] = ()
) -> None:
    store_weights(model, scheme.per_channel, [*filter(None, _preprocessing(model)), *in_float])
    _keep(model, original, path)


def _fixed_batch(model: onnx.ModelProto) -> int | None:
    """The number of examples that each call must have; None if it is free."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    return dims[0].dim_value or None if dims else None


def quantize_weights(source: Path, path: Path, scheme: Quantization) -> None:
    """Write `source` (fp32 ONNX) with 8-bit weights; activations are quantised at run time, so no calibration is
    needed.

    Matrix products and LSTMs compute in 8 bits, embeddings are stored in 8 bits; with float activations in `scheme`,
    all weights are only stored in 8 bits. The file's metadata is kept. Raises ModelError if ONNX Runtime cannot
    quantise it.
    """
    original = onnx.load(source)
    with scratch() as folder, _quiet():
        prepared, quantized = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        try:
            # This step computes the weights of LSTMs, which torch writes as slices that are concatenated in the graph.
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            model = onnx.load(prepared)
            if scheme.activation == "float":
                _keep_stored(model, original, path, scheme)
                return
            _name_nodes(model)
            tied = gathers_of_tied_tables(model) if scheme.weight == "int8" else {}
            del model.graph.value_info[:]  # the tool transposes weights and would otherwise read their old shapes here
            quantize_dynamic(
                model,
                quantized,
                weight_type=TYPES[scheme.weight],
                per_channel=scheme.per_channel,
                reduce_range=scheme.reduce_range,
                nodes_to_exclude=list(tied),
            )
            model = onnx.load(quantized)
            tie(model, tied)
        except Exception as error:  # the quantisation tool may raise any exception
            raise ModelError(f"{source}: ONNX Runtime cannot quantise it: {one_line(error)}") from error
    _keep(model, original, path)


def to_half(source: Path, path: Path) -> None:
    """Write `source` (fp32 ONNX) in half precision, with inputs and outputs of the types that they have.

    Raises ModelError if ONNX Runtime's converter cannot do that.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rounding of weights below fp16's smallest number is intended
            model = onnx.load(source)
            in_float = [node.name for node in model.graph.node if node.name.startswith(front_end.PREFIX)]
            in_float += _decoding(model, model)  # energies of sound do not fit into fp16, nor do exact corners
            options = {"node_block_list": in_float} if in_float else {}
            model = convert_float_to_float16(model, keep_io_types=True, **options)
        OnnxModel(model).topological_sort()  # the converter puts casts of inputs at the end
    except Exception as error:  # the converter may raise any exception
        raise ModelError(f"{source}: ONNX Runtime's converter cannot make it fp16: {one_line(error)}") from error
    shrink(model)
    save_model(model, path)


def _keep(model: onnx.ModelProto, original: onnx.ModelProto, path: Path) -> None:
    """Save the small form of `model` with the metadata of the `original`."""
    del model.graph.value_info[:], model.metadata_props[:]  # shapes of inner values are not needed to run the model
    model.metadata_props.extend(original.metadata_props)
    front_end.with_formulas(model, original)
    shrink(model)
    save_model(model, path)


def _preprocessing(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes between the input and the first layer; int8 would slow them down without any
    benefit.
    """
    added = [node for node in model.graph.node if node.name.startswith((resize.PREFIX, front_end.PREFIX))]
    names = [node.name for node in added]
    value = added[-1].output[0] if added else model.graph.input[0].name
    while True:
        readers = [node for node in model.graph.node if value in node.input]
        if len(readers) != 1 or readers[0].op_type not in ("Transpose", "Cast", "Mul", "Add", "Sub", "Div"):
            return names
        names.append(readers[0].name)
        value = readers[0].output[0]


def _decoding(model: onnx.ModelProto, original: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes that make boxes and scores of what the last layers of a detector give.

    Corners are pixels, and exponents of distances: 8 bits are too coarse for them, and these nodes take little time.
    """
    if not any(entry.key == "suppression" for entry in original.metadata_props):
        return []
    makers = {value: node for node in model.graph.node for value in node.output}
    waiting, names = [entry.name for entry in model.graph.output], set[str]()
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.op_type not in ("Conv", "Gemm", "MatMul") and node.name not in names:
            names.add(node.name)
            waiting += node.input
    return sorted(names)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the quantiser's root-logger warnings about steps that edgekd has done already or omits deliberately."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
