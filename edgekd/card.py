"""A model card: task, data, teacher, student, recipe and budget, read from `models/NAME.toml`."""

import dataclasses
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from edgekd.errors import ConfigError, did_you_mean, shown
from edgekd.recipe import Augment, Fraction, Positive, Recipe, Seed, Term, Training
from edgekd.spec import build, locate, read_toml

__all__ = [
    "Augment",
    "Budget",
    "Card",
    "Data",
    "Recipe",
    "Student",
    "Teacher",
    "TextData",
    "Training",
    "caller_rule",
    "check_card",
    "parse_budget",
    "read_tables",
]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

MAX_SIDE = 8192
"""Pixels of an image's side: one image of colour then has 200 MB."""

MAX_TOKENS = 65_536
"""Of a sentence."""


def _import_path(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        raise ValueError(f"should be package.module:function, got {shown(text)}")
    return text


ImportPath = Annotated[str, AfterValidator(_import_path)]
Level = Annotated[int, Field(ge=0, le=255)]


def _composed_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Class names in Unicode's NFC; macOS writes folder names in NFD, where an accent is a character of its own."""
    composed = tuple(unicodedata.normalize("NFC", name) for name in names)
    if len(set(composed)) < len(set(names)):
        twice = next(name for place, name in enumerate(composed) if name in composed[:place])
        raise ValueError(f"should name each class once; {shown(twice)} is there in two forms of Unicode")
    return composed


Classes = Annotated[tuple[str, ...], Field(min_length=2), AfterValidator(_composed_names)]


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
    size: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    """Height and width the network sees, pixels."""
    resize: Annotated[int, Field(ge=1, le=MAX_SIDE)] | None = None
    """image-folder only: the shorter side is resized to this before the centre is cut out; default `size`."""
    channels: Literal[1, 3] = 3
    background: tuple[Level, Level, Level] = (0, 0, 0)
    """The colour (red, green, blue) onto which transparent images are composed."""
    skip_broken: bool = False
    """Whether images that cannot be decoded are left out; otherwise they end the command before anything is trained."""
    image_column: str = ""
    """parquet only: the column that holds the images; default `image` or `img`."""
    label_column: str = ""
    """parquet only: the column that holds the labels, numbers or class names; default `label`."""
    classes: Classes
    """Class names in label order; for an image folder, the names of its subfolders."""
    mean: Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]
    """Per channel, on the scale 0–1."""
    std: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=3)]
    validation_fraction: Annotated[float, Field(gt=0, lt=0.9)] = 0.1
    """Share of the training images set apart, the same for each class; every choice is made on it."""
    validation_seed: Seed = 0

    @model_validator(mode="after")
    def _check(self) -> "Data":
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(f"must give {key} as {self.channels} numbers, one per channel, got {len(values)}")
        if self.source == "import" and self.function is None:
            raise ValueError('must name `function = "package.module:function"` with source = "import"')
        if self.source == "torchvision" and not self.name:
            raise ValueError('must give `name`, a data set of torchvision, with source = "torchvision"')
        for key in ("image_column", "label_column"):
            if getattr(self, key) and self.source != "parquet":
                raise ValueError(f'{key}: has no effect with source = "{self.source}"; it is for "parquet"')
        for key, given in (("background", any(self.background)), ("skip_broken", self.skip_broken)):
            if given and self.source in ("digits", "import"):
                raise ValueError(f'{key}: has no effect with source = "{self.source}"; it is for image files')
        return self

    def preprocessing(self) -> dict[str, Any]:
        """What the pixels of a view depend on beside the data themselves, as part of the key of kept outputs.

        What later versions added is left out at its default, so that outputs kept before are still found.
        """
        values = dataclasses.asdict(self)
        for key in ("skip_broken", "image_column", "label_column"):  # they choose the data, whose digest is in the key
            del values[key]
        if self.background == (0, 0, 0):
            del values["background"]
        return values


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TextData:
    """Where the sentences come from and how they become the network's input, token ids padded with 0."""

    source: Literal["tsv", "import"]
    """tsv: the files train.tsv and test.tsv, and dev.tsv if there is one, each line a sentence, a tab, a label."""
    path: str = ""
    """Folder of the data, relative to the card; `--data` overrides it."""
    function: ImportPath | None = None
    """import only: `package.module:function`, called with (path, split) -> (sentences, labels)."""
    classes: Classes
    """Class names in label order. A label in the files is a class's name, or its place counted from 0."""
    max_length: Annotated[int, Field(ge=1, le=MAX_TOKENS)]
    """Tokens of a sentence beyond this many are cut off."""
    vocabulary: Annotated[int, Field(ge=3, le=10_000_000)]
    """Tokens that are told apart, two of them being padding and `[UNK]`, which stands for all others."""
    tokenizer: str = ""
    """A `tokenizer.json` of the tokenizers library, relative to the card. Without one the tokens are the most frequent
    words and signs of the training sentences, in lower case."""
    timed_length: Annotated[int, Field(ge=1)] | None = None
    """Tokens of the sentences that latency is measured with; default the median of the validation sentences."""
    validation_fraction: Annotated[float, Field(gt=0, lt=0.9)] = 0.1
    """Share of the training sentences set apart, the same for each class, where there is no dev.tsv."""
    validation_seed: Seed = 0

    @model_validator(mode="after")
    def _check(self) -> "TextData":
        if self.source == "import" and self.function is None:
            raise ValueError('must name `function = "package.module:function"` with source = "import"')
        if self.timed_length is not None and self.timed_length > self.max_length:
            raise ValueError(f"timed_length: must be at most max_length, {self.max_length}, got {self.timed_length}")
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Teacher:
    """The network to learn from."""

    family: str
    shape: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    """Weights file relative to the card (safetensors, a state dict for torch.load, or an ONNX model);
    `--teacher` overrides it. Without one the teacher is trained. Further teachers need it, assistants have none."""
    function: ImportPath | None = None
    """family = "import" only: `package.module:function`, called with the shape's values and `classes`."""
    output: str = ""
    """Which of several outputs holds the logits: a key, an attribute, a place counted from 0, or the name in an ONNX
    file. Without it the output `logits` is taken, or the first one of shape (batch, classes)."""
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
    output: str = ""
    """As a teacher's."""


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
    task: str = "image-classification"
    """One of edgekd/tasks."""
    data: Any
    """What the task's own type says: `Data` of images, `TextData` of sentences."""
    augment: Augment = field(default_factory=Augment)
    teacher: Teacher
    more_teachers: tuple[Teacher, ...] = ()
    """Further teachers, each with its weights; `recipe.combine` says how their logits meet the first one's."""
    assistants: tuple[Teacher, ...] = ()
    """Networks between teacher and student, largest first: each learns from the one before it, and the last one
    teaches the student (Mirzadeh et al. 2020, arXiv 1902.03393)."""
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


