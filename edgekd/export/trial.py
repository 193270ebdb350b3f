"""Try an exported file on a few real examples before any measurement or training."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgekd.card import Card
from edgekd.distill.trial import check_steady
from edgekd.errors import ConfigError, InputError, ModelError
from edgekd.export.onnx import MAX_RELATIVE_DIFFERENCE, cpu_logits
from edgekd.export.teacher import export_teacher
from edgekd.nets.deployed import Deployed
from edgekd.nets.families import FOREIGN
from edgekd.nets.outputs import are_sigmoids, sigmoid_words
from edgekd.nets.teachers import LoadedTeacher, make_teacher_net
from edgekd.target import Target
from edgekd.tasks.known import task_of

__all__ = ["check_answers", "try_teacher"]

COUNT = 2
"""Number of examples on which an exported file is tried."""


def try_teacher(given: LoadedTeacher | None, card: Card, target: Target, inputs: NDArray[Any], scratch: Path) -> None:
    """Export the given teacher, or an untrained one, and compare its answers on real `inputs`.

    The file is written to `scratch`, which is removed. Raises ConfigError or InputError if the teacher cannot be
    exported or if its answers cannot be used for distillation.
    """
    where = str(given.file) if given else f"{card.file}: teacher"
    teacher = given or LoadedTeacher(Deployed(make_teacher_net(card), card.data).eval(), Path(card.file))
    task = task_of(card.data)
    axes, each = len(task.shape(card.data, inputs.shape)), not task.generates
    answers = check_steady(teacher.module, torch.from_numpy(np.array(inputs)), where, axes, each)
    if given and are_sigmoids(answers):
        raise InputError(f"{where}: {sigmoid_words('its answers lie between 0 and 1, and their sums are not 1')}")
    file = scratch / "teacher-trial.onnx"
    if teacher.net is not None and card.teacher.family not in FOREIGN:
        return  # edgekd's own networks can always be exported, and the export would take seconds
    try:
        export_teacher(teacher, card, target, file)
        check_answers(teacher.module, card, inputs, file)
    except ModelError as error:
        raise ConfigError(f"{where}: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_answers(module: nn.Module, card: Card, inputs: NDArray[Any], file: Path) -> None:
    """Raise ModelError if the exported file's answers differ from the PyTorch module's, for inputs given one by one."""
    single = [np.array(inputs[number : number + 1]) for number in range(min(COUNT, len(inputs)))]
    rows = [call for row in single for call in task_of(card.data).calls(row)]
    with torch.no_grad():
        expected = np.concatenate([module.eval()(torch.from_numpy(row)).numpy() for row in rows])
    try:
        logits = np.concatenate([cpu_logits(file, task_of(card.data), row) for row in rows])
    except Exception as error:  # onnxruntime's exceptions have no common base below Exception
        raise ModelError(f"ONNX Runtime cannot run the exported file: {error}") from error
    difference = float(np.abs(expected - logits).max()) / max(float(np.abs(expected).max()), 1e-12)
    if not difference <= MAX_RELATIVE_DIFFERENCE:
        raise ModelError(
            f"the exported file differs from torch on {len(rows)} real examples by {difference:.2g} of the largest "
            f"of its {task_of(card.data).output_words}, {MAX_RELATIVE_DIFFERENCE:g} is allowed"
        )
