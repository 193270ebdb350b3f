"""Training for int8 after the distillation: the student learns while it computes with rounded values."""

import dataclasses
import shutil
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd.candidate import Shape
from edgekd.card import Card
from edgekd.console import say
from edgekd.data.examples import Examples
from edgekd.distill.distributed import barrier, world
from edgekd.distill.student import TrainingOptions, learn
from edgekd.files import write_json
from edgekd.nets.deployed import Deployed
from edgekd.nets.fakequant import calibrated, fake_quantized
from edgekd.nets.teachers import LoadedTeacher
from edgekd.nets.weights import load_into, read_state, save_state
from edgekd.run import Run
from edgekd.target import Quantization

__all__ = ["train_for_int8"]

BATCH = 64
"""Number of examples in one forward pass of the calibration."""


def train_for_int8(
    card: Card,
    shape: Shape,
    net: nn.Module,
    teachers: Sequence[LoadedTeacher],
    data: tuple[Examples, Examples],
    run: Run,
    scheme: Quantization,
    options: TrainingOptions,
) -> GraphModule:
    """Continue the training of the student `net` with fake quantization by `scheme`; if the weights file of this
    training exists, only load it.

    The scales of the activations begin at the range of the first view of some training examples. Raises ModelError for
    a network that has operations without an int8 kernel.
    """
    assert card.recipe.qat is not None
    out = run.int8_weights
    graph = fake_quantized(net, card.data, scheme)
    if not out.exists():
        calibrated(Deployed(graph, card.data), _batches(data[0], scheme.calibration_images))
        tuned = dataclasses.replace(card, recipe=card.recipe.on_logits(card.recipe.qat))
        scratch = out.with_name("int8-qat-attempt-1")
        log = out.with_name("int8-qat-log")
        say(f"student: trained for int8 for {card.recipe.qat.epochs} epochs")
        history = learn(tuned, shape, graph, teachers, data, scratch, options, "int8-qat", log=log)
        if world().first:
            write_json(out.with_name("int8-qat-history.json"), {"schema_version": 1, "epochs": history})
            save_state(graph, out, {"card": card.name})
        barrier()
    if world().first:
        shutil.rmtree(out.with_name("int8-qat-attempt-1"), ignore_errors=True)
    load_into(graph, read_state(out), out)
    return graph.eval()


def _batches(examples: Examples, count: int) -> Iterator[Tensor]:
    chosen = np.linspace(0, len(examples) - 1, min(count, len(examples))).astype(np.int64)
    for start in range(0, len(chosen), BATCH):
        yield examples.batch(chosen[start : start + BATCH], 0).inputs
