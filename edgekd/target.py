"""A target: one device, one execution provider, read from `targets/NAME.toml`."""

import re
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from edgekd.errors import ConfigError, UnavailableError, shown
from edgekd.machine import Machine
from edgekd.providers import PROVIDERS, option_error
from edgekd.settings import Setting, built_with
from edgekd.spec import build, bundled_names, locate, read_toml

__all__ = [
    "GENTLE",
    "SCHEMES",
    "Hardware",
    "Limits",
    "Opset",
    "Precision",
    "Provider",
    "Quantization",
    "Reference",
    "Session",
    "Target",
    "load_target",
    "wide_problem",
]

Precision = Literal["fp32", "fp16", "int8"]
Calibration = Literal["minmax", "entropy", "percentile"]
Form = Literal["qdq", "qoperator"]
Correction = Literal["equalize", "clip", "bias"]
Scheme = Literal["u8s8", "u8s8-7bit", "s8s8", "u8u8", "a16w8", "w8"]
SCHEMES: dict[str, dict[str, Any]] = {
    "u8s8": {"activation": "uint8", "weight": "int8", "reduce_range": False},
    "u8s8-7bit": {"activation": "uint8", "weight": "int8", "reduce_range": True},
    "s8s8": {"activation": "int8", "weight": "int8", "reduce_range": False},
    "u8u8": {"activation": "uint8", "weight": "uint8", "reduce_range": False},
    "a16w8": {
        "activation": "uint16",
        "weight": "uint8",
        "reduce_range": False,
        "per_channel": False,
        "form": "qdq",
        "forms": (),
        "equalize": False,
        "clip_weights": False,
        "correct_bias": False,
    },
    "w8": {
        "activation": "float",
        "weight": "int8",
        "reduce_range": False,
        "form": "qdq",
        "equalize": False,
        "clip_weights": False,
        "correct_bias": False,
    },
}
"""The settings of `Quantization` that the schemes stand for."""
GENTLE = ("a16w8", "w8")
"""Schemes that keep more of the activations than 8 bits. They are tried where the others lose too much accuracy."""
WIDE = ("QNNExecutionProvider",)
"""Providers that compute with activations of 16 bits. Others fall back to float between QuantizeLinear and
DequantizeLinear, which is slower than the float network."""
Threads = Annotated[int, Field(ge=1, le=1024)]
Cpu = Annotated[int, Field(ge=0, lt=8192)]
"""The number of a CPU; Linux supports up to 8,192 CPUs."""
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


