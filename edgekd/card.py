"""A model card: task, data, teacher, student, recipe and budget, read from `models/NAME.toml`."""

import dataclasses
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from edgekd.augmentation import Augment
from edgekd.budget import Budget
from edgekd.errors import ConfigError, did_you_mean, shown
from edgekd.files import at_home
from edgekd.ranges import Positive, Seed
from edgekd.recipe import Recipe, Training
from edgekd.spec import locate, read_toml

__all__ = [
    "MAX_SIDE",
    "Budget",
    "Card",
    "Classes",
    "Data",
    "Export",
    "Family",
    "Level",
    "Recipe",
    "Student",
    "Teacher",
    "TextData",
    "Training",
    "caller_rule",
    "card_tables",
    "composed_names",
    "is_published",
    "read_tables",
    "require_one_a_channel",
]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

MAX_SIDE = 8192
"""Largest side of an image in pixels; one colour image of this size needs 200 MB."""

MAX_TOKENS = 65_536
"""Largest number of tokens of a sentence."""


def _import_path(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        raise ValueError(f"should be package.module:function, got {shown(text)}")
    return text


ImportPath = Annotated[str, AfterValidator(_import_path)]
Level = Annotated[int, Field(ge=0, le=255)]


def composed_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Convert class names to Unicode NFC. macOS writes folder names in NFD, where an accent is a separate character."""
    composed = tuple(unicodedata.normalize("NFC", name) for name in names)
    if len(set(composed)) < len(set(names)):
        twice = next(name for place, name in enumerate(composed) if name in composed[:place])
        raise ValueError(f"should name each class once; {shown(twice)} is there in two forms of Unicode")
    return composed


Classes = Annotated[tuple[str, ...], Field(min_length=2), AfterValidator(composed_names)]


def require_one_a_channel(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
    """Raise ValueError unless mean and std have one number for each channel."""
    for key, given in (("mean", mean), ("std", std)):
        if len(given) != channels:
            raise ValueError(f"must give {key} as {channels} numbers, one per channel, got {len(given)}")


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
    """torchvision only: whether the data set may be downloaded."""
    size: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    """Height and width of the network's input, in pixels."""
    resize: Annotated[int, Field(ge=1, le=MAX_SIDE)] | None = None
    """image-folder only: the shorter side is resized to this before the centre is cut out; default `size`."""
    channels: Literal[1, 3] = 3
    background: tuple[Level, Level, Level] = (0, 0, 0)
    """The colour (red, green, blue) onto which transparent images are composed."""
    skip_broken: bool = False
    """Whether images that cannot be decoded are left out. Otherwise the command stops before anything is trained."""
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
    """Share of the training images that is used for validation, the same for each class. Every choice is made by
    validation data."""
    validation_seed: Seed = 0

    @model_validator(mode="after")
    def _check(self) -> "Data":
        require_one_a_channel(self.mean, self.std, self.channels)
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
        """The settings that determine the pixels of a view, apart from the data. They are part of the cache key of the
        teacher's outputs.

        Settings that later versions added are left out when they have their default value, so that outputs cached by
        earlier versions are still found.
        """
        values = dataclasses.asdict(self)
        # These settings choose the data, and the digest of the data is already in the key.
        for key in ("skip_broken", "image_column", "label_column"):
            del values[key]
        if self.background == (0, 0, 0):
            del values["background"]
        return values


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TextData:
    """Where the sentences come from and how they become the network's input: token ids, padded with 0."""

    source: Literal["tsv", "import"]
    """tsv: the files train.tsv and test.tsv, and dev.tsv if there is one, each line a sentence, a tab, a label."""
    path: str = ""
    """Folder of the data, relative to the card; `--data` overrides it."""
    function: ImportPath | None = None
    """import only: `package.module:function`, called with (path, split) -> (sentences, labels)."""
    classes: Classes
    """Class names in label order. A label in the files is the name of a class, or its index counted from 0."""
    max_length: Annotated[int, Field(ge=1, le=MAX_TOKENS)]
    """The largest number of tokens of a sentence; further tokens are cut off."""
    vocabulary: Annotated[int, Field(ge=3, le=10_000_000)]
    """Size of the vocabulary. It includes the padding token and `[UNK]`, which stands for all unknown tokens."""
    tokenizer: str = ""
    """A `tokenizer.json` of the tokenizers library, relative to the card. Without one the tokens are the most frequent
    words and signs of the training sentences, in lower case."""
    timed_length: Annotated[int, Field(ge=1)] | None = None
    """Number of tokens of the inputs for latency measurements; the default is the median of the validation
    sentences."""
    validation_fraction: Annotated[float, Field(gt=0, lt=0.9)] = 0.1
    """Share of the training sentences that is used for validation if there is no dev.tsv, the same for each class."""
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
    `--teacher` overrides it. Without a file the teacher is trained. With a file and `training` it is fine-tuned; its
    last layer may then be of another size. Further teachers need a file; assistants must not have one. For torchvision
    and timm, `pretrained` or `pretrained:NAME` are published weights."""
    download: bool = False
    """Whether published weights may be fetched if they are not on this machine."""
    function: ImportPath | None = None
    """family = "import" only: `package.module:function`, called with the shape's values and `classes`."""
    output: str = ""
    """Which of several outputs holds the logits: a key, an attribute, an index counted from 0, or the name of an output
    of an ONNX file. By default it is the output `logits`, or else the first output of shape (batch, classes)."""
    training: Training | None = None
    attempts: Annotated[int, Field(ge=1, le=5)] = 2
    """The largest number of trainings that try to reach `teacher_min_accuracy`. Each attempt doubles the epochs."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Family:
    """A network family and the shapes of it that are candidates."""

    family: str
    knobs: dict[str, Annotated[list[Any], Field(min_length=1)]] = field(default_factory=dict)
    """Values to try for each field of the shape; every combination is a candidate."""
    function: ImportPath | None = None
    output: str = ""
    """See `Teacher.output`."""


Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Export:
    """What the exported files do in addition to the network."""

    resize: bool = False
    """Whether the files take images of any height and width, and resize and crop them as edgekd does."""
    timed_size: tuple[Side, Side] | None = None
    """Height and width of the images for all measurements of time; needed with `resize`."""
    nms: bool = False
    """Detection only: whether the files do non-maximum suppression and give the final detections."""
    nms_score: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Detections with this score or a lower one are left out in the graph."""
    nms_overlap: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """The largest intersection over union of two detections of a class that the graph keeps."""
    nms_boxes: Annotated[int, Field(ge=1, le=100)] = 100
    """The number of rows that the graph gives for each image."""

    @model_validator(mode="after")
    def _check(self) -> "Export":
        for name in ("nms_score", "nms_overlap", "nms_boxes"):
            if not self.nms and getattr(self, name) != getattr(Export, name):
                raise ValueError(f"{name}: has no effect without nms = true")
        if self.resize and self.timed_size is None:
            raise ValueError("must give timed_size = [height, width] with resize = true, the size to measure time at")
        if self.timed_size is not None and not self.resize:
            raise ValueError("timed_size: has no effect without resize = true")
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Student(Family):
    """The network family, or the families, from which the student is chosen."""

    family: str = ""
    weights: str = ""
    """Weights file relative to the card, or published weights, from which every candidate starts: the layers whose
    names and sizes fit are loaded before the training."""
    download: bool = False
    """See `Teacher.download`."""
    families: tuple[Family, ...] = ()
    """Several families, in place of `family` and `knobs`. A shape then names its family under the key `family`."""
    rank: Literal["capacity", "learning"] = "capacity"
    """How one of the candidates that fit is chosen: the one with the most multiply-accumulates, or the one that learns
    best in short distillations."""

    @model_validator(mode="after")
    def _check(self) -> "Student":
        if not self.family and not self.families:
            raise ValueError("family: is missing; add it, or [[student.families]]")
        if self.families and (self.family or self.knobs or self.function or self.output or self.weights):
            raise ValueError("families: has no effect beside family, knobs, function, output or weights; drop these")
        names = [one.family for one in self.families]
        if twice := next((name for place, name in enumerate(names) if name in names[:place]), ""):
            raise ValueError(f"families: should name each family once, got {shown(twice)} twice")
        return self

    def family_of(self, shape: dict[str, Any]) -> tuple[Family, dict[str, Any]]:
        """The family of a shape, and the shape's values without the key `family`."""
        if not self.families:
            return self, shape
        wanted = shape.get("family")
        others = {key: value for key, value in shape.items() if key != "family"}
        return next((one for one in self.families if one.family == wanted), self.families[0]), others


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Trials:
    """What one trial of a sweep or of a ranking reserves on a Ray cluster (`--ray`)."""

    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    """CPUs, which are also the threads of the trial."""
    gpus: Annotated[float, Field(ge=0, le=64)] = 0.0
    """GPUs of one node; 0.5 lets two trials share one."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Card:
    """A model card. `name` and `file` come from the path of the file, the other fields from its content."""

    title: str
    about: str = ""
    task: str = "image-classification"
    """The name of a task in edgekd/tasks."""
    data: Any
    """An object of the task's data type: `Data` for images, `TextData` for sentences."""
    augment: Augment = field(default_factory=Augment)
    teacher: Teacher
    more_teachers: tuple[Teacher, ...] = ()
    """Further teachers, each with its weights; `recipe.combine` says how their logits are combined with the first
    one's."""
    assistants: tuple[Teacher, ...] = ()
    """Networks between teacher and student, largest first: each learns from the one before it, and the last one
    teaches the student (Mirzadeh et al. 2020, arXiv 1902.03393)."""
    student: Student
    recipe: Recipe
    export: Export = field(default_factory=Export)
    trials: Trials = field(default_factory=Trials)
    budgets: Any
    """A dict of Budgets by target name; the key "" holds the limits for every target."""
    name: str = ""
    file: str = ""

    def budget(self, target: str, override: Budget | None = None) -> Budget:
        """The limits on `target`: values from `[budget]`, replaced by those from `[budget.TARGET]`, replaced by the
        command line's."""
        budget: Budget = self.budgets[""].with_values(self.budgets.get(target, Budget()))
        return budget.with_values(override) if override else budget

    def resolve(self, path: str) -> Path:
        """Resolve a path in the card: a relative path starts at the card's folder, `~` is the user's home folder."""
        return Path(self.file).parent / at_home(path)


def caller_rule(card: Mapping[str, Any]) -> str:
    """Describe in one line how the caller of a model must prepare an image, given the values of a card's tables `data`
    and `export`.

    The text is empty if the data are not images.
    """
    data = card.get("data", {})
    colour = "RGB" if data.get("channels", 3) == 3 else "grey"
    if "height" in data and "width" in data:
        inside = f"upright, scaled to fit into {data['height']}x{data['width']} (height x width, bilinear)"
        return f"{inside}, in the middle, grey 114 around; {colour}, uint8, 0 to 255"
    if "size" not in data:
        return ""
    size = data["size"]
    fitted = f"upright, shorter side to {data.get('resize') or size} (bilinear), centre {size}x{size} cut out"
    given = data.get("source") in ("digits", "import")  # edgekd does not resize these
    if card.get("export", {}).get("resize"):
        inside = fitted.removeprefix("upright, ")
        return f"none, any height and width, upright; in the graph: {inside}; {colour}, uint8, 0 to 255"
    return f"{f'none, {size}x{size} as given' if given else fitted}; {colour}, uint8, 0 to 255"


def read_tables(name: str) -> tuple[dict[str, Any], str]:
    """Read the bundled card `name`, or the card file at that path. Returns its tables as they are written, and the
    file.

    Raises ConfigError for a file that is not TOML.
    """
    path = locate("models", name)
    return read_toml(path), str(path)


def card_tables(data: dict[str, Any], path: str) -> dict[str, Any]:
    """The tables from which a `Card` can be built, from those of a card's file; the limits are checked.

    Raises ConfigError for a key that no card may have, and for a mistake in `[budget]`.
    """
    for key in ("name", "file", "budgets"):
        if key in data:
            raise ConfigError(f"{path}: {key}: unknown key; {did_you_mean(key, ['budget', 'title', 'data'])}")
    table = data.get("budget", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: budget: got {shown(table)}; it should be a table of limits")
    budgets = {"": {key: value for key, value in table.items() if not isinstance(value, dict)}}
    budgets |= {target: limits for target, limits in table.items() if isinstance(limits, dict)}
    others = {key: value for key, value in data.items() if key != "budget"}
    return others | {"budgets": budgets, "name": Path(path).stem, "file": path}


def is_published(weights: str) -> bool:
    """Whether `weights` of a card means published weights of torchvision or timm, and not a file."""
    return weights.partition(":")[0] == "pretrained"
