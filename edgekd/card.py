"""A model card: task, data, teacher, student, recipe and budget, read from `models/NAME.toml`."""

import dataclasses
import re
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from edgekd.errors import ConfigError, did_you_mean
from edgekd.spec import build, locate, read_toml

__all__ = [
    "Augment",
    "Budget",
    "Card",
    "Data",
    "Recipe",
    "Student",
    "Teacher",
    "Training",
    "load_card",
    "parse_budget",
]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _import_path(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        raise ValueError(f"should be package.module:function, got {text!r}")
    return text


ImportPath = Annotated[str, AfterValidator(_import_path)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Data:
    """Where the images come from and how they enter the network."""

    source: Literal["digits", "parquet", "torchvision", "image-folder", "import"]
    path: str = ""
    """Folder of the data, relative to the card; `--data` overrides it."""
    name: str = ""
    """torchvision only: the data set's class, such as `MNIST`."""
    function: ImportPath | None = None
    """import only: `package.module:function`, called with (path, split) -> (uint8 NHWC images, labels)."""
    download: bool = False
    """torchvision only: whether the network may be used to fetch the set."""
    size: Annotated[int, Field(ge=1)]
    """Height and width the network sees, pixels."""
    resize: Annotated[int, Field(ge=1)] | None = None
    """image-folder only: the shorter side is resized to this before the centre is cut out; default `size`."""
    channels: Literal[1, 3] = 3
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    """Class names in label order; for an image folder, the names of its subfolders."""
    mean: Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]
    """Per channel, on the scale 0–1."""
    std: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=3)]
    validation_fraction: Annotated[float, Field(gt=0, lt=0.9)] = 0.1
    """Share of the training images set apart, the same for each class; every choice is made on it."""
    validation_seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check(self) -> "Data":
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(f"must give {key} as {self.channels} numbers, one per channel, got {len(values)}")
        if self.source == "import" and self.function is None:
            raise ValueError('must name `function = "package.module:function"` with source = "import"')
        if self.source == "torchvision" and not self.name:
            raise ValueError('must give `name`, a data set of torchvision, with source = "torchvision"')
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Augment:
    """What may differ between two views of one image."""

    crop_padding: Annotated[int, Field(ge=0)] = 0
    """Zero pixels put around the image before a random crop of the original size."""
    flip: bool = False
    """Horizontal mirror with probability one half."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Training:
    """An optimiser and its schedule."""

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=2)] = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Positive = 0.1
    momentum: Fraction = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass; `auto` is bf16 where this machine has it in hardware."""
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Recipe(Training):
    """How to distil: L = α T² KL(p_teacher ‖ p_student) + (1 − α) CE (Hinton et al. 2015), or the terms in `losses`."""

    temperature: Positive = 4.0
    alpha: Fraction = 0.9
    losses: dict[Literal["ce", "kd", "soft_ce", "mse", "dkd", "dist"], Positive] = field(default_factory=dict)
    """Weight of each term, in place of `alpha`; the formulas are in edgekd/distill/losses.py."""
    standardize: bool = False
    """Bring each row of logits to mean 0 and deviation 1 before the soft terms (Sun et al. 2024)."""
    dkd_alpha: Annotated[float, Field(ge=0)] = 1.0
    dkd_beta: Annotated[float, Field(ge=0)] = 8.0
    """Weight of the classes other than the label's in `dkd` (Zhao et al. 2022)."""
    dist_beta: Annotated[float, Field(ge=0)] = 1.0
    dist_gamma: Annotated[float, Field(ge=0)] = 1.0
    """Weights of the relations between classes and between samples in `dist` (Huang et al. 2022)."""
    views: Annotated[int, Field(ge=1)] = 8
    """Augmented forms of each image; the teacher sees each once and its logits are kept."""
    init_from_teacher: bool = False
    """Copy the teacher's tensors of equal name and shape into the student before training."""

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        if {"kd", "soft_ce"} <= self.losses.keys():
            raise ValueError("losses: must name kd or soft_ce, not both: their gradients are the same")
        return self

    def weights(self) -> dict[str, float]:
        """The weight of each term that is used."""
        named = dict(self.losses) or {"kd": self.alpha, "ce": 1 - self.alpha}
        return {name: weight for name, weight in named.items() if weight > 0}


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Teacher:
    """The network to learn from."""

    family: str
    shape: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    """Weights file relative to the card (safetensors, a state dict for torch.load, or an ONNX model);
    `--teacher` overrides it. Without one the teacher is trained."""
    function: ImportPath | None = None
    """family = "import" only: `package.module:function`, called with the shape's values and `classes`."""
    training: Training | None = None
    attempts: Annotated[int, Field(ge=1, le=5)] = 2
    """How often to train before giving up on `teacher_min_accuracy`; each attempt doubles the epochs."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Student:
    """The family to choose from."""

    family: str
    knobs: dict[str, Annotated[list[Any], Field(min_length=1)]] = field(default_factory=dict)
    """Values to try for each field of the shape; every combination is a candidate."""
    function: ImportPath | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Budget:
    """What the deployed model must meet; None where nothing is asked."""

    latency_p50_ms: Positive | None = None
    latency_p95_ms: Positive | None = None
    latency_p99_ms: Positive | None = None
    """Advisory: too unsteady to gate by, so it is told and never fails."""
    load_ms: Positive | None = None
    """Making the session."""
    size_kb: Positive | None = None
    peak_memory_mb: Positive | None = None
    min_accuracy: Fraction | None = None
    max_accuracy_drop: Annotated[float, Field(ge=0, le=100)] | None = None
    """Points below the teacher."""
    teacher_min_accuracy: Fraction | None = None
    min_agreement: Fraction | None = None
    """Share of the test inputs on which it says what the teacher says."""
    min_coverage: Fraction | None = None
    """Share of the nodes that the target's provider runs."""
    min_fused_share: Fraction | None = None
    """Of the nodes that could compute in int8, the share that does."""

    def with_values(self, other: "Budget") -> "Budget":
        """This budget with every value that `other` sets."""
        return dataclasses.replace(self, **other.limits())

    def limits(self) -> dict[str, float]:
        """What is asked, by key."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Card:
    """A model card. `name` and `file` come from the file's place, the rest from its text."""

    title: str
    about: str = ""
    task: Literal["image-classification"] = "image-classification"
    data: Data
    augment: Augment = field(default_factory=Augment)
    teacher: Teacher
    student: Student
    recipe: Recipe
    budgets: dict[str, Budget]
    """By target name; the key "" holds what is asked on every target."""
    name: str = ""
    file: str = ""

    def budget(self, target: str, override: Budget | None = None) -> Budget:
        """What is asked on `target`: `[budget]`, then `[budget.TARGET]`, then the command line."""
        budget = self.budgets[""].with_values(self.budgets.get(target, Budget()))
        return budget.with_values(override) if override else budget

    def resolve(self, path: str) -> Path:
        """A path of the card; relative ones start at the card's folder."""
        return Path(self.file).parent / path


