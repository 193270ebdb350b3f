"""Figures with their provenance, the figures of one model file, and the table of all metrics."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

from edgekd import units
from edgekd.scores import ACCURACY, CLASSIFICATION, ScoreKind

__all__ = [
    "BUDGETED",
    "COMPARED",
    "FIGURES",
    "GIVEN",
    "METRICS",
    "RARE",
    "WHOLE",
    "Figure",
    "Metric",
    "ModelFigures",
    "Placement",
    "Provenance",
    "budgeted",
    "compared",
    "metric_of",
    "rows_of",
    "score_metric",
    "whole_words",
]

Provenance = Literal["measured", "emulated", "proxy", "estimated", "exact", "unknown"]


@dataclass(frozen=True)
class Figure:
    """One figure: its value, how it was obtained and, if known, its interval."""

    value: float | None = None
    provenance: Provenance = "unknown"
    low: float | None = None
    high: float | None = None
    why: str = ""
    """An explanation for the reader, such as why the value is unknown or what it was estimated from."""


UNKNOWN = Figure()

GIVEN = "given"
"""The name of the first model of a pruning: the network as it was given."""
WHOLE = ("teacher", GIVEN)
"""The names of the first model of a run, with which the others are compared."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which providers ran the nodes of a model, and in which arithmetic. The fields are plain data for JSON."""

    nodes: dict[str, int]
    """Number of nodes by provider, as ONNX Runtime assigned them before fusing. If it does not report this, the number
    of kernels that ran."""
    time_share: dict[str, float]
    """Share of the kernels' time by provider; the shares add up to 1. Empty on a machine that is not the target."""
    provenance: Provenance = "measured"
    fell_back: dict[str, int] = field(default_factory=dict)
    """Op types of nodes on a provider other than the requested one, with their number."""
    fused: int | None = None
    """Number of kernels that compute in 8 bits (QLinearConv …); None if the provider compiles the graph itself."""
    unfused: int | None = None
    """Number of nodes that compute in float between DequantizeLinear and QuantizeLinear; None as above."""
    qdq: int | None = None
    """Number of QuantizeLinear and DequantizeLinear kernels that still ran; None as above."""
    blockers: dict[str, int] = field(default_factory=dict)
    """Op types of the unfused nodes, with their number."""
    costliest: tuple[dict[str, Any], ...] = ()
    """With --profile: node, op_type, provider, us (median) and share of the time, the costliest first."""

    @property
    def coverage(self) -> Figure:
        """The share of the nodes that the requested provider runs."""
        total = sum(self.nodes.values())
        if not total:
            return Figure(why="the runtime does not tell where the nodes ran")
        return Figure((total - sum(self.fell_back.values())) / total, self.provenance)

    @property
    def fused_figure(self) -> Figure:
        """The fused share as a figure; if it is unknown, the note gives the reason."""
        if self.fused_share is not None:
            return Figure(self.fused_share, self.provenance)
        compiled = self.fused is None
        return Figure(why="the provider compiles the graph itself" if compiled else "nothing in it computes in int8")

    @property
    def fused_share(self) -> float | None:
        """Among the nodes that could compute in 8 bits, the share that does; None if the model has no such nodes."""
        if self.fused is None or self.unfused is None or not self.fused + self.unfused:
            return None
        return self.fused / (self.fused + self.unfused)