def caller_rule(data: Mapping[str, Any]) -> str:
    """What the caller of a model must do to an image, from the values of a card's `[data]`, in one line.

    Empty where the data are no images.
    """
    if "size" not in data:
        return ""
    size = data["size"]
    fitted = f"upright, shorter side to {data.get('resize') or size} (bilinear), centre {size}x{size} cut out"
    given = data.get("source") in ("digits", "import")  # edgekd takes these as they are
    colour = "RGB" if data.get("channels", 3) == 3 else "grey"
    return f"{f'none, {size}x{size} as given' if given else fitted}; {colour}, uint8, 0 to 255"


def read_tables(name: str) -> tuple[dict[str, Any], str]:
    """The tables of the bundled card `name`, or of the card file at that path, ready to be built; and the file.

    Raises ConfigError for a file that is no TOML, or a key that no card may have.
    """
    path = locate("models", name)
    data = read_toml(path)
    for key in ("name", "file", "budgets"):
        if key in data:
            raise ConfigError(f"{path}: {key}: unknown key; {did_you_mean(key, ['budget', 'title', 'data'])}")
    table = data.pop("budget", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: budget: got {shown(table)}; it should be a table of limits")
    everywhere = {key: value for key, value in table.items() if not isinstance(value, dict)}
    budgets = {"": dataclasses.asdict(build(Budget, everywhere, f"{path}: [budget]"))}
    for target, limits in table.items():
        if isinstance(limits, dict):
            budgets[target] = dataclasses.asdict(build(Budget, limits, f"{path}: [budget.{target}]"))
    return data | {"budgets": budgets, "name": path.stem, "file": str(path)}, str(path)


def check_card(card: Card) -> Card:
    """The card; ConfigError for the first setting in it that would not be looked at, and why."""
    trainings = {"teacher.training": card.teacher.training}
    trainings |= {f"assistants.{number}.training": one.training for number, one in enumerate(card.assistants)}
    for where, training in trainings.items():
        for problem in training.idle() if training else ():
            raise ConfigError(f"{card.file}: {where}.{problem}")
    for problem in card.recipe.idle(_learnt_by_others(card)):
        raise ConfigError(f"{card.file}: recipe.{problem}")
    for problem in _idle_teachers(card):
        raise ConfigError(f"{card.file}: {problem}")
    return card


def _learnt_by_others(card: Card) -> set[Term]:
    """The terms by which assistants (plain KD where the recipe has no term for them) and a teacher that is the
    student's own network learn, with the recipe's settings."""
    found: set[Term] = {"ce", "kd"} if card.assistants else set()
    if card.teacher.family == "self" and card.teacher.training is None:
        found.add("ce")
    return found


def _idle_teachers(card: Card) -> Iterator[str]:
    """Each setting about further teachers and assistants that would not be looked at, and why."""
    if card.teacher.family == "self" and card.teacher.shape:
        yield 'teacher.shape: has no effect; family = "self" is the student\'s own network, of the shape that is chosen'
    for number, one in enumerate(card.more_teachers):
        if one.training is not None:
            yield f"more_teachers.{number}.training: has no effect; a further teacher comes with its weights"
    for number, one in enumerate(card.assistants):
        if one.weights:
            yield f"assistants.{number}.weights: has no effect; assistants are trained, each by the one before it"
    for where in ("more_teachers", "assistants"):
        for number, one in enumerate(getattr(card, where)):
            if one.attempts != Teacher.attempts:
                yield f"{where}.{number}.attempts: has no effect; it is for [teacher]"
    if card.recipe.combine != "mean" and not card.more_teachers:
        yield "recipe.combine: has no effect here; it needs [[more_teachers]]"


def parse_budget(options: list[str]) -> Budget:
    """`["size_kb=300", …]` (the values of `--budget`) as a Budget; ConfigError for anything else."""
    values: dict[str, float] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise ConfigError(f"--budget {shown(option)}: it should be key=value, such as size_kb=300")
        try:
            values[key.strip()] = float(text)
        except ValueError:
            raise ConfigError(f"--budget {key}: got {shown(text)}; it should be a number") from None
    return build(Budget, values, "--budget")
