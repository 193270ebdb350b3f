"""Contrastive representation distillation (Tian et al. 2020, arXiv 1910.10699)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.data.views import draws
from edgekd.distill.terms.features import pooled
from edgekd.errors import ConfigError

__all__ = ["Contrast", "nce", "negative_indices"]

MOMENTUM = 0.5
EPSILON = 1e-7


class Contrast(nn.Module):
    """Tells the teacher's embedding of the same image from those of other images, and the student's likewise.

    Student's features v and teacher's u are brought to `embedding` numbers each by a learned linear map and divided by
    their norm (Tian et al. 2020, section 3.1, equation 19 with its linear maps g). Two memory banks keep the last
    embeddings of all `count` images of the training set: v is compared with the teacher's bank at its own index and at
    `negatives` others, u with the student's bank likewise, each by `nce` of exp(cos / `temperature`) / Z, and both are
    added (equations 10, 17 and 18, from both sides as in the authors' code). Z is the mean of exp(cos / τ) at the first
    batch, times `count`, and stays. After each call the banks move at the batch's indices: m ← (m + v) / ‖m + v‖,
    a momentum of ½.

    Negatives are other images of any class; the authors' code for CIFAR takes them from other classes alone. Which they
    are is a pure function of (seed, step, index), and all else that changes is a parameter or a buffer: loading the
    `state_dict` resumes bit for bit. The banks begin as random unit vectors of `seed`.

    The banks take 2 · count · embedding · 4 bytes (50,000 images, 128 numbers: 51 MB), and a call 2 · B · (negatives +
    1) · embedding · 4 bytes (128 images, 1,024 negatives: 134 MB) until its backward pass. The paper has 16,384
    negatives and τ = 0.1 (its code 0.07), and the term's weight is 0.8.

    Raises ConfigError where `count` leaves no other image.
    """

    banks: Tensor
    constants: Tensor

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        embedding: int,
        count: int,
        negatives: int,
        temperature: float,
        seed: int,
    ) -> None:
        super().__init__()
        if count < 2:
            raise ConfigError(f"crd: needs at least two training images to tell apart, got {count}")
        self.negatives, self.temperature, self.seed = negatives, temperature, seed
        self.student, self.teacher = nn.Linear(student_dim, embedding), nn.Linear(teacher_dim, embedding)
        random = torch.randn(2, count, embedding, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("banks", F.normalize(random, dim=2))  # student's, teacher's
        self.register_buffer("constants", torch.zeros(2))  # Z against the teacher's bank, the student's; 0 is not yet

    def embed(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors (B, embedding) of features that `pooled` takes."""
        return F.normalize(self.student(pooled(student)), dim=1), F.normalize(self.teacher(pooled(teacher)), dim=1)

    def forward(self, student: Tensor, teacher: Tensor, indices: Tensor, step: int) -> Tensor:
        """The loss of a batch, a scalar; moves the banks.

        `student` (B, d_s) and `teacher` (B, d_t), or maps and tokens, which are averaged; `indices` (B,) are the
        images' places in the training set, each once; `step` counts the steps of the training.
        """
        v, u = self.embed(student, teacher)
        if not len(v) == len(u) == len(indices):
            raise ConfigError(
                f"crd: the shapes of student {tuple(student.shape)}, teacher {tuple(teacher.shape)} and indices "
                f"{tuple(indices.shape)} must be of the same images"
            )
        count = self.banks.shape[1]
        others = negative_indices(self.seed, step, indices, count, self.negatives)
        chosen = torch.cat([indices[:, None], others], dim=1)
        ours, theirs = self.banks
        scores = torch.stack([_cosines(v, theirs, chosen), _cosines(u, ours, chosen)]).div(self.temperature).exp()
        with torch.no_grad():
            self.constants.copy_(torch.where(self.constants > 0, self.constants, scores.mean(dim=(1, 2)) * count))
            for bank, now in ((ours, v), (theirs, u)):
                bank[indices] = F.normalize(MOMENTUM * bank[indices] + (1 - MOMENTUM) * now, dim=1)
        ratios = scores / self.constants.clone()[:, None, None]  # the next call may write before this one's backward
        return nce(ratios[0], count) + nce(ratios[1], count)


def nce(ratios: Tensor, count: int) -> Tensor:
    """−log h of the positive − Σ log (1 − h) of the N negatives, the mean over the batch.

    h = r / (r + N / M), `ratios` r (B, 1 + N) with the positive first, M = `count` images (Tian et al. 2020, equations
    18 and 19). ε = 1e-7 is added to the denominator, as in the authors' code.
    """
    noise = (ratios.shape[1] - 1) / count
    below = ratios + noise + EPSILON
    positive = (ratios[:, 0] / below[:, 0]).log()
    negative = (noise / below[:, 1:]).log().sum(dim=1)
    return -(positive + negative).mean()


def negative_indices(seed: int, step: int, indices: Tensor, count: int, negatives: int) -> Tensor:
    """(B, negatives): places in 0 … `count` − 1 other than each of `indices` (B,) itself, uniform, with replacement."""
    uniform = draws(seed, indices.cpu().numpy(), step, negatives)
    ahead = torch.from_numpy((uniform * (count - 1)).astype(np.int64)).to(indices.device)
    return (indices[:, None] + 1 + ahead) % count


def _cosines(anchors: Tensor, bank: Tensor, chosen: Tensor) -> Tensor:
    """(B, n): of each anchor (B, E) with the rows `chosen` (B, n) of the bank.

    Eight anchors at a time, whose rows fit a processor's cache: half the time of all at once.
    """
    pieces = zip(torch.split(anchors, 8), torch.split(chosen, 8), strict=True)
    return torch.cat([(F.embedding(rows, bank) @ some[:, :, None]).squeeze(2) for some, rows in pieces])
