"""The temperature: a function of the training's position, or a parameter that the gradient moves.

What a low temperature does to T² KL(softmax(z / T) ‖ softmax(v / T)) of a teacher's logits z and a student's v,
where each has one largest: write a for the teacher's answer and b for the student's. As T → 0 both softmaxes become
one-hot and T logsumexp(v / T) → v_b, but for terms that vanish exponentially with the gap to the second logit over T.
Hence

* the value tends to T (v_b − v_a): T times the multi-class perceptron's loss on the teacher's answer, which is 0
  where the student agrees. It is also the limit of T² times the cross-entropy of v / T on a as hard label;
* the gradient by v is T (softmax(v / T) − softmax(z / T)) at every T, so that its 1-norm is at most 2 T. It tends to
  T (e_b − e_a), and vanishes exponentially where the student agrees.

So from 1 downwards the teacher is made sharper, not softer: what it knows of the other classes is lost, and the
student learns its answers as hard labels, only where it does not give them yet. T² no longer keeps the gradient's
size (Hinton et al. 2015, arXiv 1503.02531, section 2, speaks of high temperatures): the term's share of the whole
falls with T, at 0.1 to a tenth of cross-entropy's bound. A larger α or weight makes up for the size alone.
"""

import math

import torch
from torch import Tensor, nn

from edgekd.distill.terms.adversary import reverse
from edgekd.errors import ConfigError
from edgekd.recipe import Recipe

__all__ = ["LearnedTemperature", "scheduled"]

_MARGIN = 0.01
"""Of the range between the bounds: nearer to one of them the sigmoid has next to no gradient."""
_CURRICULUM_EPOCHS = 10
"""Over which λ rises from 0 to 1 (E_loops of Li et al. 2023)."""


def scheduled(recipe: Recipe, progress_epochs: float, epochs: int) -> float:
    """The temperature after `progress_epochs` (fractions too) of a training of `epochs`.

    `linear`, `cosine` and `exponential` (geometric) lead from `temperature` to `temperature_end` and stay there;
    `sigmoid` is temperature / (1 + exp(−temperature_rate progress_epochs)), which rises from half of it to it.

    Raises ValueError for `learned` and `adversarial`, which are no functions of the position.
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
    """One temperature for all samples, T = low + (high − low) σ(θ) between the recipe's bounds, learned beside the
    student by the same loss, whose factor T² belongs to it (Li et al. 2023, arXiv 2211.16231, CTKD's global version).

    `learned` makes the loss smaller. T² KL falls to 0 with T (see above), whatever the student does, so that this
    mostly ends at the lower bound. `adversarial` makes it larger behind a gradient reversal (section 3.2), as hard
    for the student as the curriculum allows: reversed gradients count λ, which rises along a cosine from 0 to 1 over
    the first 10 epochs (section 3.3).

    It begins at `temperature`, at least 1 % of the range away from either bound, where the gradient would be none.
    Raises ConfigError where `temperature` lies outside the bounds.
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
        """The temperature, a scalar; only what `adversarial` does to the gradient depends on the position."""
        theta: Tensor = self.theta
        if self.adversarial:
            theta = reverse(theta, _curriculum(progress_epochs))
        return self.low + (self.high - self.low) * torch.sigmoid(theta)


def _curriculum(progress_epochs: float) -> float:
    """λ of CTKD."""
    share = min(max(progress_epochs / _CURRICULUM_EPOCHS, 0.0), 1.0)
    return 0.5 * (1 - math.cos(math.pi * share))
