"""Soft labels drawn anew at every step, with the teacher's softmax p as their mean.

Cross-entropy is linear in its target, so that the expected gradient of a soft term stays what it is with p: the draws
add noise to the gradient and nothing else. Each kind gives probability distributions whose mean is p exactly:

* `gaussian`: noise of deviation σ = 1 / strength on the logits. softmax(log p + ε) with ε ~ N(0, σ² I) has another
  mean, so ε is drawn as σ n + σ² e_J with n ~ N(0, I) and a class J ~ p: whoever knows p and sees ε should believe in
  J = i with probability softmax(log p + ε)_i (the densities' ratios are exp(ε_i)), and the mean of what is believed
  after seeing is what was believed before.
* `gamma`: Gamma(k p_i) of each class over their sum, which is Dirichlet(k p): mean p, variance p (1 − p) / (k + 1).
* `poisson`: counts Poisson(n p_i) over their sum, given that there are any: once the sum m > 0 is known the counts are
  multinomial, and their mean is m p.
* `points`: n classes ~ p (n rounded, at least 1), and each one's share: mean p, variance p (1 − p) / n.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from edgekd.errors import did_you_mean

__all__ = ["generator_for", "sample"]


def generator_for(seed: int, step: int, where: torch.device | str = "cpu") -> Generator:
    """The random numbers of one step, whatever came before it."""
    words = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    return Generator(where).manual_seed(int(words[0]) % 2**63)


def sample(p: Tensor, kind: str, strength: float, generator: Generator) -> Tensor:
    """Soft labels (B, C) with mean p (B, C), whose rows sum to 1; `none` gives p itself.

    Drawn in double precision where the generator lives, then brought to p's type and device. `strength` is σ⁻¹, k or n
    of the formulas above: the larger, the nearer to p. A class with p = 0 gets 0. Raises ValueError for another kind.
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
    """In logarithms, as draws of small shapes underflow: G(a) is G(a + 1) U^(1/a), and −log U is exponential."""
    shape = strength * p
    logs = torch._standard_gamma(shape + 1, generator=generator).log()
    logs -= torch.empty_like(p).exponential_(generator=generator) / shape
    return F.softmax(logs.masked_fill(p == 0, float("-inf")), dim=1)


def _poisson(p: Tensor, strength: float, generator: Generator) -> Tensor:
    """Points fall at random on [0, n], of which there are Poisson(n). Given that there are any, the first lies where an
    exponential variable below n does, and the others fall behind it as ever; so nothing need be drawn twice."""
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
    """Classes (B, number), each drawn with the probabilities of its row."""
    return torch.multinomial(p, number, replacement=True, generator=generator)


_KINDS: dict[str, Callable[[Tensor, float, Generator], Tensor]] = {
    "gaussian": _gaussian,
    "gamma": _gamma,
    "poisson": _poisson,
    "points": _points,
}
