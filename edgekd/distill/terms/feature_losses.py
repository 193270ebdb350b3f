"""The loss terms of a card's `features`, each made for the shapes of its two layers, with its learned modules."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekd.distill.terms.adversary import Discriminator, adversarial
from edgekd.distill.terms.contrast import Contrast
from edgekd.distill.terms.features import (
    Regressor,
    Vid,
    attention,
    channel,
    hint,
    match,
    pooled,
    similarity,
    smaller_size,
    vid,
)
from edgekd.distill.terms.relations import rkd_angle, rkd_distance
from edgekd.errors import ConfigError
from edgekd.recipe import Feature

__all__ = ["FeatureTerm", "feature_term", "teacher_name"]

Shapes = dict[str, torch.Size]


@dataclass(frozen=True)
class FeatureTerm:
    """A loss between a layer of the student and a layer of the teacher."""

    loss: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    """(student's features, teacher's features, indices (B,), step) -> a scalar."""
    learned: nn.Module | None = None
    among: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    """The loss at weighted places: (student's maps, teacher's maps, weights (B, H, W) at the places of the smaller
    map) -> a scalar. None if the term has no such form."""


def feature_term(feature: Feature, student: Shapes, teacher: Shapes, count: int, seed: int) -> FeatureTerm:
    """Make the term for layers of these shapes (without the batch dimension), given by layer name; the teacher's layer
    is found under its `teacher_name`.

    Raises ConfigError, which names both layers and their shapes, if the term does not fit them.
    """
    mine, theirs = student[feature.student or "logits"], teacher[teacher_name(feature)]
    try:
        term = _MAKERS[feature.term](feature, mine, theirs, count, seed)
        _try(feature, term, torch.randn(2, *mine), torch.randn(2, *theirs))
    except ConfigError as error:
        text = str(error).removeprefix(f"{feature.term}: ")
        raise ConfigError(
            f"recipe.features: {feature.term} between the student's {feature.student or 'logits'} {tuple(mine)} and "
            f"the teacher's {feature.teacher or 'logits'} {tuple(theirs)}: {text}"
        ) from error
    return term


def _try(feature: Feature, term: FeatureTerm, mine: Tensor, theirs: Tensor) -> None:
    """Check the shapes by computing the term once before training. Gradients stay enabled, because `adversarial` needs
    them. `crd` is not computed, because this would change its memory banks."""
    if feature.term == "crd":
        pooled(mine), pooled(theirs)
    elif feature.where == "foreground":
        if mine.dim() != 4 or theirs.dim() != 4 or term.among is None:
            raise ConfigError('where = "foreground" is for maps (channels, height, width); choose such layers')
        term.among(mine, theirs, torch.ones(2, *smaller_size(mine, theirs)))
    else:
        term.loss(mine, theirs, torch.arange(2), 0)


def teacher_name(feature: Feature) -> str:
    """The name of the teacher's output for that term: its layer, and the reduction of its output if there is one."""
    if not feature.teacher:
        return "logits"
    form = {"attention": "|attention", "rkd": "|pooled", "crd": "|pooled", "adversarial": "|pooled"}
    return feature.teacher + form.get(feature.term, "")


def _simple(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., FeatureTerm]:
    return lambda *_: FeatureTerm(lambda mine, theirs, indices, step: function(mine, theirs))


def _match(*_: object) -> FeatureTerm:
    return FeatureTerm(lambda a, b, indices, step: match(a, b), among=match)


def _hint(feature: Feature, mine: torch.Size, theirs: torch.Size, count: int, seed: int) -> FeatureTerm:
    regressor = Regressor(mine, theirs)
    return FeatureTerm(
        lambda a, b, indices, step: hint(regressor, a, b),
        regressor,
        lambda a, b, weights: hint(regressor, a, b, weights),
    )


def _channel(feature: Feature, mine: torch.Size, theirs: torch.Size, count: int, seed: int) -> FeatureTerm:
    other = len(mine) == len(theirs) == 3 and mine[0] != theirs[0]
    widened = nn.Conv2d(mine[0], theirs[0], 1) if other else None  # as in the paper's section 3.2

    def among(mine: Tensor, theirs: Tensor, weights: Tensor | None) -> Tensor:
        return channel(widened(mine) if widened else mine, theirs, feature.channel_temperature, weights)

    return FeatureTerm(lambda a, b, indices, step: among(a, b, None), widened, among)


def _vid(feature: Feature, mine: torch.Size, theirs: torch.Size, count: int, seed: int) -> FeatureTerm:
    module = Vid(mine, theirs)
    return FeatureTerm(lambda a, b, indices, step: vid(module, a, b), module)


def _rkd(feature: Feature, *_: object) -> FeatureTerm:
    def loss(mine: Tensor, theirs: Tensor, indices: Tensor, step: int) -> Tensor:
        a, b = pooled(mine), pooled(theirs)
        return feature.distance_weight * rkd_distance(a, b) + feature.angle_weight * rkd_angle(a, b)

    return FeatureTerm(loss)


def _crd(feature: Feature, mine: torch.Size, theirs: torch.Size, count: int, seed: int) -> FeatureTerm:
    module = Contrast(
        _channels(mine),
        _channels(theirs),
        feature.embedding,
        count,
        min(feature.negatives, count - 1),
        feature.contrast_temperature,
        seed,
    )
    return FeatureTerm(lambda a, b, indices, step: module(pooled(a), pooled(b), indices, step), module)


def _adversarial(feature: Feature, mine: torch.Size, theirs: torch.Size, count: int, seed: int) -> FeatureTerm:
    judge = Discriminator(_channels(theirs), feature.hidden)
    # Vectors of another size are mapped to the teacher's size by a layer that is trained with the student.
    same = _channels(mine) == _channels(theirs)
    fitted = nn.Identity() if same else nn.Linear(_channels(mine), _channels(theirs))

    def loss(mine: Tensor, theirs: Tensor, indices: Tensor, step: int) -> Tensor:
        # `weight` scales only the student's gradient: the caller multiplies the term by it, hence the division.
        return adversarial(judge, fitted(pooled(mine)), pooled(theirs), feature.weight) / feature.weight

    return FeatureTerm(loss, nn.ModuleList([judge, fitted]))


def _channels(shape: torch.Size) -> int:
    """The number of channels C that `pooled` gives for features of this shape."""
    return shape[0] if len(shape) in (1, 3) else shape[-1] if len(shape) == 2 else math.prod(shape)


_MAKERS: dict[str, Callable[..., FeatureTerm]] = {
    "match": _match,
    "hint": _hint,
    "attention": _simple(attention),
    "similarity": _simple(similarity),
    "channel": _channel,
    "vid": _vid,
    "rkd": _rkd,
    "crd": _crd,
    "adversarial": _adversarial,
}
