"""One fp32 export in every precision the target may run."""

import warnings
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekd.errors import ModelError, one_line
from edgekd.export.onnx import save_model
from edgekd.export.quantize import quantize
from edgekd.target import Precision, Target

__all__ = ["make_variant"]


def make_variant(fp32: Path, precision: Precision, target: Target, images: NDArray[np.uint8], path: Path) -> None:
    """Write the fp32 file in `precision`; int8 is calibrated on `images` (n, H, W, C) uint8.

    Raises ModelError if the conversion fails.
    """
    if precision == "int8":
        quantize(fp32, path, target.quantization, images)
    elif precision == "fp16":
        _half(fp32, path)
    else:
        save_model(onnx.load(fp32), path)


def _half(fp32: Path, path: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # weights below fp16's smallest number are rounded, as intended
            model = convert_float_to_float16(onnx.load(fp32), keep_io_types=True)
    except Exception as error:  # the converter raises whatever its parts raise
        raise ModelError(f"{fp32}: ONNX Runtime's converter cannot make it fp16: {one_line(error)}") from error
    save_model(model, path)
