"""Choose how a network is quantised to int8 by measuring on the target: scheme, calibration and form of the file.

Which scheme is fast and accurate depends on the network, the provider and the CPU: U8S8 with 8-bit weights is the
fastest on an x86 CPU with VNNI, and saturates on one without. This module needs no torch.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import units
from edgekd.bench.runner import measure_placement
from edgekd.bench.statistics import Interval, bootstrap
from edgekd.console import progress, say
from edgekd.distributions import mcnemar
from edgekd.errors import EdgekdError, cut
from edgekd.external import model_bytes
from edgekd.search.material import EFFORT, Material, figures_of, shown, time_ratio, write_int8
from edgekd.target import GENTLE, SCHEMES, Quantization
from edgekd.tasks.task import Task

__all__ = ["Choice", "Trial", "choose_gentler", "choose_reaching", "choose_scheme", "scheme_words"]

LEVEL = 0.05
"""A difference of accuracy counts if McNemar's exact p is at most this."""
SLOWER = 1.02
"""A smaller file may take this multiple of the time, which is what pairs of a few processes can tell apart."""


LIMIT_S = 300.0
"""No further trial of a step begins after this time."""
NUMBERS = ("calibration", "equalize", "clip_weights", "correct_bias")
"""The settings that change the numbers in a file, and not the kernels that compute with them."""
KINDS = {"uint8": "U8", "int8": "S8"}
"""How `scheme_words` calls the types."""
NAMED = ("activation", "weight", "reduce_range", *NUMBERS)
"""The settings that `as_json` names."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One way to quantise the network, and what was measured of it."""

    scheme: Quantization
    dynamic: bool
    """Whether activations are scaled at run time."""
    file: Path
    size_bytes: int
    each: NDArray[np.float64]
    """The task's figure (n,) of each validation input, in which higher is better: 1 for a right answer, else 0."""
    ratio: Interval
    """Its time divided by the time of the fp32 file, in the same processes."""
    fused: int | None
    unfused: int | None

    @property
    def words(self) -> str:
        """The scheme in words."""
        return scheme_words(self.scheme, self.dynamic)

    @property
    def score(self) -> float:
        """The mean of these figures: the accuracy, or a deciding score in which higher is better."""
        return float(self.each.mean())

    def as_json(self) -> dict[str, Any]:
        """The trial in the form in which a run keeps it."""
        named = {key: getattr(self.scheme, key) for key in NAMED}
        return {
            "name": self.words,
            **named,
            "dynamic": self.dynamic,
            "form": self.scheme.form,
            "size_bytes": self.size_bytes,
            "validation_score": self.score,
            "time_ratio_to_fp32": list(dataclasses.astuple(self.ratio)),
            "fused": self.fused,
            "unfused": self.unfused,
        }


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The chosen trial, all trials, and the reason."""

    best: Trial
    trials: tuple[Trial, ...]
    failed: dict[str, str]
    """What could not be tried, with the reason."""
    why: str


def scheme_words(scheme: Quantization, dynamic: bool = False) -> str:
    """A scheme in words: `U8S8, 7-bit weights, minmax, QDQ`, or `dynamic U8S8, 7-bit weights`."""
    if scheme.activation == "float":
        return "W8, the weights alone"
    if dynamic:  # ONNX Runtime scales activations as unsigned numbers
        return f"dynamic U8{KINDS[scheme.weight]}, {7 if scheme.reduce_range else 8}-bit weights"
    if scheme.activation == "uint16":
        return f"A16W8, {scheme.calibration}, QDQ"
    bits = ", 7-bit weights" if scheme.reduce_range else ""
    bits += f", {corrected}" if (corrected := _corrections(scheme)) else ""
    form = {"qdq": "QDQ", "qoperator": "QOperator"}[scheme.form]
    return f"{KINDS[scheme.activation]}{KINDS[scheme.weight]}{bits}, {scheme.calibration}, {form}"


def _corrections(scheme: Quantization) -> str:
    words = {
        "equalised": scheme.equalize,
        "weights clipped": scheme.clip_weights,
        "biases corrected": scheme.correct_bias,
    }
    found = [word for word, asked in words.items() if asked]
    return " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)


def choose_scheme(material: Material) -> Choice:
    """Try what the target allows, on a target that can be measured, and choose.

    First the schemes are compared: of those that are not slower than fp32 and whose accuracy McNemar's test does not
    tell apart from the best, the fastest is taken. Then calibrations, and corrections if int8 is surely less accurate
    than fp32, by accuracy alone. Then forms: the smallest file that is not slower and not less accurate. The target's
    own settings win where nothing is better. If activations are scaled at run time, only schemes are compared. Raises
    the EdgekdError of the target's own scheme; what else fails is left out.
    """
    settings, dynamic = material.site.target.quantization, material.calibration is None
    bench = _Bench(material)
    best = bench.trial(_at_run_time(settings) if dynamic else settings)
    calibrated = settings.activation != "float" and not dynamic
    schemes = [SCHEMES[name] for name in settings.schemes if name not in GENTLE]
    stages: list[tuple[_Rule, list[dict[str, Any]]]] = [
        (_fastest_accurate, [scheme | {"activation": "uint8"} for scheme in schemes] if dynamic else schemes),
        (_more_accurate, [{"calibration": name} for name in settings.calibrations if calibrated]),
        (_corrected, _corrections_of(settings) if calibrated else []),
        (_smallest, [{"form": form} for form in settings.forms if calibrated]),
    ]
    reasons: list[str] = []
    for rule, changes in stages:
        if rule is _corrected and not (changes and bench.loses(best)):
            continue
        if rule is _smallest and best.scheme.activation == "uint16":  # which has no other form
            continue
        tried = bench.attempts(best, changes)
        if tried:
            best, reason = rule(best, tried, material.task)
            reasons.append(reason)
    why = "; ".join(reasons) or "the target's own settings, and nothing else may be tried"
    return Choice(best=best, trials=tuple(bench.trials), failed=bench.failed, why=f"{best.words}: {why}")


def _at_run_time(settings: Quantization) -> Quantization:
    """The settings for activations that are scaled at run time, which ONNX Runtime does with unsigned numbers."""
    return settings if settings.activation == "float" else dataclasses.replace(settings, activation="uint8")


def choose_reaching(choice: Choice, floor: float, task: Task) -> Choice:
    """Take another trial of `choose_scheme` if the best one misses a score of `floor` that the other one reaches.

    The difference may be chance, so that `choose_scheme` left it, but a budget asks for the score. Of those that are
    not surely slower than fp32, or than the best one where that is slower, the first is taken, or one that is surely
    faster.
    """
    allowed = max(1.0, choice.best.ratio.high)
    reaching = [trial for trial in choice.trials if trial.score >= floor and trial.ratio.low <= allowed]
    if choice.best.score >= floor or not reaching:
        return choice
    best = _fastest(reaching)
    why = f"{best.words}: {_figures(best, task)}, {shown(floor, task)} asked; otherwise {choice.why}"
    return dataclasses.replace(choice, best=best, why=why)


def choose_gentler(material: Material, choice: Choice, floor: float) -> Choice:
    """Try the target's schemes of GENTLE after `choose_scheme`, for a network whose score must be at least `floor`.

    The first one that reaches it, and is not surely slower than fp32, is the best of the returned choice; otherwise
    that stays, and the reason says why.
    """
    bench = _Bench(material, list(choice.trials), dict(choice.failed))
    gentle = GENTLE if material.calibration is not None else ("w8",)  # activations have 8 bits at run time
    names = [name for name in material.site.target.quantization.schemes if name in gentle]
    tried = bench.attempts(choice.best, [SCHEMES[name] for name in names])
    best = next((trial for trial in tried if trial.score >= floor and trial.ratio.low <= 1), choice.best)
    found = ", ".join(_named(trial, material.task) for trial in tried)
    used = "" if best is not choice.best else ": not used"
    why = f"{choice.why}; {found}, {shown(floor, material.task)} asked{used}" if tried else choice.why
    return Choice(best=best, trials=tuple(bench.trials), failed=bench.failed, why=why)


_Rule = Callable[[Trial, Sequence[Trial], Task], tuple[Trial, str]]


@dataclass
class _Bench:
    material: Material
    trials: list[Trial] = dataclasses.field(default_factory=list)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)

    def loses(self, best: Trial) -> bool:
        """Whether `best` is surely less accurate than the fp32 file."""
        return _surely_less(best.each, figures_of(self.material.fp32, self.material), self.material.task)

    def attempts(self, best: Trial, changes: Sequence[dict[str, Any]]) -> list[Trial]:
        """Try the best scheme with each of the changes, unless it was tried before or the target cannot run it."""
        tried: list[Trial] = []
        end = time.monotonic() + LIMIT_S
        with progress() as bar:
            for change in bar.track(changes, description="trying int8 schemes"):
                scheme = dataclasses.replace(best.scheme, **change)
                words = scheme_words(scheme, self.material.calibration is None)
                if any(_settings(scheme) == _settings(known.scheme) for known in self.trials):
                    continue
                if time.monotonic() > end:
                    self.failed[words] = f"not tried: the {LIMIT_S:g} s of its step were over"
                    continue
                try:
                    tried.append(self.trial(scheme, best))
                except EdgekdError as error:
                    reason = cut(str(error).replace(f"{self.material.folder}/", ""), 200)
                    self.failed[words] = reason
                    say(f"int8: {words} is left out: {reason}")
        return tried

    def trial(self, scheme: Quantization, best: Trial | None = None) -> Trial:
        """Quantise the network, and measure accuracy, time and fusion.

        The time is measured by turns with fp32 or, for another form of the best file, by turns with that. A
        calibration changes no time.
        """
        known = self.material
        file = known.folder / f"trial-{len(self.trials) + len(self.failed)}.onnx"
        write_int8(known, scheme, file)
        each = figures_of(file, known)
        numbers = {key: getattr(scheme, key) for key in NUMBERS}
        if best and scheme == dataclasses.replace(best.scheme, **numbers):  # the same kernels with other numbers
            trial = dataclasses.replace(best, scheme=scheme, file=file, size_bytes=model_bytes(file), each=each)
        else:
            ratio = self._ratio(scheme, file, best)
            placed = measure_placement(file, known.site, known.inputs, EFFORT)
            trial = Trial(
                scheme=scheme,
                dynamic=known.calibration is None,
                file=file,
                size_bytes=model_bytes(file),
                each=each,
                ratio=ratio,
                fused=placed.fused,
                unfused=placed.unfused,
            )
        self.trials.append(trial)
        return trial

    def _ratio(self, scheme: Quantization, file: Path, best: Trial | None) -> Interval:
        if best is None or scheme != dataclasses.replace(best.scheme, form=scheme.form):
            return time_ratio(file, self.material.fp32, self.material)
        beside = time_ratio(file, best.file, self.material)
        return Interval(*(best.ratio.value * value for value in dataclasses.astuple(beside)))


def _settings(scheme: Quantization) -> tuple[object, ...]:
    kernels = scheme.activation, scheme.weight, scheme.per_channel, scheme.reduce_range, scheme.form
    return *kernels, *(getattr(scheme, key) for key in NUMBERS)


def surely_worse(one: Trial, other: Trial, task: Task) -> bool:
    """Whether `one` scores less than `other` beyond chance, by the task's paired test."""
    return _surely_less(one.each, other.each, task)


