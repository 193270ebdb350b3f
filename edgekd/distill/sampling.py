"""Soft labels that are drawn at random in every step, with the teacher's softmax p as their mean.

Cross-entropy is linear in its target, so the expected gradient of a soft term is the same as with p itself: the draws
only add noise to the gradient. Each kind gives probability distributions whose mean is exactly p:

* `gaussian`: noise of deviation σ = 1 / strength on the logits. softmax(log p + ε) with ε ~ N(0, σ² I) has another
  mean, so ε is drawn as σ n + σ² e_J with n ~ N(0, I) and a random class J ~ p. By Bayes' rule the posterior
  P(J = i | ε) is softmax(log p + ε)_i, since the ratio of the densities of ε given J = i and of n σ is proportional to
  exp(ε_i); and the mean of a posterior is the prior, here p.
* `gamma`: draws Gamma(k p_i) for each class, divided by their sum. This is Dirichlet(k p): its mean is p, its variance
  p (1 − p) / (k + 1).
* `poisson`: counts Poisson(n p_i) for each class, divided by their sum m, on the condition m > 0. Given m, the counts
  are multinomial with mean m p.
* `points`: n classes drawn from p (n is rounded, and at least 1); the label is the share of each class among them. Its
  mean is p, its variance p (1 − p) / n.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from edgekd.errors import did_you_mean

__all__ = ["generator_for", "sample"]


def generator_for(seed: int, step: int, where: torch.device | str = "cpu") -> Generator:
    """A random generator for one step, which depends only on the arguments, not on earlier draws."""
    words = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    return Generator(where).manual_seed(int(words[0]) % 2**63)


def sample(p: Tensor, kind: str, strength: float, generator: Generator) -> Tensor:
    """Random soft labels (B, C) with mean p (B, C), whose rows sum to 1; the kind `none` returns p itself.

    They are drawn in double precision on the generator's device, then converted to p's type and device. `strength` is
    1 / σ, k or n in the formulas above: a larger value gives labels closer to p. A class with p = 0 gets 0. Raises
    ValueError for an unknown kind.
    """
    if kind == "none":
        return p
    if kind not in _KINDS:
        raise ValueError(f"sampling {kind!r}; {did_you_mean(kind, ['none', *_KINDS])}")
    drawn = _KINDS[kind](p.detach().to(generator.device, torch.float64), strength, generator)
    return drawn.to(p.device, p.dtype)


def _gaussian(p: Tensor, strength: float, generator: Generator) -> Tensor:
    deviation = 1 / strength
    noise = torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype) * deviation
    shifted = F.one_hot(_classes(p, 1, generator)[:, 0], p.shape[1]) * deviation**2
    return F.softmax(p.log() + noise + shifted, dim=1)


def _gamma(p: Tensor, strength: float, generator: Generator) -> Tensor:
    """Dirichlet draws. They are computed as logarithms, because Gamma draws with a small shape a underflow:
    Gamma(a) = Gamma(a + 1) U^(1/a) in distribution, and −log U is exponential."""
    shape = strength * p
    logs = torch._standard_gamma(shape + 1, generator=generator).log()
    logs -= torch.empty_like(p).exponential_(generator=generator) / shape
    return F.softmax(logs.masked_fill(p == 0, float("-inf")), dim=1)


def _poisson(p: Tensor, strength: float, generator: Generator) -> Tensor:
    """Counts of a Poisson process on [0, n], on the condition that it has at least one point. The position of the first
    point is an exponential variable truncated to [0, n]; the points after it are an ordinary Poisson process. So no
    draw has to be rejected."""
    uniform = torch.rand(len(p), 1, generator=generator, device=p.device, dtype=p.dtype)
    first = -torch.log1p(uniform * np.expm1(-strength))
    others = torch.poisson((strength - first).clamp(min=0) * p, generator=generator)
    counts = others + F.one_hot(_classes(p, 1, generator)[:, 0], p.shape[1])
    return counts / counts.sum(dim=1, keepdim=True)


def _points(p: Tensor, strength: float, generator: Generator) -> Tensor:
    number = max(1, round(strength))
    drawn = _classes(p, number, generator)
    return torch.zeros_like(p).scatter_add_(1, drawn, torch.full_like(drawn, 1 / number, dtype=p.dtype))


def _classes(p: Tensor, number: int, generator: Generator) -> Tensor:
    """Random classes (B, number), drawn with the probabilities in each row of p."""
    return torch.multinomial(p, number, replacement=True, generator=generator)


_KINDS: dict[str, Callable[[Tensor, float, Generator], Tensor]] = {
    "gaussian": _gaussian,
    "gamma": _gamma,
    "poisson": _poisson,
    "points": _points,
}
