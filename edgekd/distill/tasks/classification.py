"""How images, sentences and keywords are learnt; see `Learning`."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd.data import clip_views, clips, image_examples, sources, text
from edgekd.data.examples import Examples
from edgekd.distill.distributed import World, device, summed
from edgekd.distill.optimise import autocast
from edgekd.distill.tasks.learning import Learning, as_it_is, nothing_kept, shares
from edgekd.distill.tasks.weighing import class_weights
from edgekd.distill.terms.losses import cross_entropy
from edgekd.recipe import Training

__all__ = ["IMAGES", "KEYWORDS", "SENTENCES", "accuracy"]


def accuracy(net: nn.Module, examples: Examples, precision: str, among: World = World()) -> float:  # noqa: B008 - frozen
    """Accuracy of `net` on the examples, from 0 to 1, in evaluation mode; the processes of `among` share the work."""
    net.eval()
    correct = torch.zeros((), dtype=torch.float64)
    with torch.no_grad(), autocast(precision):
        for chosen in shares(len(examples), among):
            batch = examples.batch(chosen, None)
            correct += (net(batch.inputs.to(device())).argmax(1).cpu() == batch.targets).sum()
    return float(summed(correct) if among.size > 1 else correct) / len(examples)


def _weights(training: Training, labels: NDArray[np.int64], data: Any, where: str) -> Tensor | None:
    return class_weights(training, labels, data.classes, where)


IMAGES = Learning(
    load=sources.load_train_and_validation,
    examine=sources.load_and_examine,
    require_test=sources.require_test,
    load_test=lambda card, folder, kept: sources.load_test(card, folder),
    keep=nothing_kept,
    settle=as_it_is,
    examples=lambda card, split: image_examples.examples(split, card.data, card.augment),
    loss=cross_entropy,
    weights=_weights,
    score=accuracy,
)

SENTENCES = Learning(
    load=text.load_text_training,
    examine=text.examine_text,
    require_test=text.require_test_text,
    load_test=text.load_test_text,
    keep=text.keep_tokenizer,
    settle=text.settled,
    examples=text.text_examples,
    loss=cross_entropy,
    weights=_weights,
    score=accuracy,
)

KEYWORDS = Learning(
    load=clips.load_clip_training,
    examine=clips.examine_clips,
    require_test=clips.require_clip_test,
    load_test=lambda card, folder, kept: clips.load_clip_test(card, folder),
    keep=nothing_kept,
    settle=as_it_is,
    examples=clip_views.clip_examples,
    loss=cross_entropy,
    weights=_weights,
    score=accuracy,
)