def _surely_less(one: NDArray[np.float64], other: NDArray[np.float64], task: Task) -> bool:
    change = one - other
    if task.paired == "mcnemar":
        lost, won = int((change < 0).sum()), int((change > 0).sum())
        return lost > won and mcnemar(lost, won) <= LEVEL
    return bootstrap(change.tolist(), float(change.mean())).high < 0


def _fastest_accurate(best: Trial, tried: Sequence[Trial], task: Task) -> tuple[Trial, str]:
    trials = [best, *tried]
    useful = [trial for trial in trials if trial.ratio.low < 1] or trials
    top = max(useful, key=lambda trial: trial.score)
    chosen = _fastest([trial for trial in useful if not surely_worse(trial, top, task)])
    return chosen, f"{_figures(chosen, task)} against {', '.join(_named(t, task) for t in trials if t is not chosen)}"


def _fastest(trials: Sequence[Trial]) -> Trial:
    """The first one, unless a later one is surely faster."""
    chosen = trials[0]
    for trial in trials:
        if trial.ratio.high < chosen.ratio.low:
            chosen = trial
    return chosen


def _more_accurate(best: Trial, tried: Sequence[Trial], task: Task) -> tuple[Trial, str]:
    top = max(tried, key=lambda trial: trial.score)
    chosen = top if surely_worse(best, top, task) else best
    others = ", ".join(f"{t.scheme.calibration} {shown(t.score, task)}" for t in (best, *tried) if t is not chosen)
    return chosen, f"{chosen.scheme.calibration} {shown(chosen.score, task)}, {others}"


