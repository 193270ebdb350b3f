"""Quantise to int8 with ONNX Runtime's own tool and the target's scheme: static QDQ for images, dynamic for text."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
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
from edgekd.export.onnx import save_model
from edgekd.export.resize import PREFIX
from edgekd.scratch import scratch
from edgekd.target import Quantization

__all__ = ["quantize", "quantize_weights"]

TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
BATCH = 32


class _Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    def __init__(self, name: str, images: NDArray[np.uint8]) -> None:
        self.batches: Iterator[NDArray[np.uint8]] = iter(
            # All batches have the same size: two of the calibration methods cannot take a smaller last batch.
            [images[start : start + BATCH] for start in range(0, max(1, len(images) - BATCH + 1), BATCH)]
        )
        self.name = name

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {self.name: batch}


def quantize(source: Path, path: Path, scheme: Quantization, images: NDArray[np.uint8]) -> None:
    """Write `source` (fp32 ONNX) as int8 QDQ, calibrated on `images` (n, H, W, C).

    The file's metadata is kept. Raises ModelError if ONNX Runtime cannot quantise it.
    """
    original = onnx.load(source)
    with scratch() as folder, _quiet():
        prepared, quantized = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        try:
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                quantized,
                _Images(original.graph.input[0].name, images),
                quant_format=QuantFormat.QDQ,
                activation_type=TYPES[scheme.activation],
                weight_type=TYPES[scheme.weight],
                per_channel=scheme.per_channel,
                reduce_range=scheme.reduce_range,
                calibrate_method=METHODS[scheme.calibration],
                nodes_to_exclude=_preprocessing(onnx.load(prepared)),
                extra_options={"ActivationSymmetric": scheme.symmetric_activation},
            )
        except Exception as error:  # the quantisation tool may raise any exception
            raise ModelError(f"{source}: ONNX Runtime cannot quantise it: {one_line(error)}") from error
        model = onnx.load(quantized)
    _keep(model, original, path)


def quantize_weights(source: Path, path: Path, scheme: Quantization) -> None:
    """Write `source` (fp32 ONNX) with 8-bit weights; activations are quantised at run time, so no calibration is
    needed.

    Matrix products and LSTMs compute in 8 bits, embeddings are stored in 8 bits. The file's metadata is kept. Raises
    ModelError if ONNX Runtime cannot quantise it.
    """
    original = onnx.load(source)
    with scratch() as folder, _quiet():
        prepared, quantized = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        try:
            # This step computes the weights of LSTMs, which torch writes as slices that are concatenated in the graph.
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            model = onnx.load(prepared)
            del model.graph.value_info[:]  # the tool transposes weights and would otherwise read their old shapes here
            quantize_dynamic(
                model,
                quantized,
                weight_type=TYPES[scheme.weight],
                per_channel=scheme.per_channel,
                reduce_range=scheme.reduce_range,
            )
        except Exception as error:  # the quantisation tool may raise any exception
            raise ModelError(f"{source}: ONNX Runtime cannot quantise it: {one_line(error)}") from error
        model = onnx.load(quantized)
    _keep(model, original, path)


def _keep(model: onnx.ModelProto, original: onnx.ModelProto, path: Path) -> None:
    del model.graph.value_info[:], model.metadata_props[:]  # shapes of inner values are not needed to run the model
    model.metadata_props.extend(original.metadata_props)
    save_model(model, path)


def _preprocessing(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes between the input and the first layer; int8 would slow them down without any
    benefit.
    """
    resizing = [node for node in model.graph.node if node.name.startswith(PREFIX)]
    names = [node.name for node in resizing]
    value = resizing[-1].output[0] if resizing else model.graph.input[0].name
    while True:
        readers = [node for node in model.graph.node if value in node.input]
        if len(readers) != 1 or readers[0].op_type not in ("Transpose", "Cast", "Mul", "Add", "Sub", "Div"):
            return names
        names.append(readers[0].name)
        value = readers[0].output[0]


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
