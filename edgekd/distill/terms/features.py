"""Loss terms on the features of a layer: functions of tensors, and modules for terms that have learned parameters.

Features are vectors (B, C), tokens (B, L, C) or maps (B, C, H, W). Every term is a mean: over all elements, unless its
docstring says otherwise. Half precision is converted to fp32. If the shapes do not fit, a ConfigError names both.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.errors import ConfigError

__all__ = [
    "Regressor",
    "Vid",
    "attention",
    "attention_map",
    "channel",
    "hint",
    "match",
    "pooled",
    "similarity",
    "smaller_size",
    "vid",
]

FIRST_VARIANCE, LEAST_VARIANCE = 5.0, 1e-5

_LEAST = 1e-12

_NOWHERE = -1e4
"""Added to the exponent of a place that takes no part in a softmax. Two times −∞ would differ by NaN."""


def pooled(features: Tensor) -> Tensor:
    """Reduce features to vectors (B, C): the mean of maps (B, C, H, W) over H and W, the mean of tokens (B, L, C) over
    L (including padding), and vectors (B, C) unchanged. Raises ConfigError for other shapes."""
    if features.dim() not in (2, 3, 4):
        raise ConfigError(
            f"features {tuple(features.shape)}: should be (B, C), (B, L, C) or (B, C, H, W); choose another layer"
        )
    wide = _wide(features)
    if wide.dim() == 2:
        return wide
    return wide.mean(dim=1) if wide.dim() == 3 else wide.mean(dim=(2, 3))


def match(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean squared difference of features that have the same shape.

    FitNets' hint (Romero et al. 2015, arXiv 1412.6550, equation 3) without its regressor, and with the mean
    instead of half the sum. `weights` (B, H, W) of the places of maps (B, C, H, W) make the mean over the places a
    weighted one, over the batch together; it is 0 if all weights are.
    """
    if student.shape != teacher.shape:
        raise _unfit("match", student, teacher, "must be equal; use hint, which learns to map one onto the other")
    return _difference(_wide(student), _wide(teacher), weights)


def _difference(a: Tensor, b: Tensor, weights: Tensor | None) -> Tensor:
    """The mean squared difference. With `weights` (B, H, W), it is the mean over the channels of maps (B, C, H, W), and
    the weighted mean over the places of all maps together, which is 0 if all weights are."""
    if weights is None:
        return F.mse_loss(a, b)
    return (weights * (a - b).square().mean(dim=1)).sum() / weights.sum().clamp(min=_LEAST)


class Regressor(nn.Module):
    """A learned linear map from the student's features to the teacher's shape, dropped after training.

    Shapes are those of one sample: (C, H, W), (L, C) or (C,). For maps, it is average pooling to the smaller height and
    the smaller width of the two, then a 1×1 convolution; otherwise it is a linear layer on C. `forward` takes the
    student's features and returns (B, C_t, min H, min W), (B, L, C_t) or (B, C_t). Raises ConfigError if the number of
    dimensions or L differ. FitNets' regressor (Romero et al. 2015, section 2.2) is a convolution without padding, whose
    kernel size depends on the difference of the sizes; a 1×1 kernel with pooling has fewer weights, and either map may
    be the larger one.
    """

    def __init__(self, student_shape: Sequence[int], teacher_shape: Sequence[int]) -> None:
        super().__init__()
        student, teacher = tuple(student_shape), tuple(teacher_shape)
        if len(student) != len(teacher) or len(student) not in (1, 2, 3):
            raise ConfigError(
                f"regressor: student {student} and teacher {teacher} must be of one kind: both (C, H, W), (L, C) or "
                "(C,), without the batch; choose layers of one kind"
            )
        if len(student) == 2 and student[0] != teacher[0]:
            raise ConfigError(
                f"regressor: student {student} and teacher {teacher} must have the same number of tokens; choose "
                "layers that have"
            )
        self.map: nn.Conv2d | nn.Linear
        if len(student) == 3:
            self.size = (min(student[1], teacher[1]), min(student[2], teacher[2]))
            self.map = nn.Conv2d(student[0], teacher[0], kernel_size=1)
        else:
            self.map = nn.Linear(student[-1], teacher[-1])

    def forward(self, student: Tensor) -> Tensor:
        if isinstance(self.map, nn.Conv2d):  # pooling first gives the same result with less work
            student = F.adaptive_avg_pool2d(student, self.size)
        out: Tensor = self.map(student)
        return out


