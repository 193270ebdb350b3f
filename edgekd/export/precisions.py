"""Write an fp32 file in another precision, of a model that generates both files. This module needs no torch."""

from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from edgekd.export.quantize import quantize, quantize_weights, to_half
from edgekd.export.shrink import save_model
from edgekd.external import decoder_of, generates, name_decoder
from edgekd.scratch import scratch
from edgekd.target import Precision, Target

__all__ = ["make_variant"]


def make_variant(fp32: Path, precision: Precision, target: Target, images: NDArray[Any] | None, path: Path) -> None:
    """Write the fp32 file in `precision`; int8 is calibrated on uint8 `images` (n, H, W, C), or dynamic without images.

    The decoder of a model that generates is converted, too. Raises ModelError if the conversion fails.
    """
    model = onnx.load(fp32, load_external_data=False)
    if not generates(model):
        _write_variant(fp32, precision, target, images, path)
        return
    _write_variant(decoder_of(fp32), precision, target, images, decoder_of(path))
    name_decoder(model, decoder_of(path))  # the conversion keeps the metadata
    with scratch() as folder:
        named = folder / fp32.name
        save_model(model, named)
        _write_variant(named, precision, target, images, path)


def _write_variant(fp32: Path, precision: Precision, target: Target, images: NDArray[Any] | None, path: Path) -> None:
    if precision == "int8" and images is None:
        quantize_weights(fp32, path, target.quantization)
    elif precision == "int8" and images is not None:
        quantize(fp32, path, target.quantization, images)
    elif precision == "fp16":
        to_half(fp32, path)
    else:
        save_model(onnx.load(fp32), path)
