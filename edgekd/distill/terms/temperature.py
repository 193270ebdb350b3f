"""The distillation temperature: either a function of the progress of the training, or a learned parameter.

The effect of a low temperature on T² KL(softmax(z / T) ‖ softmax(v / T)), for a teacher's logits z and a student's
logits v: let a be the class of the teacher's largest logit, and b that of the student's. As T → 0, both softmaxes
become one-hot and T logsumexp(v / T) → v_b; the remaining terms vanish exponentially in (gap to the second logit) / T.
Hence

* the value tends to T (v_b − v_a), which is T times the loss of a multi-class perceptron with the label a, and is 0 if
  the student agrees with the teacher. This is also the limit of T² times the cross-entropy of v / T with the hard
  label a;
* the gradient with respect to v is T (softmax(v / T) − softmax(z / T)) at every T, so its 1-norm is at most 2 T. It
  tends to T (e_b − e_a), and vanishes exponentially if the student agrees.

So a temperature below 1 makes the teacher sharper, not softer: its information about the other classes is lost, and the
student learns the teacher's answers as hard labels, and only for examples on which it disagrees. The factor T² then no
longer keeps the gradient's size (Hinton et al. 2015, arXiv 1503.02531, section 2, is about high temperatures): the
term's share of the whole gradient falls with T; at T = 0.1 its bound is a tenth of the cross-entropy's. A larger α or
weight compensates for the size only.
"""

import math

import torch
from torch import Tensor, nn

from edgekd.distill.terms.adversary import reverse
from edgekd.errors import ConfigError
from edgekd.recipe import Recipe

__all__ = ["LearnedTemperature", "scheduled"]

_MARGIN = 0.01
"""Smallest initial distance from either bound, as a share of the range: closer to a bound, the sigmoid has almost no
gradient."""
_CURRICULUM_EPOCHS = 10
"""Number of epochs in which λ rises from 0 to 1 (E_loops of Li et al. 2023)."""


def scheduled(recipe: Recipe, progress_epochs: float, epochs: int) -> float:
    """The temperature after `progress_epochs` (which need not be a whole number) of a training of `epochs` epochs.

    `linear`, `cosine` and `exponential` (geometric) go from `temperature` to `temperature_end` and stay there;
    `sigmoid` is temperature / (1 + exp(−temperature_rate progress_epochs)), which rises from half of `temperature`
    towards `temperature`.

    Raises ValueError for `learned` and `adversarial`, whose temperature is not a function of the progress.
    """
    first, last = recipe.temperature, recipe.temperature_end
    share = min(max(progress_epochs / epochs, 0.0), 1.0)
    match recipe.temperature_schedule:
        case "fixed":
            return first
        case "linear":
            return first + (last - first) * share
        case "cosine":
            return last + (first - last) * 0.5 * (1 + math.cos(math.pi * share))
        case "exponential":
            return first * math.pow(last / first, share)
        case "sigmoid":
            return first / (1 + math.exp(-recipe.temperature_rate * max(progress_epochs, 0.0)))
    raise ValueError(f"the {recipe.temperature_schedule} temperature is a LearnedTemperature")


class LearnedTemperature(nn.Module):
    """One temperature for all samples, T = low + (high − low) σ(θ), between the recipe's bounds. θ is learned together
    with the student from the same loss, including its factor T² (Li et al. 2023, arXiv 2211.16231, the global version
    of CTKD).

    `learned` minimises the loss. Since T² KL tends to 0 with T (see above), independent of the student, this mostly
    ends at the lower bound. `adversarial` maximises the loss by means of a gradient reversal (section 3.2), so that the
    task of the student becomes harder: reversed gradients are multiplied by λ, which rises along a cosine from 0 to 1
    in the first 10 epochs (section 3.3).

    T starts at `temperature`, but at least 1 % of the range away from either bound, where the gradient would vanish.
    Raises ConfigError if `temperature` lies outside the bounds.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        low, high = recipe.temperature_min, recipe.temperature_max
        if not low <= recipe.temperature <= high:
            raise ConfigError(
                f"recipe.temperature: got {recipe.temperature:g}; with temperature_schedule = "
                f'"{recipe.temperature_schedule}" it should be from temperature_min ({low:g}) to temperature_max '
                f"({high:g}), such as {min(max(recipe.temperature, low), high):g}"
            )
        share = min(max((recipe.temperature - low) / (high - low), _MARGIN), 1 - _MARGIN)
        self.theta = nn.Parameter(torch.tensor(math.log(share / (1 - share))))
        self.low, self.high = low, high
        self.adversarial = recipe.temperature_schedule == "adversarial"

    def forward(self, progress_epochs: float) -> Tensor:
        """The temperature, a scalar; `progress_epochs` only affects the gradient, and only with `adversarial`."""
        theta: Tensor = self.theta
        if self.adversarial:
            theta = reverse(theta, _curriculum(progress_epochs))
        return self.low + (self.high - self.low) * torch.sigmoid(theta)


def _curriculum(progress_epochs: float) -> float:
    """The factor λ of CTKD's curriculum after `progress_epochs`."""
    share = min(max(progress_epochs / _CURRICULUM_EPOCHS, 0.0), 1.0)
    return 0.5 * (1 - math.cos(math.pi * share))
