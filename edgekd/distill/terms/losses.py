"""Losses on logits. Each is a function of tensors and returns the mean over the batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "cross_entropy",
    "dist",
    "dkd",
    "draw_noise",
    "fixed",
    "grouped",
    "kd",
    "mse",
    "mutual",
    "soft_cross_entropy",
    "standardized",
]


def cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """−Σ_c w_c t_c log softmax(logits)_c, the mean over the batch, for (smoothed) targets t and class weights w.

    Logits are (B, C), targets are labels (B,) or class probabilities (B, C), class_weights are (C,). The sum over the
    batch is divided by the number of examples, not by the sum of their weights as in torch, so that the losses of the
    parts of a batch add up to the loss of the batch.
    """
    return F.cross_entropy(logits, targets, class_weights, label_smoothing=label_smoothing, reduction="none").mean()


def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor) -> Tensor:
    """T² KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over the batch.

    Both logits are (B, C). The factor T² keeps the size of the gradient roughly constant when T changes (Hinton et al.
    2015, arXiv 1503.02531, section 2).
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor) -> Tensor:
    """T² CE(softmax(teacher / T), softmax(student / T)): `kd` plus T² times the teacher's entropy.

    Both logits are (B, C) (Hinton et al. 2015, section 2). The entropy has no gradient, not even for a learned T: it
    would change T for a reason that does not depend on the student.
    """
    log_teacher = F.log_softmax(teacher_logits.detach() / fixed(temperature), dim=1)
    entropy = -(log_teacher.exp() * log_teacher).sum(dim=1).mean() * fixed(temperature) ** 2
    return kd(student_logits, teacher_logits, temperature) + entropy


def draw_noise(student_logits: Tensor, p: Tensor, drawn: Tensor, temperature: float | Tensor) -> Tensor:
    """T² (CE(drawn, softmax(student / T)) − CE(p, softmax(student / T))): the change of a soft term if the soft labels
    `drawn` (B, C) replace p.

    It is linear in `drawn`. So if the mean of `drawn` is p, the mean of this value is zero, and so is the mean of its
    gradient with respect to the student. A learned T gets no gradient from it.
    """
    temperature = fixed(temperature)
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    return ((p.detach() - drawn) * log_student).sum(dim=1).mean() * temperature**2


def fixed(temperature: float | Tensor) -> float | Tensor:
    """The temperature, detached from the autograd graph."""
    return temperature.detach() if isinstance(temperature, Tensor) else temperature


def grouped(student_logits: Tensor, teacher_logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Logits (B, count + 1) of student and teacher, from logits (B, C): of the `count` classes that the teacher finds
    most probable, and of all others together.

    They are the logarithms of probabilities. In thousands of classes a temperature above 1 would give most of the
    probability to those that nobody expects; here it moves probability among the `count` classes and the one for the
    others. At T = 1 the divergence of the groups is at most that of the classes. The others
    together have a probability of at least 1e-6. Logits of at most `count` + 1 classes
    are returned unchanged.
    """
    if student_logits.shape[1] <= count + 1:
        return student_logits, teacher_logits
    places = teacher_logits.topk(count, dim=1).indices
    found = []
    for logits in (student_logits, teacher_logits):
        chosen = F.log_softmax(logits, dim=1).gather(1, places)
        # Half as dear as a sum over thousands of others; below 1e-6 only rounding errors are left.
        others = (1 - chosen.exp().sum(dim=1, keepdim=True)).clamp(min=1e-6).log()
        found.append(torch.cat([chosen, others], dim=1))
    return found[0], found[1]


def mutual(logits: Tensor, others: list[Tensor]) -> Tensor:
    """The mean of KL(softmax(other) ‖ softmax(logits)) over the other students, which get no gradient.

    All logits are (B, C) (Zhang et al. 2018, arXiv 1706.00384, equation 8).
    """
    return torch.stack([kd(logits, other.detach(), 1.0) for other in others]).mean()


def mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The mean squared difference of all logits (B, C) (Ba and Caruana 2014, arXiv 1312.6184, equation 1,
    without the factor ½).

    `kd` tends to this as T grows, apart from a factor and from the mean of each row (Hinton et al. 2015, section 2.1).
    """
    return F.mse_loss(student_logits, teacher_logits)


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float | Tensor,
    alpha: float,
    beta: float,
) -> Tensor:
    """T² (α TCKD + β NCKD): decoupled KD, which weights the label's class and the other classes separately (Zhao et al.
    2022, arXiv 2203.08679, equation 7).

    TCKD is the KL divergence of the two probabilities (label, not label); NCKD is that of the softmax over the other
    classes alone. With α = 1 and β = 1 − p_teacher(label) for each sample it equals `kd` (equation 5). Both logits are
    (B, C), labels are (B,).
    """
    own = F.one_hot(labels, student_logits.shape[1]).bool()
    student, teacher = (logits / temperature for logits in (student_logits, teacher_logits))
    target = F.kl_div(_binary(student, own), _binary(teacher, own), reduction="batchmean", log_target=True)
    others = F.kl_div(_others(student, own), _others(teacher, own), reduction="batchmean", log_target=True)
    return (alpha * target + beta * others) * temperature**2


def _binary(logits: Tensor, own: Tensor) -> Tensor:
    """log (p, 1 − p), where p is the probability of the label's class; (B, 2)."""
    whole = logits.logsumexp(dim=1)
    rest = logits.masked_fill(own, float("-inf")).logsumexp(dim=1)
    return torch.stack([logits[own] - whole, rest - whole], dim=1)


def _others(logits: Tensor, own: Tensor) -> Tensor:
    """The log softmax over all classes except the label's, (B, C − 1)."""
    rows = len(logits)
    return F.log_softmax(logits[~own].reshape(rows, -1), dim=1)


def dist(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor, beta: float, gamma: float
) -> Tensor:
    """T² (β (1 − mean correlation of rows) + γ (1 − mean correlation of columns)) of the softmaxes at T.

    This uses Pearson's correlation instead of the KL divergence: between the classes of each sample (rows), and between
    the samples of the batch for each class (columns) (Huang et al. 2022, arXiv 2205.10536, equations 7, 9 and 10). Both
    logits are (B, C).
    """
    student, teacher = (F.softmax(logits / temperature, dim=1) for logits in (student_logits, teacher_logits))
    inter = 1 - _correlation(student, teacher)
    intra = 1 - _correlation(student.T, teacher.T)
    return (beta * inter + gamma * intra) * temperature**2


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of the rows of a (n, m) and b (n, m), the mean over the rows."""
    return F.cosine_similarity(a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True), dim=1).mean()


def standardized(logits: Tensor) -> Tensor:
    """Scale each row of (B, C) to mean 0 and standard deviation 1, so that a student need not match the teacher's scale
    (Sun et al. 2024, arXiv 2403.01427, algorithm 1).
    """
    centred = logits - logits.mean(dim=1, keepdim=True)
    return centred / (logits.std(dim=1, keepdim=True) + 1e-7)