def _corrected(best: Trial, tried: Sequence[Trial], task: Task) -> tuple[Trial, str]:
    top = max(tried, key=lambda trial: trial.score)
    chosen = top if surely_worse(best, top, task) else best
    found = [f"{_corrections(trial.scheme) or 'uncorrected'} {shown(trial.score, task)}" for trial in (best, *tried)]
    return chosen, f"{', '.join(found)}: {_corrections(chosen.scheme) or 'uncorrected'} is kept"


def _corrections_of(settings: Quantization) -> list[dict[str, Any]]:
    """The corrections that may be tried: each alone, and then each combination of them."""
    known = {"equalize": "equalize", "clip": "clip_weights", "bias": "correct_bias"}
    keys = [known[name] for name in dict.fromkeys(settings.corrections)]
    chosen = [some for size in range(1, len(keys) + 1) for some in itertools.combinations(keys, size)]
    return [dict.fromkeys(some, True) for some in chosen]


def _smallest(best: Trial, tried: Sequence[Trial], task: Task) -> tuple[Trial, str]:
    fit = [t for t in tried if t.ratio.value <= SLOWER * best.ratio.value and not surely_worse(t, best, task)]
    chosen = min((best, *fit), key=lambda trial: trial.size_bytes)
    others = ", ".join(units.bytes_(t.size_bytes) for t in (best, *tried) if t is not chosen)
    return chosen, f"{units.bytes_(chosen.size_bytes)} instead of {others}"


def _figures(trial: Trial, task: Task) -> str:
    layers = "" if trial.fused is None else f", {trial.fused} int8 kernels"
    return f"{shown(trial.score, task)} on validation data, {trial.ratio.value:.2f} of fp32's time{layers}"


def _named(trial: Trial, task: Task) -> str:
    bits = " 7-bit" if trial.scheme.reduce_range else ""
    name = trial.words.partition(",")[0]
    return f"{name}{bits} {shown(trial.score, task)}, {trial.ratio.value:.2f}"
