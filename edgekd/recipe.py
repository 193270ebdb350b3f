"""Settings of a training: optimiser and schedule, and the losses by which a student learns from its teachers."""

import dataclasses
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from edgekd.errors import shown
from edgekd.ranges import Fraction, NotNegative, Positive, Seed

__all__ = [
    "PLACED",
    "TEMPERED",
    "Feature",
    "Importance",
    "Preset",
    "Prune",
    "Qat",
    "Recipe",
    "Stage",
    "Term",
    "Training",
]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Preset = Literal["fast", "long"]
Term = Literal["ce", "kd", "soft_ce", "mse", "dkd", "dist", "mutual"]
TEMPERED: frozenset[Term] = frozenset({"kd", "soft_ce", "dkd", "dist"})
"""The terms that depend on softmax outputs at the temperature T; they have the factor T²."""
PLACED = ("match", "hint", "channel")
"""The terms on features that can be restricted to some places of maps."""


def _weights_of_classes(value: Any) -> Any:
    if value in ("none", "balanced"):
        return value
    numbers = isinstance(value, list | tuple) and all(type(one) in (int, float) for one in value)
    if not numbers or not value or not all(0 < one < float("inf") for one in value):
        raise ValueError(f'got {shown(value)}; it should be "none", "balanced" or a positive number for each class')
    return tuple(value)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Training:
    """Settings of the optimiser and its schedule, and of the training in general."""

    preset: Preset | None = None
    """The set of settings that replaces the defaults of the card: see edgekd/presets.py. Settings that the card gives
    override it."""
    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=2)] = 128
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Number of parts into which each batch is split. Their gradients are accumulated before each step."""
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    """`muon` (Jordan et al. 2024) updates the weights of convolutions without groups and of linear layers, but not
    those of the first and the last one that the network registers; all other parameters are updated as by `sgd`."""
    learning_rate: Positive = 0.1
    matrix_learning_rate: Positive = 0.05
    """The highest learning rate of the weights that `muon` updates. It follows the schedule of `learning_rate`, which
    is that of the other parameters."""
    matrix_weight_decay: NotNegative = 0.025
    """Each step multiplies the weights that `muon` updates by 1 − their learning rate × this value."""
    loaded_learning_rate_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The learning rate of the parameters that were loaded from a weights file before the training, as a share of the
    learning rate of those that are trained from new."""
    schedule: Literal["cosine", "linear", "one-cycle", "constant"] = "cosine"
    """After the warm-up: half a cosine or a straight line down to zero, or no change. `one-cycle` rises for 30 % of the
    steps and falls for the rest, both along cosines (Smith and Topin 2018)."""
    momentum: Fraction = 0.9
    weight_decay: NotNegative = 5e-4
    """Not for the weights that `muon` updates."""
    warmup_epochs: NotNegative = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: Annotated[
        Literal["none", "balanced"] | tuple[Positive, ...], BeforeValidator(_weights_of_classes)
    ] = "none"
    """Weight of each class in the cross-entropy; `balanced` is images / (classes × images of the class)."""
    clip_norm: Positive | None = None
    """Largest norm of the gradient; a larger gradient is scaled down to it. The size of a step of `muon` does not
    depend on that of the gradient."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of the moving average of the weights, which rises to this value at the beginning. The average is
    validated and kept; 0 turns it off."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Stop after this number of epochs without a better validation accuracy, and keep the best weights; 0 turns it
    off."""
    compile: bool = False
    """Whether the network is compiled with torch.compile. This takes minutes at first, and makes steps faster on most
    GPUs."""
    small_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Images only: share of the epochs, at the beginning, in which the trained network sees the images smaller, which
    makes these epochs cheaper (progressive resizing). A teacher always sees them in full size."""
    small_scale: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Size of the small images relative to the full ones."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass; `auto` is bf16 if this machine has it in hardware."""
    seed: Seed = 0

    def words(self) -> str:
        """The settings that have no default or differ from it, such as `epochs 15, ema 0.995`."""
        changed = [
            (one.name, getattr(self, one.name))
            for one in dataclasses.fields(self)
            if one.name != "preset" and getattr(self, one.name) not in (one.default, {}, ())
        ]
        return ", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in changed)

    def unused_settings(self) -> Iterator[str]:
        """Yield a message for each setting that cannot have its documented effect, with the reason."""
        if self.schedule != "one-cycle" and self.warmup_epochs > self.epochs:
            yield f"warmup_epochs: should be at most the {self.epochs} epochs, got {self.warmup_epochs:g}"
        if self.schedule == "one-cycle" and self.warmup_epochs != type(self).warmup_epochs:
            yield 'warmup_epochs: has no effect here; schedule = "one-cycle" rises by itself'
        if self.optimizer == "adamw" and self.momentum != Training.momentum:
            yield 'momentum: has no effect here; it needs optimizer = "sgd" or "muon"'
        for name in ("matrix_learning_rate", "matrix_weight_decay"):
            if self.optimizer != "muon" and getattr(self, name) != getattr(type(self), name):
                yield f'{name}: has no effect here; it needs optimizer = "muon"'
        if not self.small_share and self.small_scale != Training.small_scale:
            yield "small_scale: has no effect here; it needs small_share"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Qat(Training):
    """Settings of the training for int8, which follows the distillation and continues with its network (quantization-
    aware training). It has the recipe's terms on logits, views and temperature."""

    learning_rate: Positive = 1e-3
    """A network whose batch normalisation is folded needs a smaller rate than one that has it."""
    weight_decay: NotNegative = 0.0
    warmup_epochs: NotNegative = 0.0
    clip_norm: Positive | None = 1.0

    def unused_settings(self) -> Iterator[str]:
        """Yield a message for each setting that cannot have its documented effect, with the reason."""
        if self.optimizer == "muon":
            yield 'optimizer: "muon" has no effect on layers whose weights are rounded; take "sgd" or "adamw"'
        yield from super().unused_settings()