def hint(regressor: Regressor, student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean of (teacher − r(student))², where the regressor r is trained with the student (Romero et al. 2015,
    equation 3).

    The features have the shapes that `regressor` was made for, after a batch dimension. A larger map of the teacher is
    average-pooled to the smaller size. The paper uses half the sum instead of the mean, and trains with the hint alone
    in a first stage. `weights` are those of `match`, at the places of the smaller map.
    """
    return _difference(*_aligned("hint", regressor(student), teacher), weights)


def attention_map(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W): the mean of squares over the channels (Zagoruyko and Komodakis 2017, arXiv 1612.03928,
    section 3.1: F²_sum, apart from the factor 1/C, which the normalisation in `attention` removes)."""
    if features.dim() != 4:
        raise ConfigError(
            f"attention: features {tuple(features.shape)} should be maps (B, C, H, W); choose a convolution's layer"
        )
    return _wide(features).pow(2).mean(dim=1)


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Attention transfer: the mean of (Q_S / ‖Q_S‖₂ − Q_T / ‖Q_T‖₂)² over the batch and all positions.

    Q are the flattened attention maps (Zagoruyko and Komodakis 2017, equation 2). Each argument is either features
    (B, C, H, W) or their `attention_map` (B, H, W). If the maps differ in height or width, the larger one is
    average-pooled. Equation 2 has the norm ‖Q_S/‖Q_S‖ − Q_T/‖Q_T‖‖₂ without the square, whose gradient does not vanish
    at equality. This function uses the mean square as in the authors' code, so weights that were tuned for that code
    (500 to 1,000) can be used. Because it is a mean over the H W elements of unit vectors, the term is small, and a
    weight near 1 has little effect.
    """
    maps = [attention_map(one) if one.dim() == 4 else _wide(one) for one in (student, teacher)]
    if any(one.dim() != 3 for one in maps) or len(student) != len(teacher):
        raise _unfit("attention", student, teacher, "must be maps (B, C, H, W) or (B, H, W) of the same images")
    ours, theirs = (F.normalize(one.flatten(1), dim=1) for one in _smaller(maps[0], maps[1]))
    return F.mse_loss(ours, theirs)


def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving distillation: ‖G_T − G_S‖²_F / b² for a batch of b samples.

    G is Q Qᵀ with each row divided by its Euclidean norm, where Q are the features (b, …), flattened to one row per
    sample (Tung and Mori 2019, arXiv 1907.09682, section 3). Only the batch sizes must be equal. The weight in the
    paper is 3,000.
    """
    if len(student) != len(teacher):
        raise _unfit("similarity", student, teacher, "must be of the same images")
    return F.mse_loss(_gram(student), _gram(teacher))


def channel(student: Tensor, teacher: Tensor, temperature: float, weights: Tensor | None = None) -> Tensor:
    """Channel-wise distillation: T² KL(φ(teacher) ‖ φ(student)), the mean over batch and channels.

    φ is the softmax of a channel over its positions at the temperature T, so that each channel says where it is active.
    Features are maps (B, C, H, W) with the same C (Shu et al. 2021, arXiv 2011.13256, equations 3 and 4). If they
    differ in height or width, the larger map is average-pooled. The paper weighs logits by 3 and features by 50.

    With `weights` (B, H, W) of the places of the smaller map, φ is w exp(·/T), divided by its sum, so that places of
    weight 0 take no part; the mean is over the images that have other places, and 0 if none has.
    """
    if student.dim() != 4 or teacher.dim() != 4 or student.shape[:2] != teacher.shape[:2]:
        raise _unfit("channel", student, teacher, "must be maps (B, C, H, W) with the same number of channels")
    flat = [one.flatten(2) / temperature for one in _smaller(_wide(student), _wide(teacher))]
    if weights is None:
        ours, theirs = (F.log_softmax(one, dim=2) for one in flat)
        return F.kl_div(ours, theirs, reduction="sum", log_target=True) * temperature**2 / ours.shape[:2].numel()
    share = torch.where(weights > 0, weights.clamp(min=_LEAST).log(), _NOWHERE).flatten(1)[:, None]
    ours, theirs = (F.log_softmax(one + share, dim=2) for one in flat)
    each = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=2).mean(dim=1)
    counted = weights.flatten(1).amax(dim=1) > 0
    return (each * counted).sum() * temperature**2 / counted.sum().clamp(min=1)