def _address(text: str) -> str:
    if not re.fullmatch(r"https://[^\s/]+\.[^\s/]+/\S+", text):
        raise ValueError(f"should be the https address of the page that publishes the figure, got {shown(text)}")
    return text


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Hardware:
    """The properties that identify the device. A machine that differs in any of them is not the target."""

    architecture: Literal["x86_64", "aarch64", "arm64", "wasm32"]
    """The architecture as `uname -m` prints it; `wasm32` means a browser or Node."""
    system: Literal["any", "Linux", "Darwin", "Windows"] = "any"
    """The system as `uname -s` prints it."""
    requires: tuple[str, ...] = ()
    """CPU feature flags that the device has, named as in /proc/cpuinfo."""
    lacks: tuple[str, ...] = ()
    """CPU feature flags that the device does not have (they change the int8 kernels, and so speed and accuracy)."""
    cpu_part: tuple[str, ...] = ()
    """Arm only: the `CPU part` numbers of /proc/cpuinfo, such as 0xd08 for the Cortex-A72."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Provider:
    """The ONNX Runtime execution provider that must run the model."""

    name: str
    options: dict[str, str] = field(default_factory=dict)
    """Provider options, as the provider documents them; all values are strings."""
    allow_cpu_fallback: bool = False
    """Whether nodes that the provider does not support may run on the CPU provider."""

    @model_validator(mode="after")
    def _check(self) -> "Provider":
        if problem := option_error(self.name, self.options):
            raise ValueError(problem)
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Session:
    """Session options of ONNX Runtime; they are part of every measurement's fingerprint."""

    intra_op_threads: Threads = 1
    inter_op_threads: Threads = 1
    allow_spinning: bool = True
    graph_level: Literal["disable", "basic", "extended", "all"] = "all"
    arena: bool = True
    """Whether the CPU provider keeps allocated memory for later calls (faster) or frees it."""
    binding: Literal["run", "io"] = "run"
    """How timed calls are made: with `session.run` and numpy arrays, or with inputs and outputs bound before the
    call."""
    batch_sizes: Annotated[tuple[Annotated[int, Field(ge=2, le=65_536)], ...], Field(max_length=64)] = ()
    """Batch sizes whose throughput is measured, in addition to that of single inputs."""
    affinity: Annotated[tuple[Cpu, ...], Field(max_length=8192)] = ()
    """Numbers of the CPUs to which the worker is pinned; if empty, the system chooses them."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Opset:
    """ONNX opset versions (domain ai.onnx) that the target's runtime can load."""

    min: Annotated[int, Field(ge=13)] = 18
    max: Annotated[int, Field(ge=13)] = 23
    export: Annotated[int, Field(ge=18)] = 20
    """The version with which edgekd exports; torch's exporter supports 18 and later."""

    @model_validator(mode="after")
    def _check(self) -> "Opset":
        if not self.min <= self.export <= self.max:
            raise ValueError(f"must hold min <= export <= max, got {self.min}, {self.export}, {self.max}")
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Limits:
    """Limits of the device itself; they apply to every card."""

    size_kb: Annotated[float, Field(gt=0)] | None = None
    """Largest model file, kB of 1,000 B."""
    peak_memory_mb: Annotated[float, Field(gt=0)] | None = None
    """Largest resident memory of the process that runs the model, MB of 1,000,000 B."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Quantization:
    """Settings of the int8 quantization for this target: static QDQ (see the ONNX Runtime quantization guide)."""

    activation: Literal["uint8", "int8", "uint16", "float"] = "uint8"
    """`uint16`: 16 bits, for NPUs (A16W8). `float`: only the weights are stored in 8 bits."""
    weight: Literal["int8", "uint8"] = "int8"
    per_channel: bool = True
    reduce_range: bool = False
    """Whether weights have 7 bits, which avoids the saturation of vpmaddubsw on x86 CPUs without VNNI."""
    symmetric_activation: bool = False
    calibration: Calibration = "minmax"
    form: Form = "qdq"
    """How int8 is written: with QuantizeLinear and DequantizeLinear around float operators, which every provider
    understands, or with int8 operators, which make a smaller file for the CPU provider."""
    equalize: bool = False
    """Whether the ranges of channels are made alike between neighbouring layers before the quantization."""
    clip_weights: bool = False
    """Whether the weights of a layer, which have one scale (`per_channel = false`), are clipped at the bound with the
    smallest error before the quantization."""
    correct_bias: bool = False
    """Whether the mean error that rounded weights give to each channel is taken from the biases."""
    normalize_rows: bool = False
    """Whether files with quantized activations normalize their images on rows of W · C numbers instead of pixels of C:
    the same values, faster where the provider moves the transposition of the images behind their normalization. Grey
    images, and those of no fixed size, stay as they are."""
    calibration_images: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    schemes: tuple[Scheme, ...] = ()
    """What else may be tried if the target can be measured: activations and weights of 8 bits, unsigned (u) or signed
    (s), with weights of 8 or 7 bits. The choice is made by speed and by accuracy on validation data. `a16w8` (16-bit
    activations, for NPUs) and `w8` (the weights alone) are tried only if all others lose more accuracy than the budget
    allows."""
    calibrations: tuple[Calibration, ...] = ()
    """Other calibrations that may be tried then."""
    forms: tuple[Form, ...] = ()
    """Other forms that may be tried then."""
    corrections: tuple[Correction, ...] = ()
    """What may be tried then if int8 is surely less accurate than fp32: `equalize`, `clip`, `bias`, and each of their
    combinations."""

    @model_validator(mode="after")
    def _check(self) -> "Quantization":
        if self.activation == "uint16" and {self.form, *self.forms} != {"qdq"}:
            raise ValueError('with activation = "uint16", form must be "qdq", and so must all forms')
        if self.activation == "float" and (self.weight != "int8" or self.form != "qdq"):
            raise ValueError('with activation = "float", weight must be "int8" and form "qdq"')
        if self.per_channel and (self.clip_weights or "clip" in self.corrections):
            raise ValueError("clip_weights, and clip among the corrections, need per_channel = false")
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Reference:
    """A published latency of a standard network on the real device, with the same provider."""

    network: Literal["resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "squeezenet1_1"]
    """The network's name in torchvision. It is timed on this machine once, to obtain the ratio of the two machines."""
    input_size: Annotated[int, Field(ge=1, le=8192)] = 224
    precision: Precision
    kernel_class: Literal["dense", "depthwise", "gemm"]
    """The kind of kernel that dominates this network's time."""
    latency_ms: Annotated[float, Field(gt=0)]
    threads: Threads
    ort_version: str
    source: Annotated[str, AfterValidator(_address)]
    """Where the figure is published; every figure must have a source."""
    note: str = ""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Target:
    """A hardware profile. `name` and `file` come from the path of the file, the other fields from its content."""

    title: str
    about: str = ""
    hardware: Hardware
    provider: Provider
    session: Session = field(default_factory=Session)
    opset: Opset = field(default_factory=Opset)
    limits: Limits = field(default_factory=Limits)
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)] = ("fp32", "int8")
    """Precisions that may be tried. If speed cannot be measured, the first precision that is accurate enough is
    shipped."""
    quantization: Quantization = field(default_factory=Quantization)
    device: str = ""
    """Where the target is measured: `local`, `ssh://[user@]host[:port]`, `qemu://cortex-a72`; if empty, the environment
    variable EDGEKD_DEVICE says it, or else it is this machine. See docs/devices.md."""
    python: str = ""
    """On a device that is reached by ssh: its Python with numpy and onnxruntime; if empty, the one that
    `edgekd devices … --setup` made there, or `python3`."""
    accuracy_on: Literal["device", "host"] = "device"
    """Where answers are computed, from which accuracy is scored; on another machine than the device it is a proxy."""
    fixed_shapes: bool = False
    """Whether exported files have fixed shapes and take one example a call, which neural processors need; otherwise
    they take any number of examples."""
    format: Literal["onnx", "ort"] = "onnx"
    """The format of the shipped file. `ort` is ONNX Runtime's own, which its minimal builds need: the graph in it is
    already optimised. Only the CPU provider takes it."""
    environment: str = ""
    """The environment of the target's runtime, if it is not edgekd's own Python: a name that `edgekd doctor --install`
    knows, or the path of a folder with `bin/python` or `node_modules`. See edgekd/devices/environments.py."""
    reference: tuple[Reference, ...] = ()
    name: str = ""
    file: str = ""

    @model_validator(mode="after")
    def _check(self) -> "Target":
        if self.fixed_shapes and self.session.batch_sizes:
            raise ValueError(
                "session.batch_sizes: has no effect with fixed_shapes = true, where a call has one example"
            )
        if self.format == "ort" and (problem := self._ort_problem()):
            raise ValueError(f'format: "ort" {problem}')
        wide = self.quantization.activation == "uint16" or "a16w8" in self.quantization.schemes
        if wide and (problem := wide_problem(self.provider.name)):
            raise ValueError(f"quantization: {problem}")
        return self

    def _ort_problem(self) -> str:
        """The reason why the ORT format is of no use for this target; empty if it is."""
        if self.provider.name != "CPUExecutionProvider":
            return f"is for CPUExecutionProvider; {self.provider.name} compiles the ONNX file itself"
        if self.quantization.activation == "float" or "w8" in self.quantization.schemes:
            return 'would hold the weights of the scheme "w8" in float again; leave it out of [quantization]'
        return ""

    def differences(self, here: Machine) -> list[str]:
        """The reasons why the machine `here` is not the target's hardware; empty if it is."""
        hw = self.hardware
        if hw.architecture == "wasm32":  # a browser or Node, on any CPU
            return []
        architecture = "aarch64" if hw.architecture == "arm64" else hw.architecture
        if here.architecture != architecture:
            return [f"this machine is {here.architecture}, the target {hw.architecture}"]
        reasons = (
            [] if hw.system in ("any", here.system) else [f"this system is {here.system}, the target's {hw.system}"]
        )
        reasons += [f"this CPU lacks {flag}" for flag in hw.requires if flag not in here.features]
        reasons += [f"this CPU has {flag}, the target's has not" for flag in hw.lacks if flag in here.features]
        if hw.cpu_part and here.cpu_part not in hw.cpu_part:
            reasons.append(f"this CPU's part is {here.cpu_part or 'unknown'}, the target's {'/'.join(hw.cpu_part)}")
        return reasons

    def measurable_on(self, here: Machine) -> bool:
        """Whether latency measured on the machine `here` is valid for the target."""
        return not self.differences(here)

    def remarks(self, here: Machine) -> tuple[str, ...]:
        """Remarks on the arithmetic of the machine `here`, for readers of figures measured on it."""
        multiplied = not self.quantization.reduce_range and self.quantization.activation != "float"
        eight_bits = "int8" in self.precisions and multiplied
        multiplies_here = self.provider.name == "CPUExecutionProvider"  # other providers have their own kernels
        if self.measurable_on(here) and eight_bits and multiplies_here and here.saturates_int8:
            return ("this CPU has no VNNI, so 8-bit weights can saturate; target cpu-x86-avx2 keeps them to 7 bits",)
        return ()

    def require_provider(self, available: list[str]) -> None:
        """Raise UnavailableError unless the target's provider is among the `available` ones."""
        if self.provider.name not in available:
            info = PROVIDERS[self.provider.name]
            raise UnavailableError(
                f"target {self.name}: unavailable, because this onnxruntime offers "
                f"{', '.join(available) or 'no provider'} and the target needs {self.provider.name}; "
                f"{self._how(info.get_it)}"
            )

    def _how(self, get_it: str) -> str:
        if "/" in self.environment:
            return f"install it in its environment, {self.environment}"
        return f"edgekd doctor --install {self.option}" if self.environment else get_it

    @property
    def option(self) -> str:
        """The value of `--target` for this target: the bundled name, or the path of the user's own file."""
        return self.name if self.name in bundled_names("targets") else self.file


def wide_problem(provider: str) -> str:
    """The reason why a provider cannot compute with activations of 16 bits; empty if it can."""
    if provider in WIDE:
        return ""
    return f"16-bit activations (a16w8) are for {', '.join(WIDE)}; {provider} would compute them in float"


def load_target(name: str, settings: Sequence[Setting] = ()) -> Target:
    """Load the bundled target `name`, or the target file at that path, with the values that `settings` replace.

    Raises ConfigError for any mistake in it, with file (or option), key, value, rule and the most similar name.
    """
    path = locate("targets", name)
    return built_with(settings, read_toml(path), str(path), _read_target)


def _read_target(data: dict[str, Any], path: str) -> Target:
    for key in ("name", "file"):
        if key in data:
            raise ConfigError(f"{path}: {key}: unknown key; a target is named by its file")
    return build(Target, data | {"name": Path(path).stem, "file": path}, path)
