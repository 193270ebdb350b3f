"""What a training minimises: the loss terms of each part of the training, which are chosen once before the loop, and
the auxiliary modules that these terms need, which are trained with the network and dropped afterwards."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgekd.distill.sampling import generator_for, sample
from edgekd.distill.terms import losses
from edgekd.distill.terms.feature_losses import FeatureTerm, feature_term, teacher_name
from edgekd.distill.terms.features import smaller_size
from edgekd.distill.terms.temperature import LearnedTemperature, scheduled
from edgekd.errors import ConfigError
from edgekd.recipe import Recipe, Stage, Training

__all__ = [
    "Objective",
    "Part",
    "Places",
    "Rows",
    "Seen",
    "distillation",
    "needs_teacher",
    "plain",
    "student_layers",
    "teacher_layers",
]


@dataclass(frozen=True)
class Seen:
    """The input of the loss terms in one step."""

    logits: Tensor
    """The student's logits (B, C), or (B, C, H, W) for class maps."""
    targets: Tensor
    """Labels (B,), class probabilities (B, C), or class maps (B, H, W)."""
    indices: Tensor
    """Positions of the examples in the training data, (B,)."""
    features: dict[str, Tensor] = field(default_factory=dict)
    """The student's features, by layer name."""
    teacher: dict[str, Tensor] = field(default_factory=dict)
    """The teacher's `logits`, and its features by layer name."""
    peers: tuple[Tensor, ...] = ()
    """Logits (B, C) of the peer students in mutual learning."""
    temperature: float | Tensor = 1.0
    step: int = 0
    """Number of the step, counted over the whole training."""


Terms = Callable[[Seen], dict[str, Tensor]]
"""Returns the weighted terms by name; the training minimises their sum."""

Hard = Callable[[Tensor, Tensor], Tensor]
"""The task's own loss, a function of outputs (B, C) and targets."""

Soft = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The task's own loss between outputs (B, C) of student and teacher, if these are no logits; it also gets the
targets."""


@dataclass(frozen=True)
class Part:
    """Consecutive epochs that use the same terms."""

    epochs: int
    terms: Terms


@dataclass(frozen=True)
class Objective:
    """The parts of a training, in order."""

    parts: tuple[Part, ...]
    layers: tuple[str, ...] = ()
    """Layers of the student whose outputs the terms need."""
    teacher_layers: tuple[str, ...] = ()
    learned: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    """Modules that are trained together with the network: regressors, discriminators, the temperature, peers."""
    temperature: Callable[[float], float | Tensor] = lambda epochs: 1.0
    """The temperature as a function of the epochs since the start, which need not be a whole number."""

    def part(self, epoch: int) -> tuple[Part, int]:
        """The part that contains `epoch` (counted from 0), and the first epoch of that part."""
        begin = 0
        for part in self.parts:
            if epoch < begin + part.epochs:
                return part, begin
            begin += part.epochs
        raise ValueError(f"epoch {epoch} is after the last part")


Loss = Callable[[Tensor, Tensor, float, Tensor | None], Tensor]
"""The task's own loss, a function of outputs (B, C), targets, label smoothing and class weights."""

Rows = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(outputs (B, C, …), targets (B, …)) -> outputs (N, C) and targets (N,) of the N answers that are judged, such as the
pixels of class maps."""

Places = Callable[[Tensor, tuple[int, int]], Tensor]
"""(targets, height and width of maps) -> weights (B, height, width) of the places of these maps."""


def plain(training: Training, loss: Loss, weights: Tensor | None = None, rows: Rows | None = None) -> Objective:
    """An objective without a teacher: only the task's own loss, under the name `ce` that recipes use."""

    def terms(seen: Seen) -> dict[str, Tensor]:
        seen = by_rows(seen, rows)
        return {"ce": loss(seen.logits, seen.targets, training.label_smoothing, weights)}

    return Objective((Part(training.epochs, terms),))


def needs_teacher(recipe: Recipe) -> bool:
    """Whether any term of the recipe uses a teacher's outputs."""
    return any(part.features or part.losses.keys() - {"ce", "mutual"} for part in recipe.parts())


def teacher_layers(recipe: Recipe) -> tuple[str, ...]:
    """Names of the teacher's layers that the recipe needs, without the logits."""
    names = [teacher_name(feature) for part in recipe.parts() for feature in part.features]
    return tuple(name for name in dict.fromkeys(names) if name != "logits")


def student_layers(recipe: Recipe) -> tuple[str, ...]:
    """Names of the student's layers that the recipe needs, without the logits."""
    names = [feature.student for part in recipe.parts() for feature in part.features]
    return tuple(name for name in dict.fromkeys(names) if name)


def distillation(
    recipe: Recipe,
    student: dict[str, torch.Size],
    teacher: dict[str, torch.Size],
    count: int,
    hard: Hard,
    peers: Sequence[nn.Module] = (),
    soft: Soft | None = None,
    rows: Rows | None = None,
    foreground: Places | None = None,
    groups: int | None = None,
) -> Objective:
    """The objective of a recipe, for `count` training examples and networks whose layers have these shapes (without the
    batch dimension).

    `hard` is the term `ce`, the task's own loss; `soft` is the term `kd` if the outputs are no logits. With `rows`, the
    terms on logits get the rows that it makes, and the terms on features still get whole outputs. `peers` are
    further students, which map inputs to logits, for the term `mutual`. `foreground` gives the weights for terms on
    features that are restricted to the foreground. With `groups`, the terms `kd` and `soft_ce` take all classes but the
    teacher's `groups` most probable ones together. Raises ConfigError if a term does not fit the shapes.
    """
    learned = nn.ModuleDict()
    if peers:
        learned["peers"] = nn.ModuleList(peers)
    temperature: Callable[[float], float | Tensor]
    if recipe.temperature_schedule in ("learned", "adversarial"):
        module = LearnedTemperature(recipe)
        learned["temperature"] = module
        temperature = module
    else:

        def temperature(epochs: float) -> float:
            return scheduled(recipe, epochs, recipe.epochs)

    parts = []
    for place, stage in enumerate(recipe.parts()):
        _require_places(stage, foreground)
        on_features = [feature_term(feature, student, teacher, count, recipe.seed) for feature in stage.features]
        for number, term in enumerate(on_features):
            if term.learned is not None:
                learned[f"part{place}-{number}"] = term.learned
        parts.append(Part(stage.epochs, _terms(recipe, stage, on_features, hard, soft, rows, foreground, groups)))
    return Objective(tuple(parts), student_layers(recipe), teacher_layers(recipe), learned, temperature)