class Vid(nn.Module):
    """The learned part of variational information distillation: a map from the student's features to the mean of the
    teacher's features, and a variance softplus(α_c) + ε for each channel of the teacher, which is 5 at the start.

    Shapes are those of one sample, as in `Regressor`. The mean is a linear function of the student's features; in Ahn
    et al. 2019 (arXiv 1904.05835, section 3) it is computed by a few convolutions.
    """

    def __init__(self, student_shape: Sequence[int], teacher_shape: Sequence[int]) -> None:
        super().__init__()
        self.mean = Regressor(student_shape, teacher_shape)
        channels = teacher_shape[0] if len(teacher_shape) == 3 else teacher_shape[-1]
        self.alpha = nn.Parameter(torch.full((channels,), math.log(math.expm1(FIRST_VARIANCE - LEAST_VARIANCE))))

    def variance(self) -> Tensor:
        """The variance of each teacher channel, (C_t,) (Ahn et al. 2019, equation 6)."""
        return F.softplus(self.alpha) + LEAST_VARIANCE


def vid(module: Vid, student: Tensor, teacher: Tensor) -> Tensor:
    """−log q(teacher | student) without its constant: the mean of ½ (log σ²_c + (teacher − μ(student))² / σ²_c).

    q is a normal distribution with a learned mean and one learned variance per channel (Ahn et al. 2019, equations 4
    and 5); the paper sums over channels and positions instead. With the best σ the value is ½ (1 + log MSE), so it may
    be negative. Shapes and pooling are those of `hint`.
    """
    mean, given = _aligned("vid", module.mean(student), teacher)
    variance = module.variance()
    if given.dim() == 4:
        variance = variance[:, None, None]
    return 0.5 * (variance.log() + (given - mean).pow(2) / variance).mean()


def _wide(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()


def smaller_size(a: Tensor, b: Tensor) -> tuple[int, int]:
    """The smaller height and the smaller width of two maps (…, H, W)."""
    return min(a.shape[-2], b.shape[-2]), min(a.shape[-1], b.shape[-1])


def _smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool both maps (…, H, W) to their `smaller_size`."""
    size = smaller_size(a, b)
    return F.adaptive_avg_pool2d(a, size), F.adaptive_avg_pool2d(b, size)


def _aligned(term: str, predicted: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Bring both to the smaller size if they are maps; raise ConfigError if the shapes still differ."""
    a, b = _wide(predicted), _wide(teacher)
    if a.dim() == b.dim() == 4:
        a, b = _smaller(a, b)
    if a.shape != b.shape:
        raise _unfit(term, predicted, teacher, "must be equal after the regressor; make it for these shapes")
    return a, b


def _gram(features: Tensor) -> Tensor:
    rows = _wide(features).flatten(1)
    return F.normalize(rows @ rows.T, dim=1)


def _unfit(term: str, student: Tensor, teacher: Tensor, rule: str) -> ConfigError:
    return ConfigError(
        f"{term}: the shapes of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} {rule}"
    )