@dataclass(frozen=True)
class ModelFigures:
    """All figures of one model file. Latencies in ms, memory in MB, energy in mJ, shares 0–1."""

    name: str
    file: str
    sha256: str
    size_bytes: int
    precision: str
    params: int | None = None
    macs: int | None = None
    scores: dict[str, Figure] = field(default_factory=dict)
    """The scores of its answers by name, as far as they are known."""
    kinds: tuple[ScoreKind, ...] = CLASSIFICATION
    """What the scores of its task are; the first one decides."""
    details: dict[str, Any] = field(default_factory=dict)
    """Further plain data about its answers, which the charts of its task show: `recall` of each class."""
    agreement: Figure = UNKNOWN
    """Share of the inputs on which the model gives the same answer as the teacher."""
    torch_agreement: Figure = UNKNOWN
    """Share of the inputs on which the model gives the same answer as the student in torch, from which it was
    exported."""
    max_logit_diff: Figure = UNKNOWN
    """Largest absolute difference of a logit from that of the student in torch."""
    latency_p50_ms: Figure = UNKNOWN
    latency_p95_ms: Figure = UNKNOWN
    latency_p99_ms: Figure = UNKNOWN
    throughput_per_s: Figure = UNKNOWN
    load_ms: Figure = UNKNOWN
    """Time to create the session."""
    first_call_ms: Figure = UNKNOWN
    instructions_m: Figure = UNKNOWN
    """Millions of instructions of one call, counted on an emulated board."""
    first_token_ms: Figure = UNKNOWN
    """Models that generate: time to the first token."""
    tokens_per_s: Figure = UNKNOWN
    """Models that generate: tokens of one sequence per second."""
    peak_memory_mb: Figure = UNKNOWN
    energy_mj: Figure = UNKNOWN
    """Energy of one call, measured for the whole CPU package or GPU."""
    batches: dict[str, Figure] = field(default_factory=dict)
    """Inputs per second, by a name such as «batch 8» or «2 sessions»."""
    placement: Placement | None = None
    notes: tuple[str, ...] = ()
    """Conditions that disturbed or limit the figures, such as a loaded machine, inner loops or random inputs."""
    fingerprint: dict[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> Figure:
        """The score that decides, which is the first of its task."""
        return self.scores.get(self.kinds[0].name, UNKNOWN)

    @property
    def size_kb(self) -> Figure:
        """File size, always exact."""
        return Figure(self.size_bytes / 1_000, "exact")


_Get = Callable[[ModelFigures, Figure | None], Figure]
"""A function that takes one figure from a model's figures and, if needed, from the teacher's deciding score."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The description of one kind of figure: its name, words, unit and direction, and how it is obtained and shown."""

    name: str
    """Its name in JSON and CSV; for most also the attribute of ModelFigures."""
    words: str
    """Its name for people, in tables."""
    unit: str = ""
    """ms, MB, B, M (millions), mJ, 1/s; `share` for 0–1; `points` for percentage points; `change` for a share more or
    less."""
    show: Callable[[float], str]
    """Its value as text with the unit."""
    better: Literal["lower", "higher"] = "lower"
    get: _Get | None = None
    """Takes the figure from `ModelFigures`; by default, the attribute called `name`."""
    kept: bool = False
    """Whether the metric is an attribute of ModelFigures that is written to JSON with provenance and interval."""
    row: bool = True
    """Whether tables of figures have a row for it."""
    rare: bool = False
    """Whether that row is left out if no model has the figure, which only some tasks have."""
    ratio: bool = False
    """Whether that row also shows the ratio to the first model."""
    budget: str = ""
    """The budget key that limits it; empty if none does."""
    tolerance: str = ""
    """The tolerance key that limits it; empty if none does."""
    asked: str = ""
    """The words for its limit, if they differ from `words`."""
    scale: float = 1.0
    """The number of its units in one unit of its budget key, such as 1,000 bytes per kB."""
    advisory: bool = False
    """Whether its limit is only reported and never decides a verdict."""

    @property
    def limit_words(self) -> str:
        """The words for its limit: `file size`."""
        return self.asked or self.words

    @property
    def sign(self) -> str:
        """≤ for an upper limit, ≥ for a lower limit."""
        return "≥" if self.better == "higher" else "≤"

    def figure(self, model: ModelFigures, teacher_score: Figure | None = None) -> Figure:
        """The figure of that model, in the metric's own unit."""
        if self.get is not None:
            return self.get(model, teacher_score)
        figure: Figure = getattr(model, self.name)
        return figure

    def budgeted(self, model: ModelFigures, teacher_score: Figure | None = None) -> Figure:
        """The figure of that model, in the unit of the budget key."""
        figure = self.figure(model, teacher_score)
        if self.scale == 1.0 or figure.value is None:
            return figure
        return Figure(figure.value / self.scale, figure.provenance)

    def show_limit(self, value: float) -> str:
        """A value in the unit of the budget or tolerance key, as text."""
        return self.show(value * self.scale)


def _placed(get: Callable[[Placement], Figure]) -> _Get:
    return lambda model, _: get(model.placement) if model.placement else Figure(why="not measured where the nodes ran")


def _megabytes(mb: float) -> str:
    return units.bytes_(mb * 1_000_000)


def _millions(number: float) -> str:
    return units.count(number * 1_000_000)


def _change(share: float) -> str:
    return f"{100 * share:+.1f} %"


def _kept(name: str, words: str, unit: str, show: Callable[[float], str], **about: Any) -> Metric:
    """A metric whose figure is the ModelFigures attribute of the same name."""
    return Metric(name=name, words=words, unit=unit, show=show, kept=True, **about)


def _whole(name: str, words: str, unit: str, show: Callable[[float], str], **about: Any) -> Metric:
    """A metric for a ModelFigures attribute that is a plain number and exact."""
    return Metric(name=name, words=words, unit=unit, show=show, get=_exactly(name), ratio=True, **about)


def _exactly(name: str) -> _Get:
    return lambda model, _: Figure(getattr(model, name), "exact")


def _judged(key: str, words: str, unit: str, show: Callable[[float], str], get: _Get, **about: Any) -> Metric:
    """A metric that only budgets use."""
    return Metric(name=key, words=words, unit=unit, show=show, get=get, row=False, budget=key, **about)


def _compared(key: str, words: str, show: Callable[[float], str] = _change, **about: Any) -> Metric:
    """A metric that exists only for a model compared with its baseline."""
    return Metric(name=key, words=words, unit="change", show=show, row=False, tolerance=key, **about)


_SHARE: dict[str, Any] = {"unit": "share", "show": units.accuracy, "better": "higher"}
_MS: dict[str, Any] = {"unit": "ms", "show": units.milliseconds}

_FIRST = (
    _whole("size_bytes", "file size", "B", units.bytes_, budget="size_kb", scale=1_000.0),
    _whole("params", "parameters", "", units.count),
    _whole("macs", "multiply-accumulates", "", units.count),
)

METRICS: tuple[Metric, ...] = (
    *_FIRST,
    _kept("agreement", "agreement with the teacher", **_SHARE, budget="min_agreement"),
    _kept("torch_agreement", "agreement with torch", **_SHARE),
    _kept("max_logit_diff", "largest logit difference from torch", "", "{:.2g}".format),
    _kept("latency_p50_ms", "latency p50", **_MS, ratio=True, budget="latency_p50_ms"),
    _kept("latency_p95_ms", "latency p95", **_MS, ratio=True, budget="latency_p95_ms"),
    _kept(
        "latency_p99_ms", "latency p99, advisory", **_MS, asked="latency p99", budget="latency_p99_ms", advisory=True
    ),
    _kept("throughput_per_s", "inputs per second, from p50", "1/s", units.count, better="higher", ratio=True),
    _kept("load_ms", "load time", **_MS, ratio=True, budget="load_ms"),
    _kept("first_call_ms", "first call", **_MS, ratio=True),
    _kept("instructions_m", "instructions per call", "M", _millions, ratio=True, budget="instructions_m"),
    _kept("first_token_ms", "first token", **_MS, ratio=True, rare=True),
    _kept("tokens_per_s", "tokens per second", "1/s", units.count, better="higher", ratio=True, rare=True),
    _kept("peak_memory_mb", "peak memory", "MB", _megabytes, ratio=True, budget="peak_memory_mb"),
    _kept("energy_mj", "energy per call", "mJ", "{:.3g} mJ".format, ratio=True),
    _judged("min_coverage", "nodes on the provider", **_SHARE, get=_placed(lambda p: p.coverage)),
    _judged("min_fused_share", "fused in int8", **_SHARE, get=_placed(lambda p: p.fused_figure)),
    _compared("max_slowdown", "p50 slowdown"),
    _compared("max_slowdown_p95", "p95 slowdown"),
    _compared("max_load_growth", "load time growth"),
    _compared("max_size_growth", "file size growth"),
    _compared("max_memory_growth", "peak memory growth"),
    _compared("max_instruction_growth", "instructions growth"),
    _compared("min_same_answers", "same answers", units.accuracy, better="higher"),
    _compared("max_coverage_loss", "nodes lost by the provider", units.percent),
    _compared("max_fused_loss", "int8 fusion lost", units.percent),
)
"""Every metric but the scores of tasks, in the order in which tables show them. Verdicts, tables, reports and checks
read it together with the scores of the task."""

FIGURES = tuple(metric.name for metric in METRICS if metric.kept)
"""The names of a model's figures, in the order in which they are shown; agreement is on test data."""

RARE = frozenset(metric.name for metric in METRICS if metric.rare)
"""The names of the figures that only some tasks have."""

_BY_BUDGET = {metric.budget: metric for metric in METRICS if metric.budget}
_BUDGET_ORDER = (
    *("latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "load_ms", "size_kb", "peak_memory_mb"),
    "instructions_m",
    *("min_agreement", "min_coverage", "min_fused_share"),
)

BUDGETED = {key: _BY_BUDGET[key] for key in _BUDGET_ORDER}
"""Metrics by budget key, without those of the task's score, in the order in which verdicts show them."""

COMPARED = {metric.tolerance: metric for metric in METRICS if metric.tolerance}
"""Metrics by tolerance key, without that of the task's score, in the order in which they are shown."""


def score_metric(kind: ScoreKind) -> Metric:
    """The metric of one score of a task, as tables show it; it has a budget key if it is the task's first."""

    def get(model: ModelFigures, _: Figure | None) -> Figure:
        return model.scores.get(kind.name, UNKNOWN)

    about: dict[str, Any] = {"name": kind.name, "words": kind.words, "unit": kind.unit, "show": kind.show}
    return Metric(**about, better=kind.better, asked=kind.asked, get=get, budget=kind.limit_key)


def rows_of(models: Sequence[ModelFigures], first: ModelFigures | None = None) -> list[Metric]:
    """The metrics for which a table of these models has a row, in order; `first` is the first model of their run, by
    default of `models`."""
    kinds = dict.fromkeys(kind for model in models for kind in model.kinds)
    scores = [score_metric(kind) for kind in kinds]
    others = [metric for metric in METRICS[len(_FIRST) :] if metric.row]
    known = [one for one in others if not one.rare or any(one.figure(model).value is not None for model in models)]
    first = first or next(iter(models), None)
    if first and first.name == GIVEN:
        renamed = {"agreement": f"agreement with {whole_words(first)}"}
        known = [dataclasses.replace(one, words=renamed.get(one.name, one.words)) for one in known]
    return [*_FIRST, *scores, *known]


def whole_words(first: ModelFigures) -> str:
    """What the first model of a run is in a sentence: `the teacher`, or of a pruning `the given network`."""
    return "the given network" if first.name == GIVEN else "the teacher"


@cache
def budgeted(kind: ScoreKind = ACCURACY) -> Mapping[str, Metric]:
    """Metrics by budget key, with those of the score that decides, in the order in which verdicts show them."""
    fixed = list(BUDGETED.items())
    place = list(BUDGETED).index("min_agreement")
    words = f"{kind.limit_words} {'drop' if kind.better == 'higher' else 'rise'}"
    unit = "points" if kind.share else kind.unit
    own = {
        kind.limit_key: score_metric(kind),
        kind.change_key: _judged(kind.change_key, words, unit, kind.show_change, _change_of(kind)),
        kind.teacher_key: _judged(
            kind.teacher_key,
            f"teacher's {kind.limit_words}",
            kind.unit,
            kind.show,
            lambda _, teacher: teacher or UNKNOWN,
            better=kind.better,
        ),
    }
    return MappingProxyType(dict([*fixed[:place], *own.items(), *fixed[place:]]))


def _change_of(kind: ScoreKind) -> _Get:
    """How much worse than the teacher a model is by its score, in percentage points or in the score's unit."""

    def change(model: ModelFigures, teacher: Figure | None) -> Figure:
        own = model.scores.get(kind.name, UNKNOWN)
        if teacher is None or teacher.value is None or own.value is None:
            return Figure(why=own.why or f"the teacher's {kind.limit_words} is not known on these data")
        return Figure(kind.worsening(own.value, teacher.value), own.provenance)

    return change


@cache
def compared(kind: ScoreKind = ACCURACY) -> Mapping[str, Metric]:
    """Metrics by tolerance key, with that of the score that decides, in the order in which they are shown."""
    fixed = list(COMPARED.items())
    place = list(COMPARED).index("min_same_answers")
    words = f"{kind.limit_words} {'loss' if kind.better == 'higher' else 'increase'}"
    own = _compared(kind.tolerance_key, words, kind.show_change)
    return MappingProxyType(dict([*fixed[:place], (kind.tolerance_key, own), *fixed[place:]]))


def metric_of(key: str, kind: ScoreKind = ACCURACY) -> Metric:
    """The metric that a budget or tolerance key limits, for a task with that deciding score; KeyError for others."""
    return budgeted(kind).get(key) or compared(kind)[key]