Importance = Literal["magnitude", "taylor", "bn-scale"]
"""How the channels that pruning removes are chosen; edgekd/nets/pruning.py has the sources."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Prune(Training):
    """Settings of the pruned teacher, which competes with the student: channels of the teacher are removed in several
    rounds until it meets the budget, and after each round it learns from the whole teacher for `epochs` epochs, by the
    recipe's terms on logits."""

    rounds: Annotated[int, Field(ge=1, le=100)] = 3
    importance: Importance = "magnitude"
    multiple: Annotated[int, Field(ge=1, le=1024)] = 8
    """Numbers of channels are rounded to multiples of this number, which the int8 kernels of most CPUs fill."""
    learning_rate: Positive = 0.02
    matrix_learning_rate: Positive = 0.01


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Feature:
    """A loss between a layer of the teacher and one of the student."""

    term: Literal["match", "hint", "attention", "similarity", "channel", "vid", "rkd", "crd", "adversarial"]
    weight: Positive = 1.0
    teacher: str = ""
    student: str = ""
    """Module paths of both layers, such as `layer3.0`; an empty path means the logits."""
    where: Literal["everywhere", "foreground"] = "everywhere"
    """Which places of the maps count: all, or those of objects, each object as much as any other. `foreground` is for
    data with boxes."""
    distance_weight: NotNegative = 25.0
    angle_weight: NotNegative = 50.0
    """Weights of the two parts of `rkd` (Park et al. 2019, section 4)."""
    embedding: Annotated[int, Field(ge=2, le=65_536)] = 128
    negatives: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    contrast_temperature: Positive = 0.07
    """Settings of `crd` (Tian et al. 2020): the size of both embeddings, the number of negatives per image, and τ."""
    channel_temperature: Positive = 4.0
    """The temperature of `channel` (Shu et al. 2021, section 4.2)."""
    hidden: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Width of the discriminator of `adversarial`."""

    def unused_settings(self) -> Iterator[str]:
        """Yield a message for each setting that differs from its default but belongs to another term."""
        owners = {"distance_weight": "rkd", "angle_weight": "rkd", "hidden": "adversarial"}
        owners["channel_temperature"] = "channel"
        owners |= dict.fromkeys(("embedding", "negatives", "contrast_temperature"), "crd")
        if self.where == "foreground" and self.term not in PLACED:
            yield f"features: {self.name()}: where: has no effect here; it is for {', '.join(PLACED)}"
        for name, term in owners.items():
            if term != self.term and getattr(self, name) != getattr(Feature, name):
                yield f"features: {self.name()}: {name}: has no effect here; it is for {term}"

    def name(self) -> str:
        """The name of the term in the history, such as `hint layer2`; for the logits, only the kind of the term."""
        return f"{self.term} {self.student}".strip()


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Stage:
    """A part of a training that has its own terms. The learning rate schedule starts again in each stage."""

    epochs: Annotated[int, Field(ge=1)]
    losses: dict[Term, Positive] = field(default_factory=dict)
    features: tuple[Feature, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "Stage":
        if not self.losses and not self.features:
            raise ValueError("stages: each must name losses or features")
        _refuse_double(self.losses)
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Recipe(Training):
    """Settings of the distillation. The loss is L = α T² KL(p_teacher ‖ p_student) + (1 − α) CE (Hinton et al. 2015),
    or the sum of the terms in `losses` and `features`, or `stages` that each have their own terms."""

    attempts: Annotated[int, Field(ge=1, le=5)] = 1
    """The largest number of trainings that try to reach `min_accuracy` on validation data. Each attempt doubles the
    epochs, and the best network is kept."""
    temperature: Positive = 4.0
    temperature_schedule: Literal["fixed", "linear", "cosine", "exponential", "sigmoid", "learned", "adversarial"] = (
        "fixed"
    )
    """How T changes from `temperature` to `temperature_end` over the epochs e. `sigmoid` is T0 / (1 + exp(−a e));
    `learned` and `adversarial` (Li et al. 2023) change T by its gradient, between `temperature_min` and
    `temperature_max`."""
    temperature_end: Positive = 1.0
    temperature_rate: Positive = 1.0
    """The rate a of `sigmoid`, per epoch."""
    temperature_min: Positive = 1.0
    temperature_max: Positive = 20.0
    sampling: Literal["none", "gaussian", "gamma", "poisson", "points"] = "none"
    """Distribution from which soft labels are drawn at every step; its mean is the teacher's softmax output."""
    sampling_strength: Annotated[float, Field(gt=0, le=10_000)] = 10.0
    """The concentration k, the rate n or the number of points of the draws; for `gaussian`, 1 / standard deviation."""
    alpha: Fraction = 0.9
    losses: dict[Term, Positive] = field(default_factory=dict)
    """Weight of each term, replacing `alpha`; the formulas are in edgekd/distill/terms/losses.py."""
    features: tuple[Feature, ...] = ()
    """Terms on layers; they are added to the terms on logits."""
    stages: tuple[Stage, ...] = ()
    """The stages in their order, replacing `losses` and `features`; the sum of their epochs is `epochs`."""
    standardize: bool = False
    """Whether each row of logits is scaled to mean 0 and standard deviation 1 for the soft terms (Sun et al. 2024)."""
    dkd_alpha: NotNegative = 1.0
    dkd_beta: NotNegative = 8.0
    """Weight of the classes other than the label's in `dkd` (Zhao et al. 2022)."""
    dist_beta: NotNegative = 1.0
    dist_gamma: NotNegative = 1.0
    """Weights of the relations between classes and between samples in `dist` (Huang et al. 2022)."""
    peers: Annotated[int, Field(ge=1, le=8)] = 1
    """Number of further students that learn with this one by the term `mutual` (Zhang et al. 2018). They are not
    kept."""
    combine: Literal["mean", "confidence"] = "mean"
    """How the logits of several teachers are combined for each image: their (weighted) mean, or the logits of the
    teacher with the highest confidence."""
    teacher_weights: tuple[Positive, ...] = ()
    """Weights of the mean, in the order of the teachers; by default all are equal."""
    sequences: Literal["data", "teacher", "both"] = "data"
    """Translation only: whether the student learns to write the data's translations, those that the teacher writes
    (sequence-level distillation, Kim and Rush 2016, arXiv 1606.07947), or both."""
    sequence_beam: Annotated[int, Field(ge=1, le=64)] = 5
    """Number of hypotheses with which the teacher writes them."""
    views: Annotated[int, Field(ge=1)] = 8
    """Number of augmented views of each image. The teacher processes each view once, and its outputs are kept."""
    init_from_teacher: bool = False
    """Whether the teacher's tensors are copied into the student's tensors of the same name and shape before
    training."""
    qat: Qat | None = None
    """The training for int8 after the distillation; without this table there is none."""
    prune: Prune | None = None
    """The pruning of the teacher; without this table it is not pruned."""

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        _refuse_double(self.losses)
        if self.stages and (self.losses or self.features):
            raise ValueError("stages: each names its terms; give no losses or features beside them")
        if self.stages and sum(stage.epochs for stage in self.stages) != self.epochs:
            total = sum(stage.epochs for stage in self.stages)
            raise ValueError(f"epochs: should be the stages' sum, {total}, got {self.epochs}")
        if not self.temperature_min < self.temperature_max:
            raise ValueError("temperature_min: should be below temperature_max")
        if self.sampling != "none":
            _refuse_sampling([part.losses for part in self.parts()])
        return self

    def unused_settings(self, also: AbstractSet[Term] = frozenset()) -> Iterator[str]:
        """Yield a message for each setting that cannot have its documented effect, or that differs from its default but
        has no effect. The message says what the setting needs.

        `also` are terms by which other networks learn with the same settings.
        """
        yield from Training.unused_settings(self)
        for name, further in (("qat", self.qat), ("prune", self.prune)):
            yield from (f"{name}.{problem}" for problem in _unused_after(further))
        shortest = min(part.epochs for part in self.parts())
        if self.schedule != "one-cycle" and shortest < min(self.warmup_epochs, self.epochs):
            yield f"warmup_epochs: should be at most the {shortest} epochs of the shortest stage"
        terms = also | {term for part in self.parts() for term in part.losses}
        moved, tempered = self.temperature_schedule, f"one of the terms {', '.join(sorted(TEMPERED))}"
        needs = {
            "temperature": (bool(terms & TEMPERED), tempered),
            "temperature_schedule": (bool(terms & TEMPERED), tempered),
            "label_smoothing": ("ce" in terms, "the term ce"),
            "class_weights": ("ce" in terms, "the term ce"),
            "alpha": (not (self.losses or self.stages), "no losses or stages, which have weights of their own"),
            "temperature_end": (
                moved in ("linear", "cosine", "exponential"),
                'temperature_schedule = "linear", "cosine" or "exponential"',
            ),
            "temperature_rate": (moved == "sigmoid", 'temperature_schedule = "sigmoid"'),
            "sampling": (bool(terms & {"kd", "soft_ce"}), "the term kd or soft_ce"),
            "sampling_strength": (self.sampling != "none", "sampling"),
            "standardize": (bool(terms & (TEMPERED | {"mse"})), "a term on the teacher's logits"),
            "peers": ("mutual" in terms, "the term mutual"),
            "sequence_beam": (self.sequences != "data", 'sequences = "teacher" or "both"'),
            "teacher_weights": (self.combine == "mean", 'combine = "mean"'),
        }
        for name in ("temperature_min", "temperature_max"):
            needs[name] = (moved in ("learned", "adversarial"), 'temperature_schedule = "learned" or "adversarial"')
        for name in ("dkd_alpha", "dkd_beta", "dist_beta", "dist_gamma"):
            needs[name] = (name.partition("_")[0] in terms, f"the term {name.partition('_')[0]}")
        for name, (used, what) in needs.items():
            if not used and getattr(self, name) != getattr(Recipe, name):
                yield f"{name}: has no effect here; it needs {what}"
        for part in self.parts():
            for feature in part.features:
                yield from feature.unused_settings()

    def weights(self) -> dict[Term, float]:
        """The weight of each term on logits that has an effect."""
        named: dict[Term, float] = dict(self.losses) or {"kd": self.alpha, "ce": 1 - self.alpha}
        return {name: weight for name, weight in named.items() if weight > 0}

    def on_logits(self, training: Training) -> "Recipe":
        """This recipe for another training of the same student: with the settings of `training`, and the terms on
        logits of the last stage. `mutual` is dropped, and plain KD replaces terms that use no teacher."""
        losses: dict[Term, float] = {
            name: weight for name, weight in self.parts()[-1].losses.items() if name != "mutual"
        }
        if not losses.keys() - {"ce"}:
            losses = {"kd": Recipe.alpha, "ce": 1 - Recipe.alpha}
        settings = {field_.name: getattr(training, field_.name) for field_ in dataclasses.fields(Training)}
        return dataclasses.replace(
            self, losses=losses, features=(), stages=(), peers=1, attempts=1, qat=None, prune=None, **settings
        )

    def parts(self) -> tuple[Stage, ...]:
        """The stages; a recipe without stages is a single one."""
        return self.stages or (Stage(epochs=self.epochs, losses=self.weights(), features=self.features),)


def _unused_after(training: Training | None) -> Iterator[str]:
    """A message for each setting without effect of a training that follows the distillation."""
    if training and training.preset:
        yield "preset: has no effect here; give its settings one by one"
    yield from training.unused_settings() if training else ()


def _refuse_double(losses: dict[Term, float]) -> None:
    if {"kd", "soft_ce"} <= losses.keys():
        raise ValueError("losses: must name kd or soft_ce, not both: their gradients are the same")


def _refuse_sampling(losses: list[dict[Term, float]]) -> None:
    for part in losses:
        if wrong := sorted(part.keys() & {"mse", "dkd", "dist"}):
            raise ValueError(f"sampling: draws labels for kd and soft_ce; {wrong[0]} needs the teacher's own logits")
