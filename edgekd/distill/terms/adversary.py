"""Adversarial distillation: a discriminator learns to distinguish the teacher's features from the student's, and the
student gets its gradient reversed."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.distill.terms.features import pooled
from edgekd.errors import ConfigError

__all__ = ["Discriminator", "adversarial", "reverse"]

LEAK = 0.2


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradients[0], None


def reverse(x: Tensor, scale: float = 1.0) -> Tensor:
    """Return x, but multiply its gradient by −`scale` (Ganin and Lempitsky 2015, arXiv 1409.7495, section 3.2)."""
    out: Tensor = _Reverse.apply(x, scale)
    return out


class Discriminator(nn.Module):
    """Maps features to (B,) logits, which are positive for the teacher's features. Features are (B, `size`), or maps
    and tokens with C = `size`, which are averaged.

    It consists of two linear layers with a LeakyReLU of slope 0.2 between them. Before them, each vector is normalised
    to mean 0 and standard deviation 1 (layer normalisation without weights). Otherwise the scale alone would at first
    distinguish the two sides, the discriminator would be certain, and the student's gradient would vanish. So the
    student learns the distribution of the features, except for each sample's mean and scale.
    """

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.size = size
        self.layers = nn.Sequential(nn.Linear(size, hidden), nn.LeakyReLU(LEAK), nn.Linear(hidden, 1))

    def normalized(self, features: Tensor) -> Tensor:
        """The normalised features (B, `size`), which are the input of the layers."""
        return F.layer_norm(pooled(features), (self.size,))

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.layers(self.normalized(features))
        return out.squeeze(1)


def adversarial(discriminator: Discriminator, student: Tensor, teacher: Tensor, scale: float = 1.0) -> Tensor:
    """−mean log D(teacher) − mean log(1 − D(student)) + P, where D is the sigmoid of the discriminator's logits.

    The discriminator minimises this value. The student gets the reversed gradient, times `scale`, and so maximises it:
    one backward pass trains both. The first two terms are −V(D, G) of Goodfellow et al. 2014 (arXiv 1406.2661,
    equation 1) in its minimax form: the student minimises log(1 − D(student)), whose gradient is small while D is
    certain about the student, instead of the non-saturating −log D(student) that their section 3 prefers. If the
    discriminator cannot distinguish the two sides, these terms are 2 ln 2 = 1.386.

    P is the mean over the teacher's samples of ½ ‖∇‖², where ∇ is the gradient of the logit with respect to the
    normalised features. This is the R1 penalty of Mescheder et al. 2018 (arXiv 1801.04406, equation 9) with γ = 1,
    except that it grows linearly, as ‖∇‖ − ½, beyond ‖∇‖ = 1, which allows larger steps. Without P, under SGD with
    momentum, the discriminator soon distinguishes all samples and the student learns nothing. With P, the term's weight
    should be about 1 or less at a learning rate of 0.1.

    Features are (B, C), or maps and tokens, which are averaged; C must be the discriminator's `size` for both. If the
    student's C differs, pass the student's features through a `Regressor`, which is then trained against the
    discriminator, too. The teacher gets no gradient. Raises ConfigError if C differs.
    """
    ours, theirs = pooled(student), pooled(teacher).detach()
    if not ours.shape[1] == theirs.shape[1] == discriminator.size:
        raise ConfigError(
            f"adversarial: the shapes of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must both "
            f"have the discriminator's {discriminator.size} channels; map the student's with a Regressor"
        )
    fake = discriminator(reverse(ours, scale))
    seen = discriminator.normalized(theirs).requires_grad_()
    real = discriminator.layers(seen)
    (slopes,) = torch.autograd.grad(real.sum(), seen, create_graph=True)
    lengths = slopes.norm(dim=1)
    penalty = F.huber_loss(lengths, torch.zeros_like(lengths))
    return F.softplus(-real).mean() + F.softplus(fake).mean() + penalty
