"""Relational knowledge distillation: distances and angles between the samples of a batch (Park et al. 2019, arXiv
1904.05068).

Features are what `pooled` takes: vectors (B, C), or tokens and maps that it averages (the paper takes the layer after
the last pooling). C need not be the same for student and teacher.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distill.terms.features import pooled
from edgekd.errors import ConfigError

__all__ = ["rkd_angle", "rkd_distance"]

SAME = 1e-6
"""Samples closer than this are one point: no distance, no direction and no gradient, which the angle's would otherwise
be of the order of 1 / distance."""


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over all B² ordered pairs of Huber(d_S(i, j) − d_T(i, j)), δ = 1.

    d(i, j) = ‖x_i − x_j‖₂ / μ, with μ the mean of the distances that are not zero, through which the student's gradient
    flows too (Park et al. 2019, section 3.2.1). The paper sums over pairs; the mean, of all B² as in the authors'
    code, keeps their weight (25) apart from the batch's size. Scale and translation of either side change nothing.
    """
    ours, theirs = (_relative(_distances(one)[1]) for one in _pair(student, teacher))
    return F.huber_loss(ours, theirs)


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over all B³ ordered triples of Huber(cos_S(i, j, k) − cos_T(i, j, k)), δ = 1.

    cos(i, j, k) is the cosine of the angle at sample j between the directions to i and to k, zero where two of them are
    one point (Park et al. 2019, section 3.2.2). The paper sums over triples; the authors' code takes this mean, for
    which their weight is 50. Scale, translation and rotation of either side change nothing. Takes O(B² C + B³) memory;
    each table of cosines is 8 MB at B = 128.
    """
    ours, theirs = (_cosines(one) for one in _pair(student, teacher))
    return F.huber_loss(ours, theirs)


def _pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if len(student) != len(teacher):
        raise ConfigError(
            f"rkd: the shapes of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be of the "
            "same images"
        )
    return pooled(student), pooled(teacher)


def _distances(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """x_i − x_j (B, B, C), zero for one point, and its length (B, B) with gradient zero there instead of NaN."""
    differences = vectors[:, None] - vectors[None]
    squares = differences.pow(2).sum(dim=2)
    apart = squares > SAME**2
    lengths = torch.where(apart, squares, 1.0).sqrt()
    return differences * apart[:, :, None], lengths * apart


def _relative(distances: Tensor) -> Tensor:
    """Distances (B, B) over the mean of those that are not zero; zeros where all are."""
    count = (distances > 0).sum()
    mean = distances.sum() / count.clamp(min=1)
    return distances / torch.where(count > 0, mean, 1.0)


def _cosines(vectors: Tensor) -> Tensor:
    """(B, B, B): at [j, i, k], between the directions from j to i and to k."""
    differences, lengths = _distances(vectors)
    directions = differences / torch.where(lengths > 0, lengths, 1.0)[:, :, None]
    return directions @ directions.transpose(1, 2)