def load_card(name: str) -> Card:
    """The bundled card `name`, or the card file at that path.

    Raises ConfigError for anything wrong in it, with file, key, value, rule and nearest name.
    """
    path = locate("models", name)
    data = read_toml(path)
    for key in ("name", "file", "budgets"):
        if key in data:
            raise ConfigError(f"{path}: {key}: unknown key; {did_you_mean(key, ['budget', 'title', 'data'])}")
    table = data.pop("budget", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: budget: got {table!r}; it should be a table of limits")
    everywhere = {key: value for key, value in table.items() if not isinstance(value, dict)}
    budgets = {"": dataclasses.asdict(build(Budget, everywhere, f"{path}: [budget]"))}
    for target, limits in table.items():
        if isinstance(limits, dict):
            budgets[target] = dataclasses.asdict(build(Budget, limits, f"{path}: [budget.{target}]"))
    return build(Card, data | {"budgets": budgets, "name": path.stem, "file": str(path)}, str(path))


def parse_budget(options: list[str]) -> Budget:
    """`["size_kb=300", …]` (the values of `--budget`) as a Budget; ConfigError for anything else."""
    values: dict[str, float] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise ConfigError(f"--budget {option!r}: it should be key=value, such as size_kb=300")
        try:
            values[key.strip()] = float(text)
        except ValueError:
            raise ConfigError(f"--budget {key}: got {text!r}; it should be a number") from None
    return build(Budget, values, "--budget")
