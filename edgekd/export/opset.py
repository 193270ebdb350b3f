"""The opset of an ONNX file, and the range of opsets that a target's runtime loads; this module needs no torch."""

from pathlib import Path

import onnx
from onnx import version_converter

from edgekd.errors import InputError, one_line
from edgekd.target import Target

__all__ = ["opset_of", "within_range"]


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the default operator set; 1 if the model declares none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)


def within_range(model: onnx.ModelProto, path: Path, target: Target) -> onnx.ModelProto:
    """`model`, which is the file `path`, with an opset in the range of the target; an older one is converted to the
    oldest of the range.

    Raises InputError for a newer one, because a converter to an older opset may lose operators, and for a model that
    onnx cannot convert.
    """
    found, wanted = opset_of(model), target.opset
    if found > wanted.max:
        raise InputError(
            f"{path}: is of opset {found}, and target {target.name} has opset.max = {wanted.max}; export it again with "
            f"opset {wanted.export}, or raise opset.max if the device loads it"
        )
    if found >= wanted.min:
        return model
    try:
        converted: onnx.ModelProto = version_converter.convert_version(model, wanted.min)
    except Exception as error:  # the converter may raise any exception
        raise InputError(
            f"{path}: is of opset {found}, target {target.name} has opset.min = {wanted.min}, and onnx cannot convert "
            f"it ({one_line(error, 120)}); export it again with opset {wanted.export}, or lower opset.min"
        ) from error
    return converted