def _require_places(stage: Stage, foreground: Places | None) -> None:
    restricted = [feature for feature in stage.features if feature.where == "foreground"]
    if restricted and foreground is None:
        raise ConfigError(
            f'recipe.features: {restricted[0].name()}: where = "foreground" is for data with boxes, which this task '
            "does not have; leave it out"
        )


def by_rows(seen: Seen, rows: Rows | None) -> Seen:
    """The same step with the outputs of all networks as rows (N, C) and the targets (N,); unchanged without `rows`."""
    if rows is None:
        return seen
    logits, targets = rows(seen.logits, seen.targets)
    teacher = {"logits": rows(seen.teacher["logits"], seen.targets)[0]} if "logits" in seen.teacher else {}
    peers = tuple(rows(one, seen.targets)[0] for one in seen.peers)
    return dataclasses.replace(seen, logits=logits, targets=targets, teacher=seen.teacher | teacher, peers=peers)


def _terms(
    recipe: Recipe,
    stage: Stage,
    on_features: Sequence[FeatureTerm],
    hard: Hard,
    soft: Soft | None,
    rows: Rows | None,
    foreground: Places | None,
    groups: int | None,
) -> Terms:
    on_logits = {name: _logit_term(name, recipe, hard, soft, groups) for name in stage.losses}

    def terms(seen: Seen) -> dict[str, Tensor]:
        each = by_rows(seen, rows)
        found: dict[str, Tensor] = {name: weight * on_logits[name](each) for name, weight in stage.losses.items()}
        if "mutual" in on_logits:
            found["peers"] = _peers(each, stage, hard)
        for feature, term in zip(stage.features, on_features, strict=True):
            mine = seen.features[feature.student] if feature.student else seen.logits
            theirs = seen.teacher[teacher_name(feature)]
            if foreground and term.among and feature.where == "foreground":
                loss = term.among(mine, theirs.float(), foreground(seen.targets, smaller_size(mine, theirs)))
            else:
                loss = term.loss(mine, theirs.float(), seen.indices, seen.step)
            value = feature.weight * loss
            name = feature.name()  # equal if one student layer learns from two teacher layers
            found[name] = found[name] + value if name in found else value
        return found

    return terms


def _logit_term(
    name: str, recipe: Recipe, hard: Hard, own: Soft | None, groups: int | None
) -> Callable[[Seen], Tensor]:
    """The term `name` of the card's `losses` on logits, without its weight."""

    def pair(seen: Seen, together: bool = False) -> tuple[Tensor, Tensor]:
        both = (seen.logits, seen.teacher["logits"])
        if together and groups is not None:
            both = losses.grouped(*both, groups)
        return (losses.standardized(both[0]), losses.standardized(both[1])) if recipe.standardize else both

    def soft(seen: Seen) -> Tensor:
        mine, theirs = pair(seen, together=True)
        exact = (losses.kd if name == "kd" else losses.soft_cross_entropy)(mine, theirs, seen.temperature)
        if recipe.sampling == "none":
            return exact
        p = (theirs / losses.fixed(seen.temperature)).softmax(dim=1)
        # All parts of a batch, in every process, have the same step, so the first index makes their draws differ.
        generator = generator_for(recipe.seed, (seen.step << 32) + int(seen.indices[0]))
        drawn = sample(p, recipe.sampling, recipe.sampling_strength, generator)
        return exact + losses.draw_noise(mine, p, drawn, seen.temperature)

    def dkd(seen: Seen) -> Tensor:
        # Mixed examples have soft targets: take the class with the larger share.
        labels = seen.targets if seen.targets.dim() == 1 else seen.targets.argmax(dim=1)
        return losses.dkd(*pair(seen), labels, seen.temperature, recipe.dkd_alpha, recipe.dkd_beta)

    terms: dict[str, Callable[[Seen], Tensor]] = {
        "ce": lambda seen: hard(seen.logits, seen.targets),
        "kd": soft if own is None else lambda seen: own(seen.logits, seen.teacher["logits"], seen.targets),
        "soft_ce": soft,
        "mse": lambda seen: losses.mse(*pair(seen)),
        "dkd": dkd,
        "dist": lambda seen: losses.dist(*pair(seen), seen.temperature, recipe.dist_beta, recipe.dist_gamma),
        "mutual": lambda seen: losses.mutual(seen.logits, list(seen.peers)),
    }
    return terms[name]


def _peers(seen: Seen, stage: Stage, hard: Hard) -> Tensor:
    """The sum of the peers' losses: like the student, each peer learns from the labels and from all other students."""
    total = torch.zeros((), device=seen.logits.device)
    for number, own in enumerate(seen.peers):
        others = [seen.logits, *seen.peers[:number], *seen.peers[number + 1 :]]
        total = total + stage.losses["mutual"] * losses.mutual(own, others)
        if "ce" in stage.losses:
            total = total + stage.losses["ce"] * hard(own, seen.targets)
    return total
