"""Losses: plain functions (student_logits, teacher_logits, labels) -> scalar, chosen once before the loop."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from edgekd.card import Recipe, Training

__all__ = ["Loss", "cross_entropy", "distillation", "kd"]

Loss = Callable[[Tensor, Tensor | None, Tensor], Tensor]


def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over the batch.

    Both logits (B, C). The factor T² keeps the gradient's size as T changes (Hinton et al. 2015,
    arXiv 1503.02531, section 2).
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def distillation(recipe: Recipe) -> Loss:
    """α T² KL(teacher ‖ student) + (1 − α) CE(student, labels) (Hinton et al. 2015, section 2)."""

    def loss(student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
        assert teacher_logits is not None  # the loop is given the teacher's logits with this loss
        soft = kd(student_logits, teacher_logits, recipe.temperature)
        hard = F.cross_entropy(student_logits, labels, label_smoothing=recipe.label_smoothing)
        return recipe.alpha * soft + (1 - recipe.alpha) * hard

    return loss


def cross_entropy(training: Training) -> Loss:
    """CE(student, labels) with the training's label smoothing; no teacher."""
    return lambda logits, _, labels: F.cross_entropy(logits, labels, label_smoothing=training.label_smoothing)
