"""Loss terms on a layer's features: plain functions of tensors, and a module for what is learned beside the student.

Features are vectors (B, C), tokens (B, L, C) or maps (B, C, H, W), and every term is a mean: over elements, or as its
docstring says. Half precision is widened to fp32; a shape that does not fit is a ConfigError that names both shapes.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.errors import ConfigError

__all__ = ["Regressor", "Vid", "attention", "attention_map", "hint", "match", "pooled", "similarity", "vid"]

FIRST_VARIANCE, LEAST_VARIANCE = 5.0, 1e-5


def pooled(features: Tensor) -> Tensor:
    """Vectors (B, C): the mean of maps (B, C, H, W) over their places, of tokens (B, L, C) over all L of them (padding
    counts), and vectors (B, C) as they are."""
    if features.dim() not in (2, 3, 4):
        raise ConfigError(
            f"features {tuple(features.shape)}: should be (B, C), (B, L, C) or (B, C, H, W); choose another layer"
        )
    wide = _wide(features)
    if wide.dim() == 2:
        return wide
    return wide.mean(dim=1) if wide.dim() == 3 else wide.mean(dim=(2, 3))


def match(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of features of one shape, whatever it is.

    FitNets' hint (Romero et al. 2015, arXiv 1412.6550, equation 3) without its regressor, with the mean in place of
    half the sum.
    """
    if student.shape != teacher.shape:
        raise _unfit("match", student, teacher, "must be equal; use hint, which learns to map one onto the other")
    return F.mse_loss(_wide(student), _wide(teacher))


class Regressor(nn.Module):
    """A learned linear map from the student's features to the teacher's shape, dropped after training.

    Shapes are those of one sample: (C, H, W), (L, C) or (C,). A 1×1 convolution for maps, which average pooling first
    brings to the smaller height and width of the two; else a linear layer on C. `forward` takes the student's features
    and returns (B, C_t, min H, min W), (B, L, C_t) or (B, C_t). Raises ConfigError where the kinds or L differ.
    FitNets' regressor (Romero et al. 2015, section 2.2) is a convolution without padding whose kernel makes up for the
    sizes' difference; a 1×1 kernel with pooling has fewer weights and no limit on which of the two is larger.
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
        if isinstance(self.map, nn.Conv2d):  # pooling before or after a 1×1 convolution is the same, and before is less
            student = F.adaptive_avg_pool2d(student, self.size)
        out: Tensor = self.map(student)
        return out


def hint(regressor: Regressor, student: Tensor, teacher: Tensor) -> Tensor:
    """The mean of (teacher − r(student))², r learned with the student (Romero et al. 2015, equation 3).

    Features of the shapes that `regressor` was made for, with the batch in front; a larger map of the teacher is
    average-pooled to the smaller size. The paper has half the sum in place of the mean, and trains the hint in a stage
    of its own before any other term.
    """
    return F.mse_loss(*_aligned("hint", regressor(student), teacher))


def attention_map(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W): the mean over channels of squares (Zagoruyko and Komodakis 2017, arXiv 1612.03928,
    section 3.1, F²_sum but for the factor 1/C, which `attention` normalises away)."""
    if features.dim() != 4:
        raise ConfigError(
            f"attention: features {tuple(features.shape)} should be maps (B, C, H, W); choose a convolution's layer"
        )
    return _wide(features).pow(2).mean(dim=1)


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Attention transfer: the mean over the batch and the places of (Q_S / ‖Q_S‖₂ − Q_T / ‖Q_T‖₂)².

    Q are the flattened attention maps (Zagoruyko and Komodakis 2017, equation 2). Each argument is features
    (B, C, H, W) or their `attention_map` (B, H, W); of maps that differ in height or width the larger is
    average-pooled. Equation 2 has the norm ‖Q_S/‖Q_S‖ − Q_T/‖Q_T‖‖₂, not squared, whose gradient does not vanish at
    equality; this is the mean square of the authors' code, so that weights tuned for it (500 to 1,000) carry over. As a
    mean over H W places of unit vectors the term is small, and a weight near 1 has little effect.
    """
    maps = [attention_map(one) if one.dim() == 4 else _wide(one) for one in (student, teacher)]
    if any(one.dim() != 3 for one in maps) or len(student) != len(teacher):
        raise _unfit("attention", student, teacher, "must be maps (B, C, H, W) or (B, H, W) of the same images")
    ours, theirs = (F.normalize(one.flatten(1), dim=1) for one in _smaller(maps[0], maps[1]))
    return F.mse_loss(ours, theirs)


def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving distillation: ‖G_T − G_S‖²_F / b² of a batch of b samples.

    G is Q Qᵀ with each row divided by its Euclidean norm, Q the features (b, …) as one row a sample (Tung and Mori
    2019, arXiv 1907.09682, section 3). Only the batches must be equal. The paper's weight is 3,000.
    """
    if len(student) != len(teacher):
        raise _unfit("similarity", student, teacher, "must be of the same images")
    return F.mse_loss(_gram(student), _gram(teacher))


class Vid(nn.Module):
    """What variational information distillation learns: the teacher's mean given the student's features, and
    a variance softplus(α_c) + ε of each channel of the teacher, at first 5.

    Shapes are those of one sample, as in `Regressor`. The mean is linear in the features; in Ahn et al. 2019 (arXiv
    1904.05835, section 3) it is a few convolutions.
    """

    def __init__(self, student_shape: Sequence[int], teacher_shape: Sequence[int]) -> None:
        super().__init__()
        self.mean = Regressor(student_shape, teacher_shape)
        channels = teacher_shape[0] if len(teacher_shape) == 3 else teacher_shape[-1]
        self.alpha = nn.Parameter(torch.full((channels,), math.log(math.expm1(FIRST_VARIANCE - LEAST_VARIANCE))))

    def variance(self) -> Tensor:
        """(C_t,) (Ahn et al. 2019, equation 6)."""
        return F.softplus(self.alpha) + LEAST_VARIANCE


def vid(module: Vid, student: Tensor, teacher: Tensor) -> Tensor:
    """−log q(teacher | student) but for a constant: the mean of ½ (log σ²_c + (teacher − μ(student))² / σ²_c).

    A normal distribution with a learned mean and one variance a channel (Ahn et al. 2019, equations 4 and 5); the
    paper sums over channels and places. Its least value over σ is ½ (1 + log MSE), so it may be negative. Shapes and
    pooling as in `hint`.
    """
    mean, given = _aligned("vid", module.mean(student), teacher)
    variance = module.variance()
    if given.dim() == 4:
        variance = variance[:, None, None]
    return 0.5 * (variance.log() + (given - mean).pow(2) / variance).mean()


def _wide(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()


def _smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps (…, H, W) average-pooled to the smaller height and the smaller width of the two."""
    size = (min(a.shape[-2], b.shape[-2]), min(a.shape[-1], b.shape[-1]))
    return F.adaptive_avg_pool2d(a, size), F.adaptive_avg_pool2d(b, size)


def _aligned(term: str, predicted: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both at the smaller size, if they are maps; ConfigError where the shapes still differ."""
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
