"""What identifies a run in addition to its card: the structure of its networks, and its data."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from edgekd.candidate import Shape, shape_name
from edgekd.card import Card
from edgekd.data.arrays import digest
from edgekd.data.images import Split
from edgekd.data.sources import data_marks
from edgekd.distill.tasks.known import learning_of
from edgekd.errors import ConfigError
from edgekd.nets.families import MAX_BUILT, UnbuildableError, make, shapes_of
from edgekd.nets.teachers import make_teacher_net
from edgekd.run import Run
from edgekd.tasks.known import task_of

__all__ = ["refuse_changes", "refuse_other_files", "structure", "structures", "structures_of"]

CANNOT_BE_BUILT = "cannot be built"
"""Stands for the structure of a candidate whose network cannot be built."""


def structure(net: nn.Module) -> str:
    """SHA-256 of the names, types and shapes of all parameters and buffers, and of the printed module tree."""
    tensors = [
        f"{name} {tensor.dtype} {tuple(tensor.shape)}" for name, tensor in net.state_dict(keep_vars=True).items()
    ]
    hidden = [f"{name} {tuple(tensor.shape)}" for name, tensor in net.named_buffers()]  # and those not saved
    tree = re.sub(r" at 0x[0-9a-f]+", "", str(net))
    return hashlib.sha256("\n".join([*tensors, *hidden, tree]).encode()).hexdigest()


def structures(card: Card, teacher_given: bool) -> dict[str, str]:
    """The structure of each network that this run may train, also of the student's shapes, as far as there are not too
    many to build them all; see `structures_of` for the one that is chosen.

    A teacher that is given (`teacher_given`) is left out: the SHA-256 of its file identifies it.
    """
    found = structures_of(card, shapes_of(card, card.student)[:MAX_BUILT])
    first = next((one for one in found.values() if one != CANNOT_BE_BUILT), None)
    if first:
        found["student"] = first  # run.json of earlier versions has the first shape alone, under this name
    if not teacher_given and card.teacher.family not in ("self", "onnx"):
        found["teacher"] = structure(make_teacher_net(card))
    for number, assistant in enumerate(card.assistants):
        found[f"assistants.{number}"] = structure(make(card, assistant, assistant.shape, "assistants"))
    return found


def structures_of(card: Card, shapes: Sequence[Shape]) -> dict[str, str]:
    """The structure of the student in each of the shapes, by the name that it has in run.json."""
    found = {}
    for shape in shapes:
        name = f"student {shape_name(shape)}" if shape else "student"
        try:
            found[name] = structure(make(card, card.student, shape, "student.knobs"))
        except UnbuildableError:
            found[name] = CANNOT_BE_BUILT
    return found


def refuse_changes(card: Card, run: Run, folder: Path | None, teacher_given: bool, chosen: Shape) -> None:
    """Raise ConfigError if the networks or the data of a finished run, whose student has the shape `chosen`, have
    changed since.

    The data are only read if the names, sizes or modification times of their files differ.
    """
    run.refuse_other_networks(structures(card, teacher_given) | structures_of(card, [chosen]))
    refuse_other_files(card, run, folder)


def refuse_other_files(card: Card, run: Run, folder: Path | None) -> None:
    """Raise ConfigError if the data of a finished run have changed since; they are only read if names, sizes or
    modification times of their files differ."""
    learning = learning_of(card.data)
    named = folder is not None or card.data.path or card.data.source in task_of(card.data).embedded
    if named and run.other_marks(data_marks(card, folder)):
        train, validation = learning.load(card, folder)
        run.refuse_other_data(digest(train) + digest(validation))
        _refuse_other_test(learning.load_test(card, folder, run.tokenizer), run)


def _refuse_other_test(test: Split, run: Run) -> None:
    """Raise ConfigError if the test data differ from the copy in the run's folder; do nothing if there is no copy."""
    inputs, labels = run.data / "test.npy", run.data / "test.labels.npy"
    if not (inputs.exists() and labels.exists()):
        return
    kept, known = np.load(inputs, mmap_mode="r"), np.load(labels)
    same = np.array_equal(known, test.labels) and len(kept) == len(test)
    for start in range(0, len(test) if same else 0, 500):
        chosen = np.arange(start, min(start + 500, len(test)))
        same = same and np.array_equal(kept[chosen], test.read(chosen))
    if not same:
        raise ConfigError(
            f"{run.folder}: the test data have changed since this run read them; "
            "use --fresh to start this run again, or --out for another folder"
        )
