"""Sequence-level distillation: the teacher's own translations become the targets of the student."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.card import Card
from edgekd.data.examples import Examples
from edgekd.data.translation import PairExamples, retargeted
from edgekd.distill.cache.blocks import file_bytes
from edgekd.distill.cache.files import cache_folder, cache_limit_bytes
from edgekd.distill.cache.outputs import key_of
from edgekd.distill.cache.store import Compute, fits, open_cache, outputs
from edgekd.distill.distributed import barrier, device, world
from edgekd.distill.optimise import autocast
from edgekd.errors import ConfigError
from edgekd.nets.generation import generate
from edgekd.nets.teachers import LoadedTeacher
from edgekd.nets.translation import Seq2Seq
from edgekd.tasks.translation import TRANSLATION

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


def rewritten(card: Card, teacher: LoadedTeacher, examples: Examples) -> Examples:
    """The examples with the targets that `recipe.sequences` asks for.

    The teacher writes its translations by beam search once; the cache of its outputs keeps them, block by block.
    Raises ConfigError if the cache has no room for them.
    """
    recipe = card.recipe
    if recipe.sequences == "data":
        return examples
    net, among = teacher.net, world()
    assert isinstance(examples, PairExamples) and isinstance(net, Seq2Seq)  # refuse_sequences has checked it
    search = {"beam": recipe.sequence_beam, "length_penalty": card.data.length_penalty}
    parts = key_of(teacher, examples, recipe) | {"search": search}
    shown = {"teacher": teacher.file.name, "data": card.name}
    limit = cache_limit_bytes()
    with open_cache(cache_folder(), parts, len(examples), limit, block=TRANSLATION.together, shown=shown) as cache:
        wanted = {"sequences": file_bytes((len(examples), card.data.max_length), np.int32)}
        if among.first and not fits(cache, wanted):
            raise ConfigError("recipe.sequences: the cache has no room for the teacher's translations")
        net.eval().to(device())
        write = _writer(card, net, examples)
        found = outputs(cache, 0, ("sequences",), write, among.rank, among.size, barrier)  # nothing is augmented
        net.to("cpu")
        return retargeted(examples, np.array(found["sequences"]), recipe.sequences == "both")


def _writer(card: Card, net: Seq2Seq, examples: PairExamples) -> Compute:
    """A function that gives the teacher's translations (n, max_length) of the sentences at n positions."""
    data, recipe = card.data, card.recipe

    def write(chosen: NDArray[np.int64]) -> Mapping[str, NDArray[Any]]:
        some = examples.sources[chosen]
        with autocast(recipe.precision):
            ids = generate(net, some, data.max_length, recipe.sequence_beam, data.length_penalty)
        return {"sequences": ids.astype(np.int32)}

    return write
