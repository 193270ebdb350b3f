"""How a network is trained: views, optimiser and schedule, and what a student learns from its teachers."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

__all__ = ["TEMPERED", "Augment", "Feature", "Recipe", "Seed", "Stage", "Term", "Training"]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Term = Literal["ce", "kd", "soft_ce", "mse", "dkd", "dist", "mutual"]
TEMPERED: frozenset[Term] = frozenset({"kd", "soft_ce", "dkd", "dist"})
"""Terms of softmaxes at the temperature, with the factor T²."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Augment:
    """What may differ between two views of one image."""

    crop_padding: Annotated[int, Field(ge=0)] = 0
    """Zero pixels put around the image before a random crop of the original size."""
    flip: bool = False
    """Horizontal mirror with probability one half."""
    policy: Literal["none", "trivial", "rand"] = "none"
    """Colour and shape operations: TrivialAugment (Müller and Hutter 2021) or RandAugment (Cubuk et al. 2020)."""
    rand_operations: Annotated[int, Field(ge=1, le=8)] = 2
    rand_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """RandAugment's N and M, of 30."""
    mixup: NotNegative = 0.0
    """α of λ ~ Beta(α, α); the image becomes λ image + (1 − λ) partner (Zhang et al. 2018); 0 is none."""
    cutmix: NotNegative = 0.0
    """α of λ ~ Beta(α, α); a rectangle of 1 − λ of the image comes from the partner (Yun et al. 2019); 0 is none.
    With `mixup` as well, half of the images get each."""
    word_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of sentences: share of the tokens that become the unknown token, which must have id 1."""
    seed: Seed = 0
    """Of the views' draws; apart from the training's: trainings with other seeds share the teacher's outputs."""

    @model_validator(mode="after")
    def _check(self) -> "Augment":
        if self.policy != "rand" and (self.rand_operations, self.rand_magnitude) != (2, 9):
            raise ValueError('rand_operations, rand_magnitude: have no effect without policy = "rand"')
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Training:
    """An optimiser and its schedule."""

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=2)] = 128
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Parts that a batch is computed in, one after the other, before each step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Positive = 0.1
    schedule: Literal["cosine", "one-cycle", "constant"] = "cosine"
    """After the warm-up: half a cosine down to zero, or no change. `one-cycle` rises for 30 % of the steps and falls
    for the rest, both along cosines (Smith and Topin 2018)."""
    momentum: Fraction = 0.9
    weight_decay: NotNegative = 5e-4
    warmup_epochs: NotNegative = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: Literal["none", "balanced"] | tuple[Positive, ...] = "none"
    """Weight of each class in the cross-entropy; `balanced` is images / (classes × images of the class)."""
    clip_norm: Positive | None = None
    """The gradient is scaled down to this norm where it is larger."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay, each step, of the moving average of the weights that is validated and kept; 0 is none."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Stop after so many epochs without a better validation accuracy, and keep the best; 0 is never."""
    compile: bool = False
    """torch.compile of the network: minutes at first, and faster steps on most GPUs."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass; `auto` is bf16 where this machine has it in hardware."""
    seed: Seed = 0

    def idle(self) -> Iterator[str]:
        """Each setting that cannot do what it says, and why."""
        if self.schedule != "one-cycle" and self.warmup_epochs > self.epochs:
            yield f"warmup_epochs: should be at most the {self.epochs} epochs, got {self.warmup_epochs:g}"
        if self.schedule == "one-cycle" and self.warmup_epochs != Training.warmup_epochs:
            yield 'warmup_epochs: has no effect here; schedule = "one-cycle" rises by itself'
        if self.optimizer != "sgd" and self.momentum != Training.momentum:
            yield 'momentum: has no effect here; it needs optimizer = "sgd"'


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Feature:
    """A loss between a layer of the teacher and one of the student."""

    term: Literal["match", "hint", "attention", "similarity", "vid", "rkd", "crd", "adversarial"]
    weight: Positive = 1.0
    teacher: str = ""
    student: str = ""
    """Module paths, such as `layer3.0`; empty is the logits."""
    distance_weight: NotNegative = 25.0
    angle_weight: NotNegative = 50.0
    """Of `rkd` (Park et al. 2019, section 4)."""
    embedding: Annotated[int, Field(ge=2, le=65_536)] = 128
    negatives: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    contrast_temperature: Positive = 0.07
    """Of `crd` (Tian et al. 2020): size of both embeddings, negatives of each image, and τ."""
    hidden: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Width of the discriminator of `adversarial`."""

    def idle(self) -> Iterator[str]:
        """Each setting that differs from its default and is another term's."""
        owners = {"distance_weight": "rkd", "angle_weight": "rkd", "hidden": "adversarial"}
        owners |= dict.fromkeys(("embedding", "negatives", "contrast_temperature"), "crd")
        for name, term in owners.items():
            if term != self.term and getattr(self, name) != getattr(Feature, name):
                yield f"features: {self.name()}: {name}: has no effect here; it is for {term}"

    def name(self) -> str:
        """How the term is called in the history: `hint layer2`; the logits have no name of their own."""
        return f"{self.term} {self.student}".strip()


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Stage:
    """A part of a training with terms of its own; its learning rate starts anew."""

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
    """How to distil: L = α T² KL(p_teacher ‖ p_student) + (1 − α) CE (Hinton et al. 2015), or the terms in `losses`
    and `features`, or `stages` with terms of their own."""

    attempts: Annotated[int, Field(ge=1, le=5)] = 1
    """How often to train while `min_accuracy` is not reached on validation data; each attempt doubles the epochs, and
    the best is kept."""
    temperature: Positive = 4.0
    temperature_schedule: Literal["fixed", "linear", "cosine", "exponential", "sigmoid", "learned", "adversarial"] = (
        "fixed"
    )
    """From `temperature` to `temperature_end` over the epochs; `sigmoid` is T0 / (1 + exp(−a e)); `learned` and
    `adversarial` (Li et al. 2023) move it by gradient between `temperature_min` and `temperature_max`."""
    temperature_end: Positive = 1.0
    temperature_rate: Positive = 1.0
    """a of `sigmoid`, per epoch."""
    temperature_min: Positive = 1.0
    temperature_max: Positive = 20.0
    sampling: Literal["none", "gaussian", "gamma", "poisson", "points"] = "none"
    """Soft labels drawn anew at every step, with the teacher's softmax as their mean."""
    sampling_strength: Annotated[float, Field(gt=0, le=10_000)] = 10.0
    """The draws' concentration k, rate n or number of points; of `gaussian`, the deviation is 1 / this."""
    alpha: Fraction = 0.9
    losses: dict[Term, Positive] = field(default_factory=dict)
    """Weight of each term, in place of `alpha`; the formulas are in edgekd/distill/terms/losses.py."""
    features: tuple[Feature, ...] = ()
    """Terms on layers, added to the others."""
    stages: tuple[Stage, ...] = ()
    """In order, in place of `losses` and `features`; their epochs make up `epochs`."""
    standardize: bool = False
    """Bring each row of logits to mean 0 and deviation 1 before the soft terms (Sun et al. 2024)."""
    dkd_alpha: NotNegative = 1.0
    dkd_beta: NotNegative = 8.0
    """Weight of the classes other than the label's in `dkd` (Zhao et al. 2022)."""
    dist_beta: NotNegative = 1.0
    dist_gamma: NotNegative = 1.0
    """Weights of the relations between classes and between samples in `dist` (Huang et al. 2022)."""
    peers: Annotated[int, Field(ge=1, le=8)] = 1
    """Students that learn beside this one with the term `mutual` (Zhang et al. 2018); none is kept."""
    combine: Literal["mean", "confidence"] = "mean"
    """Several teachers' logits: their (weighted) mean, or those of the one surest of its answer, for each image."""
    teacher_weights: tuple[Positive, ...] = ()
    """Of the mean, in the teachers' order; all alike where none are given."""
    views: Annotated[int, Field(ge=1)] = 8
    """Augmented forms of each image; the teacher sees each once and its logits are kept."""
    init_from_teacher: bool = False
    """Copy the teacher's tensors of equal name and shape into the student before training."""

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

    def idle(self, also: AbstractSet[Term] = frozenset()) -> Iterator[str]:
        """Each setting that cannot do what it says, or differs from its default and has no effect: what it needs.

        `also` are terms by which other networks learn with these settings.
        """
        yield from Training.idle(self)
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
                yield from feature.idle()

    def weights(self) -> dict[Term, float]:
        """The weight of each term on logits that is used."""
        named: dict[Term, float] = dict(self.losses) or {"kd": self.alpha, "ce": 1 - self.alpha}
        return {name: weight for name, weight in named.items() if weight > 0}

    def parts(self) -> tuple[Stage, ...]:
        """The stages; a recipe without them is one."""
        return self.stages or (Stage(epochs=self.epochs, losses=self.weights(), features=self.features),)


def _refuse_double(losses: dict[Term, float]) -> None:
    if {"kd", "soft_ce"} <= losses.keys():
        raise ValueError("losses: must name kd or soft_ce, not both: their gradients are the same")


def _refuse_sampling(losses: list[dict[Term, float]]) -> None:
    for part in losses:
        if wrong := sorted(part.keys() & {"mse", "dkd", "dist"}):
            raise ValueError(f"sampling: draws labels for kd and soft_ce; {wrong[0]} needs the teacher's own logits")
