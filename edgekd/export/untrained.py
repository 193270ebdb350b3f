"""Write an untrained network in the precisions of a target, as fast as its operations allow."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgekd.card import Card
from edgekd.errors import ModelError
from edgekd.export.fast import UnknownOperationError, convert
from edgekd.export.onnx import completed, describe, export, exported_part, save_model
from edgekd.export.ort import deployed_file
from edgekd.export.precisions import make_variant
from edgekd.export.trial import check_answers
from edgekd.nets.deployed import Deployed
from edgekd.target import Target
from edgekd.tasks.known import task_of

__all__ = ["export_untrained", "unequal", "write_precisions"]

CALIBRATION = 8
"""Number of images for the calibration of an untrained network: its scales do not change its latency or size."""


def unequal(net: nn.Module) -> nn.Module:
    """Change the biases and the factors of normalisations of an untrained network a little, in place; return it.

    They are all equal at first, and equal tensors are stored only once, so the file would be smaller than that of the
    trained network.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.dim() == 1 and tensor.dtype.is_floating_point:
                tensor += 0.1 * torch.rand(tensor.shape, generator=generator)
    return net


def export_untrained(net: nn.Module, card: Card, target: Target, inputs: NDArray[Any], path: Path) -> bool:
    """Write `net` as ONNX and compare its answers on the first of the real `inputs` with torch's; return whether the
    fast exporter could do it. Otherwise the full exporter does.

    Raises ModelError if torch cannot export it either, or if the answers differ.
    """
    module = Deployed(net, card.data).eval()
    # Its scores say nothing: as many boxes as possible are compared, so that a trained network takes no longer.
    card = (
        dataclasses.replace(card, export=dataclasses.replace(card.export, nms_score=0.0)) if card.export.nms else card
    )
    provenance = {"trained": "no"}
    if task_of(card.data).generates:  # it has two files, which the fast exporter does not know
        export(net, card, target, path, provenance)
        check_answers(module, card, inputs, path)
        return False
    try:
        part, example, name = exported_part(net, card.data)
        axis = 1 if target.fixed_shapes else task_of(card.data).free[0]
        model = convert(part, example, target.opset.export, (name, task_of(card.data).output), axis)
        describe(model, card, target, provenance)
        save_model(completed(model, card), path)
        check_answers(module, card, inputs, path)
        return True
    except (UnknownOperationError, ModelError):
        export(net, card, target, path, provenance)
        check_answers(module, card, inputs, path)
        return False


def write_precisions(fp32: Path, target: Target, calibration: NDArray[np.uint8] | None) -> dict[str, Path]:
    """Write an untrained fp32 file in each other precision of the target beside it; return the file of each precision.

    `calibration` (n, H, W, C) holds images for int8, of which a few are used; None for int8 that needs none.
    """
    files: dict[str, Path] = {}
    few = None if calibration is None else calibration[:CALIBRATION]
    for precision in target.precisions:
        files[precision] = fp32
        if precision != "fp32":
            files[precision] = fp32.with_name(f"{fp32.stem}-{precision}.onnx")
            make_variant(fp32, precision, target, few, files[precision])
    return {precision: deployed_file(file, target) for precision, file in files.items()}
