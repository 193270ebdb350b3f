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
    """The contrastive loss: an image's student embedding should be close to its teacher embedding and far from the
    teacher embeddings of other images, and the same with teacher and student exchanged.

    Learned linear maps bring the student's features v and the teacher's features u to `embedding` numbers each, which
    are divided by their norm (Tian et al. 2020, section 3.1; equation 19 has these linear maps as g). Two memory banks
    keep the latest embeddings of all `count` images of the training set. v is compared with the teacher's bank at the
    image's own index and at `negatives` other indices, and u with the student's bank in the same way. Each comparison
    is `nce` of exp(cos / `temperature`) / Z, and the two losses are added (equations 10, 17 and 18, for both sides as
    in the authors' code). Z is the mean of exp(cos / τ) over the first batch, times `count`, and stays constant. After
    each call, the banks are updated at the batch's indices: m ← (m + v) / ‖m + v‖, which is a momentum of ½.

    Negatives are other images of any class; the authors' code for CIFAR only uses images of other classes. The choice
    of negatives is a pure function of (seed, step, index), and all other state is in parameters and buffers, so loading
    the `state_dict` resumes bit for bit. The banks are initialised with random unit vectors from `seed`.

    The banks take 2 · count · embedding · 4 bytes (50,000 images, 128 numbers: 51 MB). A call takes 2 · B · (negatives
    + 1) · embedding · 4 bytes (128 images, 1,024 negatives: 134 MB) until its backward pass. The paper uses 16,384
    negatives, τ = 0.1 (0.07 in its code) and 0.8 as the weight of the term.

    Raises ConfigError if `count` is less than 2, so that there are no other images.
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
        # Z for the teacher's and the student's bank; 0 until the first batch.
        self.register_buffer("constants", torch.zeros(2))

    def embed(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings of student and teacher: unit vectors (B, embedding); `pooled` says which features it takes."""
        return F.normalize(self.student(pooled(student)), dim=1), F.normalize(self.teacher(pooled(teacher)), dim=1)

    def forward(self, student: Tensor, teacher: Tensor, indices: Tensor, step: int) -> Tensor:
        """The loss of a batch, a scalar; also updates the memory banks.

        `student` is (B, d_s) and `teacher` (B, d_t), or they are maps or tokens, which are averaged. `indices` (B,) are
        the images' positions in the training set, without repetition; `step` counts the steps of the training.
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
        # Cloned, because the next call may change the constants before the backward pass of this one.
        ratios = scores / self.constants.clone()[:, None, None]
        return nce(ratios[0], count) + nce(ratios[1], count)


def nce(ratios: Tensor, count: int) -> Tensor:
    """The mean over the batch of −log h(positive) − Σ log (1 − h(negative)), with the sum over the N negatives.

    h = r / (r + N / M), where r are the `ratios` (B, 1 + N), the positive in the first column, and M is `count`, the
    number of images (Tian et al. 2020, equations 18 and 19). As in the authors' code, 1e-7 is added to the denominator.
    """
    noise = (ratios.shape[1] - 1) / count
    below = ratios + noise + EPSILON
    positive = (ratios[:, 0] / below[:, 0]).log()
    negative = (noise / below[:, 1:]).log().sum(dim=1)
    return -(positive + negative).mean()


def negative_indices(seed: int, step: int, indices: Tensor, count: int, negatives: int) -> Tensor:
    """For each index in `indices` (B,), draw uniformly from the other indices below `count`, with replacement:
    (B, negatives)."""
    uniform = draws(seed, indices.cpu().numpy(), step, negatives)
    ahead = torch.from_numpy((uniform * (count - 1)).astype(np.int64)).to(indices.device)
    return (indices[:, None] + 1 + ahead) % count


def _cosines(anchors: Tensor, bank: Tensor, chosen: Tensor) -> Tensor:
    """The cosines (B, n) of each anchor (B, E) with the rows `chosen` (B, n) of the bank; all are unit vectors.

    Eight anchors at a time are faster, because their rows fit in the CPU's cache: half the time of all at once.
    """
    pieces = zip(torch.split(anchors, 8), torch.split(chosen, 8), strict=True)
    return torch.cat([(F.embedding(rows, bank) @ some[:, :, None]).squeeze(2) for some, rows in pieces])
