"""Relational knowledge distillation: distances and angles between the samples of a batch (Park et al. 2019, arXiv
1904.05068).

Features are vectors (B, C), or tokens and maps, which `pooled` averages (the paper uses the layer after the last
pooling). C may differ between student and teacher.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distill.terms.features import pooled
from edgekd.errors import ConfigError

__all__ = ["rkd_angle", "rkd_distance"]

SAME = 1e-6
"""Samples closer than this count as one point: their distance, direction and gradient are zero. Otherwise the gradient
of the angle would be of the order of 1 / distance."""


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over all B² ordered pairs of Huber(d_S(i, j) − d_T(i, j)), δ = 1.

    d(i, j) = ‖x_i − x_j‖₂ / μ, where μ is the mean of the distances that are not zero; the student's gradient also
    flows through μ (Park et al. 2019, section 3.2.1). The paper sums over pairs; the mean over all B², as in the
    authors' code, makes their weight (25) independent of the batch size. Scaling or translating either side does not
    change the value.
    """
    ours, theirs = (_relative(_distances(one)[1]) for one in _pair(student, teacher))
    return F.huber_loss(ours, theirs)


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over all B³ ordered triples of Huber(cos_S(i, j, k) − cos_T(i, j, k)), δ = 1.

    cos(i, j, k) is the cosine of the angle at sample j between the directions to i and to k; it is zero if j and i, or
    j and k, are one point (Park et al. 2019, section 3.2.2). The paper sums over triples; the authors' code uses this
    mean, with a weight of 50. Scaling, translating or rotating either side does not change the value. It needs
    O(B² C + B³) memory; each table of cosines takes 8 MB at B = 128.
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
    """The differences x_i − x_j (B, B, C) and their lengths (B, B). For samples that count as one point, both are zero,
    and the gradient is zero instead of NaN."""
    differences = vectors[:, None] - vectors[None]
    squares = differences.pow(2).sum(dim=2)
    apart = squares > SAME**2
    lengths = torch.where(apart, squares, 1.0).sqrt()
    return differences * apart[:, :, None], lengths * apart


def _relative(distances: Tensor) -> Tensor:
    """Distances (B, B), divided by the mean of those that are not zero; all zeros if all distances are zero."""
    count = (distances > 0).sum()
    mean = distances.sum() / count.clamp(min=1)
    return distances / torch.where(count > 0, mean, 1.0)


def _cosines(vectors: Tensor) -> Tensor:
    """Cosines (B, B, B): entry [j, i, k] is that of the angle between the directions from j to i and from j to k."""
    differences, lengths = _distances(vectors)
    directions = differences / torch.where(lengths > 0, lengths, 1.0)[:, :, None]
    return directions @ directions.transpose(1, 2)
