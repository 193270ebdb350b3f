"""How translation is learnt; see `Learning`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd.data import translation
from edgekd.data.examples import Examples
from edgekd.distill.cache.tokens import KEPT
from edgekd.distill.distributed import World
from edgekd.distill.optimise import autocast
from edgekd.distill.tasks.learning import Learning
from edgekd.distill.terms.layers import core
from edgekd.distill.terms.losses import cross_entropy
from edgekd.errors import ConfigError
from edgekd.nets.generation import generate
from edgekd.nets.translation import Seq2Seq
from edgekd.recipe import Training
from edgekd.tasks.translation import TRANSLATION, texts_of, tokenizer_from

__all__ = ["PAIRS", "bleu"]


def bleu(net: nn.Module, examples: Examples, precision: str, among: World = World()) -> float:  # noqa: B008 - frozen
    """BLEU of the greedy translations of `net` on the examples, from 0 to 100; every process computes all of it."""
    assert isinstance(examples, translation.PairExamples)  # the task has no others
    inner = core(net)
    assert isinstance(inner, Seq2Seq)  # the task has no other families
    inner.eval()
    with autocast(precision):
        ids = generate(inner, examples.sources, int(examples.key["max_length"]))
    texts = texts_of(ids, tokenizer_from(examples.tokenizer, "its tokenizer"))
    return TRANSLATION.score(texts, np.asarray(examples.labels))["bleu"]


def _no_weights(training: Training, labels: NDArray[Any], data: Any, where: str) -> Tensor | None:
    if training.class_weights != "none":
        raise ConfigError(f"{where}: has no effect with task = {TRANSLATION.name!r}, which has no classes; drop it")
    return None


PAIRS = Learning(
    load=translation.load_pairs_training,
    examine=translation.examine_pairs,
    require_test=translation.require_test_pairs,
    load_test=translation.load_test_pairs,
    keep=translation.keep_pair_tokenizer,
    settle=translation.settled_pairs,
    examples=translation.pair_examples,
    loss=cross_entropy,
    groups=KEPT,
    weights=_no_weights,
    score=bleu,
)
