"""Sequence-level distillation: the teacher's own translations become the targets of the student."""

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch

from edgekd import units
from edgekd.card import Card
from edgekd.console import progress, say
from edgekd.data.examples import Examples
from edgekd.data.translation import PairExamples, retargeted
from edgekd.distill.digests import state_digest
from edgekd.distill.distributed import barrier, device, world
from edgekd.distill.optimise import autocast
from edgekd.errors import ConfigError
from edgekd.files import atomic
from edgekd.nets.generation import generate
from edgekd.nets.teachers import LoadedTeacher
from edgekd.nets.translation import Seq2Seq

__all__ = ["refuse_sequences", "rewritten"]


def refuse_sequences(card: Card, teacher: LoadedTeacher, examples: Examples) -> None:
    """Raise ConfigError if the recipe asks for the teacher's own translations, and the teacher cannot write any."""
    if card.recipe.sequences == "data":
        return
    if not isinstance(examples, PairExamples) or not isinstance(teacher.net, Seq2Seq):
        raise ConfigError(
            f"recipe.sequences: got {card.recipe.sequences!r}; it needs task = 'translation' and a teacher of edgekd's "
            "own families"
        )


def rewritten(card: Card, teacher: LoadedTeacher, examples: Examples, folder: Path) -> Examples:
    """The examples with the targets that `recipe.sequences` asks for.

    The teacher's translations are written once, by beam search, to a file in `folder` whose name depends on teacher,
    data and search.
    """
    recipe = card.recipe
    if recipe.sequences == "data":
        return examples
    assert isinstance(examples, PairExamples) and isinstance(teacher.net, Seq2Seq)  # refuse_sequences has checked it
    parts = [state_digest(teacher.net.state_dict()), dict(examples.key), recipe.sequence_beam, card.data.length_penalty]
    mark = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / f"sequences-{mark}.npy"
    if world().first and not path.exists():
        _write(card, teacher.net, examples, path)
    barrier()
    return retargeted(examples, np.load(path), recipe.sequences == "both")


def _write(card: Card, net: Seq2Seq, examples: PairExamples, path: Path) -> None:
    begin = time.perf_counter()
    net.eval().to(device())
    with progress() as bar, autocast(card.recipe.precision), torch.no_grad():
        task = bar.add_task("teacher: writes translations", total=len(examples))
        data, width = card.data, card.recipe.sequence_beam
        written = generate(
            net,
            examples.sources,
            data.max_length,
            width,
            data.length_penalty,
            lambda done: bar.update(task, completed=done),
        )
    net.to("cpu")
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, written)
    say(f"teacher: {len(examples)} translations in {units.duration(time.perf_counter() - begin)}")
