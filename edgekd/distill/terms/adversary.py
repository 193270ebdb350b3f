"""Adversarial distillation: a discriminator tells the teacher's features from the student's, and the student's gradient
is reversed."""

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
    """x unchanged; its gradient times −`scale` (Ganin and Lempitsky 2015, arXiv 1409.7495, section 3.2)."""
    out: Tensor = _Reverse.apply(x, scale)
    return out


class Discriminator(nn.Module):
    """Whose features: (B, `size`), or maps and tokens with C = `size`, which are averaged, to (B,) logits.

    A positive logit is the teacher. Two linear layers with a LeakyReLU of slope 0.2 between them. Before them each
    vector is brought to mean 0 and deviation 1 (layer normalisation without weights): otherwise the scale alone tells
    one side from the other at first, the discriminator is sure of itself, and the student's gradient vanishes. So what
    is taught is the distribution of the features but for each sample's mean and scale.
    """

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.size = size
        self.layers = nn.Sequential(nn.Linear(size, hidden), nn.LeakyReLU(LEAK), nn.Linear(hidden, 1))

    def normalized(self, features: Tensor) -> Tensor:
        """(B, `size`): what the layers are given."""
        return F.layer_norm(pooled(features), (self.size,))

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.layers(self.normalized(features))
        return out.squeeze(1)


def adversarial(discriminator: Discriminator, student: Tensor, teacher: Tensor, scale: float = 1.0) -> Tensor:
    """−mean log D(teacher) − mean log(1 − D(student)) + P, D the sigmoid of the discriminator's logits.

    Its gradient lowers the value for the discriminator; the student gets that gradient reversed, times `scale`, and
    raises it, so one backward pass trains both. The first two terms are −V(D, G) of Goodfellow et al. 2014 (arXiv
    1406.2661, equation 1), trained in its minimax form: the student minimises log(1 − D(student)), whose gradient is
    small while D is sure of it, and not the non-saturating −log D(student) that their section 3 prefers. Where nothing
    tells the two apart they are 2 ln 2 = 1.386.

    P is the mean over the teacher's samples of ½ ‖∇‖², ∇ the gradient of the logit by the normalised features: R1 of
    Mescheder et al. 2018 (arXiv 1801.04406, equation 9) with γ = 1, but for growing as ‖∇‖ − ½ beyond ‖∇‖ = 1, which
    bears larger steps. Without it the discriminator soon tells all samples apart under SGD with momentum, and nothing
    is learned; with it keep the term's weight to about 1 at a learning rate of 0.1.

    Features are (B, C), or maps and tokens that are averaged, both with the discriminator's C; where the student's
    differ, give `Regressor` of it, which then learns against the discriminator too. The teacher gets no gradient.
    Raises ConfigError where C differs.
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
