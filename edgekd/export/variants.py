"""Create the files to bench: the teacher, and the student in every precision of the target."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn
from torch.fx import GraphModule

from edgekd.bench.measure import Subject
from edgekd.card import Card
from edgekd.data.images import Split
from edgekd.export.onnx import export
from edgekd.export.pixels import normalize_rows
from edgekd.export.precisions import make_variant
from edgekd.export.shrink import save_model, shrink
from edgekd.export.teacher import export_teacher
from edgekd.figures import GIVEN
from edgekd.nets.deployed import count_macs, count_params
from edgekd.nets.fakequant import deployable
from edgekd.nets.folding import folded
from edgekd.nets.teachers import LoadedTeacher
from edgekd.run import Run
from edgekd.target import Precision, Target
from edgekd.tasks.known import task_of

__all__ = ["INT8_TRAINED", "calibration_images", "calibration_of", "export_variants", "precision_of"]

INT8_TRAINED = "student int8-qat"
"""The name of the variant that was trained for int8."""

TRAINED = {"student": "distilled", "pruned": "pruned, then distilled"}
"""How the networks were made, as the metadata of their files say."""

INT8 = ("DequantizeLinear", "QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear", "DynamicQuantizeLSTM")
"""Op types of which at least one is present in every quantised file, and none in others."""


def calibration_of(card: Card, target: Target, train: Split) -> NDArray[np.uint8] | None:
    """Return the images (n, H, W, C) for int8 calibration on this target; None for text, whose int8 needs no
    calibration.
    """
    dynamic = task_of(card.data).calibration == "dynamic"
    return None if dynamic else calibration_images(train, target.quantization.calibration_images)


def calibration_images(train: Split, count: int) -> NDArray[np.uint8]:
    """Return `count` training images (n, H, W, C), spread evenly over the set."""
    return train.read(np.linspace(0, len(train) - 1, min(count, len(train))).astype(np.int64))


def export_variants(
    card: Card,
    target: Target,
    teacher: LoadedTeacher,
    net: nn.Module,
    calibration: NDArray[np.uint8] | None,
    run: Run,
    notes: Mapping[str, str],
    trained_int8: GraphModule | None = None,
    pruned: nn.Module | None = None,
    name: str = "student",
) -> list[Subject]:
    """Export the teacher, the student in fp32, and the student in every other precision; existing files are kept.

    The student's `net` is the network that runs on the device, with its branches folded. `notes` are added to the
    metadata. `trained_int8` is the student after its training for int8, which is exported as a further int8 file, and
    `pruned` the pruned teacher, which is exported in every precision. `name` is how the variants of `net` are called:
    `pruned` if the teacher itself was pruned, and there is no student.
    """
    whole = GIVEN if name == "pruned" else "teacher"
    teacher_onnx = run.exported / f"{whole}-fp32.onnx"
    export_teacher(teacher, card, target, teacher_onnx, notes)
    provenance = {"teacher": teacher.file.name, **notes}
    own = folded(teacher.net, card.data) if teacher.net is not None else None
    subjects = [
        Subject(
            name=whole,
            file=teacher_onnx,
            precision="fp32",
            params=count_params(own) if own else None,
            macs=count_macs(own, card.data) if own else None,
        )
    ]
    subjects += _precisions(name, net, card, target, calibration, run, provenance)
    if trained_int8 is not None:
        file = run.exported / "student-int8-qat.onnx"
        if not file.exists():
            trained = {"trained": "distilled, then trained for int8", **provenance}
            _export_int8(trained_int8, card, target, file, trained, run)
        params, macs = subjects[-1].params, subjects[-1].macs
        subjects.append(Subject(name=INT8_TRAINED, file=file, precision="int8", params=params, macs=macs))
    if pruned is not None:
        subjects += _precisions("pruned", pruned, card, target, calibration, run, provenance)
    return subjects


def _export_int8(
    net: GraphModule, card: Card, target: Target, file: Path, provenance: dict[str, str], run: Run
) -> None:
    """Write a network that was trained for int8, in the small form of quantised files."""
    written = run.scratch / "int8-qat.onnx"
    export(deployable(net), card, target, written, provenance)
    model = onnx.load(written)
    if target.quantization.normalize_rows:
        normalize_rows(model)
    shrink(model)
    save_model(model, file)


def _precisions(
    name: str,
    net: nn.Module,
    card: Card,
    target: Target,
    calibration: NDArray[np.uint8] | None,
    run: Run,
    provenance: dict[str, str],
) -> list[Subject]:
    """Export one network in fp32 and in every other precision of the target."""
    fp32 = run.exported / f"{name}-fp32.onnx"
    if not fp32.exists():
        export(net, card, target, fp32, {"trained": TRAINED[name], **provenance})
    others: list[Precision] = [precision for precision in target.precisions if precision != "fp32"]
    precisions: list[Precision] = ["fp32", *others]
    params, macs = count_params(net), count_macs(net, card.data)
    subjects = []
    for precision in precisions:
        file = run.exported / f"{name}-{precision}.onnx"
        if not file.exists():
            make_variant(fp32, precision, target, calibration, file)
        subjects.append(Subject(name=f"{name} {precision}", file=file, precision=precision, params=params, macs=macs))
    return subjects


def precision_of(file: Path) -> Precision:
    """Derive the precision of any ONNX file from its nodes and weights."""
    model = onnx.load(file)
    if any(node.op_type in INT8 for node in model.graph.node):
        return "int8"
    if any(weights.data_type == onnx.TensorProto.INT8 and len(weights.dims) > 1 for weights in model.graph.initializer):
        return "int8"  # the weights alone
    halves = any(weights.data_type == onnx.TensorProto.FLOAT16 for weights in model.graph.initializer)
    return "fp16" if halves else "fp32"
