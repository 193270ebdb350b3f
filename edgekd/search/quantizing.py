"""Quantise an ONNX file that edgekd did not train, and measure what that costs and gains."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from edgekd import units
from edgekd.bench.arrays import save_arrays
from edgekd.bench.measure import Subject, logits_of
from edgekd.bench.statistics import Interval, bootstrap
from edgekd.data.ready import Ready
from edgekd.devices.device import Site
from edgekd.distributions import mcnemar
from edgekd.errors import EdgekdError, InputError, ModelError, cut, one_line
from edgekd.export.opset import within_range
from edgekd.export.quantize import Examples, quantize, quantize_weights, to_half
from edgekd.export.shrink import save_model, shrink
from edgekd.export.unsigned import to_unsigned
from edgekd.external import copy_model, model_bytes
from edgekd.judge import Outcome
from edgekd.scores import ScoreKind
from edgekd.search.int8 import keep_accuracy
from edgekd.search.layers import Fallback, LayerDamage, sensitivity
from edgekd.search.material import Material, figures_of, time_ratio
from edgekd.search.schemes import Choice, choose_scheme, scheme_words
from edgekd.target import Precision, Quantization
from edgekd.tasks.image_classification import IMAGE_CLASSIFICATION
from edgekd.tasks.task import Outputs, Targets, Task

__all__ = ["Asked", "Comparison", "Quantized", "in_range", "layer_damage", "quantize_file"]

LEAST = 30
"""Fewer examples than this cannot be divided into calibration, choice and judgement."""
CONVERTED = 1e-3
"""An answer may change by this share of the largest one when the opset of a model is converted."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be quantised, for which target, with which examples."""

    model: Path
    out: Path
    out_half: Path | None = None
    """The file that is written if it is fp16; `out` if it is None."""
    site: Site
    examples: Ready
    folder: Path
    """Where temporary files are written."""
    max_drop: float = 1.0
    """The loss of accuracy that is allowed, in percentage points."""
    limit_s: float = 300.0
    """The time for returning layers to float."""
    scheme: Quantization
    """The settings of the target."""
    task: Task = IMAGE_CLASSIFICATION
    """What the model is for; a model that does not say it counts as a classifier."""
    precisions: tuple[Precision, ...]
    """The precisions that may be made. fp16 is made without int8 among them, or if it is surely faster."""
    proxy: bool = False
    """Whether another provider than the target's gives the answers, so that nothing else is measured."""
    dynamic: bool = False
    """Whether activations are scaled at run time, and only the weights are quantised before."""

    @property
    def measurable(self) -> bool:
        """Whether time is measured, and choices are made by it."""
        return self.site.measurable and not self.proxy


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Answers of the file before and after, on examples that no choice has seen."""

    count: int
    labelled: bool
    """Whether labels are known. Otherwise an answer is right if it is the one of the file before."""
    kind: ScoreKind
    before: float
    after: float
    change: Interval | None = None
    """The score after minus that before, with its interval of a paired bootstrap; None if answers are right or wrong,
    so that they are counted."""
    lost: int = 0
    """The number of examples that only the file before answers right."""
    won: int = 0
    ratio: Interval | None
    """The time after divided by the time before, in the same processes; None if the target cannot be measured here."""
    bytes_before: int
    bytes_after: int

    @property
    def loss_points(self) -> float:
        """The loss in percentage points."""
        if self.change is not None:
            return 100 * (0 - self.change.value)  # 0 rather than −0 if nothing changes
        return 100 * (self.lost - self.won) / self.count

    @property
    def p(self) -> float:
        """McNemar's exact p of that loss."""
        return mcnemar(self.lost, self.won)

    def outcome(self, max_drop: float) -> Outcome:
        """The verdict on the loss: inconclusive if it is larger than allowed and may be chance."""
        if self.loss_points <= max_drop:
            return "pass"
        sure = self.p <= 0.05 if self.change is None else self.change.high < 0
        return "fail" if sure else "inconclusive"

    @property
    def _cost(self) -> str:
        if self.change is None:
            what = "accuracy" if self.labelled else "agreement with the file before"
            found = f"{self.lost} answers lost, {self.won} won, McNemar p {self.p:.2g}"
        else:
            what = self.kind.words if self.labelled else f"{self.kind.words} with the file before as the truth"
            low, value, high = (100 * one for one in (self.change.low, self.change.value, self.change.high))
            found = f"{value:+.2f} points, 95 % interval {low:+.2f} … {high:+.2f}"
        scores = f"{self.kind.show(self.before)} → {self.kind.show(self.after)}"
        return f"{what} {scores} on {self.count} examples that no choice has seen ({found})"

    @property
    def words(self) -> str:
        """What int8 cost and gained, in one sentence."""
        cost = self._cost
        size = f"size {units.bytes_(self.bytes_before)} → {units.bytes_(self.bytes_after)}"
        if self.ratio is None:
            return f"{size}; {cost}; time not measured"
        slower = ": int8 is not faster here, keep the file before" if self.ratio.low > 1 else ""
        time = f"time × {self.ratio.value:.2f} ({self.ratio.low:.2f} … {self.ratio.high:.2f})"
        return f"{time}, {size}; {cost}{slower}"


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """The written file, how it was made, and what it costs and gains."""

    comparison: Comparison
    file: Path
    how: str
    choice: Choice | None
    fallback: Fallback | None


@dataclass(frozen=True, kw_only=True)
class _Parts:
    calibration: Ready
    choosing: Ready
    judging: Ready


def in_range(asked: Asked) -> Asked:
    """The same for a model of an opset that the target takes: the given one, or one that was converted to it.

    Raises InputError for a model that cannot be converted, ModelError if the converted one gives other answers.
    """
    model = _load(asked.model)
    converted = within_range(model, asked.model, asked.site.target)
    if converted is model:
        return asked
    path = asked.folder / asked.model.name
    save_model(converted, path)
    _refuse_other_answers(asked, path)
    return dataclasses.replace(asked, model=path)


def _refuse_other_answers(asked: Asked, converted: Path) -> None:
    """Raise ModelError if the converted model answers other than the given one on real inputs: no later comparison
    would show it."""
    some = {name: array[:32] for name, array in _parts(asked).calibration.inputs.items()}
    for one, other in zip(_unoptimized(asked.model, some), _unoptimized(converted, some), strict=True):
        if not np.issubdtype(one.dtype, np.number):
            continue
        difference, largest = np.abs(other.astype(np.float64) - one).max(), np.abs(one).max()
        if not difference <= CONVERTED * largest:
            raise ModelError(
                f"{asked.model}: its answers change when its opset becomes {asked.site.target.opset.min} (by "
                f"{difference:.2g}, the largest is {largest:.2g}); export it again with that opset"
            )


def quantize_file(asked: Asked) -> Quantized:
    """Write `asked.out`, quantised as the target allows; the metadata of the model is kept.

    A float model is calibrated on a part of the examples; scheme and layers are chosen by another part, and the figures
    are of the rest. A model that is int8 already gets uint8 activations where the target's kernels want these; its
    outputs must stay the same bit for bit. Raises InputError or ModelError if that is not possible.
    """
    parts = _parts(asked)
    _refuse_labels(asked, parts.judging)
    model = _load(asked.model)
    made = asked.folder / "made.onnx"
    file, choice, fallback = asked.out, None, None
    if any(node.op_type in ("QuantizeLinear", "QLinearConv") for node in model.graph.node):
        how = _shifted(asked, model, made, parts.judging)
    elif "int8" not in asked.precisions and not asked.dynamic:
        if "fp16" not in asked.precisions:
            raise InputError(f"target {asked.site.target.name}: has neither int8 nor fp16 among its precisions")
        to_half(asked.model, made)
        how = "fp16, because int8 is not among the target's precisions"
    elif asked.measurable:
        material = _material(asked, parts.choosing, parts.calibration)
        choice = choose_scheme(material)
        best, how = choice.best.file, choice.why
        floor = float(figures_of(asked.model, material).mean()) - asked.max_drop / 100
        if choice.best.score < floor:
            choice, fallback = keep_accuracy(material, choice, floor, asked.limit_s)
            best, how = choice.best.file, choice.why
            if fallback:
                best, how = fallback.file if fallback.enough else best, f"{how}; {fallback.why}"
        if "fp16" in asked.precisions and not asked.dynamic:
            best, how, file = _faster_half(asked, material, best, how, floor)
        copy_model(best, made)
    else:
        if asked.dynamic:
            quantize_weights(asked.model, made, asked.scheme)
        else:
            quantize(asked.model, made, asked.scheme, parts.calibration.inputs)
        words = scheme_words(asked.scheme, asked.dynamic)
        how = f"{words}: the target's own settings, for it cannot be measured here"
    compared = _compared(asked, made, parts.judging)
    copy_model(made, file)
    return Quantized(comparison=compared, file=file, how=how, choice=choice, fallback=fallback)


def _faster_half(asked: Asked, material: Material, best: Path, how: str, floor: float) -> tuple[Path, str, Path]:
    """Try fp16, and take it in place of the `best` int8 file if it reaches the accuracy and is surely faster: the file
    that is taken, why, and the file to write."""
    half = asked.folder / "half.onnx"
    try:
        to_half(asked.model, half)
        score, ratio = float(figures_of(half, material).mean()), time_ratio(half, best, material)
    except EdgekdError as error:
        reason = cut(str(error).replace(f"{asked.folder}/", ""), 200)
        return best, f"{how}; fp16 is left out: {reason}", asked.out
    found = f"fp16 {units.accuracy(score)} in {ratio.value:.2f} ({ratio.low:.2f} … {ratio.high:.2f}) of int8's time"
    if score >= floor and ratio.high < 1:
        return half, f"fp16: {found} ({how})", asked.out_half or asked.out
    return best, f"{how}; {found}: not used", asked.out


def layer_damage(asked: Asked) -> list[LayerDamage]:
    """The damage of int8 in each layer alone, on the examples by which choices are made; the worst first."""
    parts = _parts(asked)
    material = _material(asked, parts.choosing, parts.calibration)
    scheme = dataclasses.replace(asked.scheme, form="qdq")
    return sensitivity(material, scheme, asked.limit_s)


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except Exception as error:  # onnx passes on any exception of protobuf
        raise InputError(f"{path}: cannot be read as ONNX") from error


def _parts(asked: Asked) -> _Parts:
    """A third of the examples at most for the calibration, then every second one to choose by and to judge by."""
    count = len(asked.examples)
    if count < LEAST:
        raise InputError(f"{asked.examples.about}: holds {count} examples; at least {LEAST} are needed")
    wanted = min(asked.scheme.calibration_images, count // 3)
    first = np.linspace(0, count - 1, wanted).astype(np.int64)
    rest = np.setdiff1d(np.arange(count), first)
    return _Parts(
        calibration=asked.examples.part(first),
        choosing=asked.examples.part(rest[::2]),
        judging=asked.examples.part(rest[1::2]),
    )


def _refuse_labels(asked: Asked, part: Ready) -> None:
    """Raise InputError if the model tells fewer classes apart than the labels name: every answer would be wrong, before
    and after, and nothing would seem lost."""
    if asked.examples.labels is None:
        return
    outputs = _logits(asked.model, asked, _written(asked, part, "judging"))
    if problem := asked.task.fit_problem(outputs, asked.examples.labels, asked.model.name):
        raise InputError(f"{asked.examples.about}: {problem}")


def _written(asked: Asked, part: Ready, name: str) -> Path:
    """Write a part of the examples for the workers: .npy for a single input, else .npz."""
    if len(part.inputs) == 1:
        path = asked.folder / f"{name}.npy"
        np.save(path, next(iter(part.inputs.values())))
        return path
    path = asked.folder / f"{name}.npz"
    save_arrays(path, part.inputs)
    return path


def _material(asked: Asked, choosing: Ready, calibration: Ready) -> Material:
    inputs = _written(asked, choosing, "choosing")
    examples = None if asked.dynamic else calibration.inputs
    return _measuring(asked, inputs, _targets(asked, choosing, inputs), examples)


def _measuring(asked: Asked, inputs: Path, targets: Targets, calibration: Examples | None) -> Material:
    return Material(
        fp32=asked.model,
        calibration=calibration,
        inputs=inputs,
        targets=targets,
        task=asked.task,
        site=asked.site,
        folder=asked.folder,
    )


def _targets(asked: Asked, part: Ready, inputs: Path) -> Targets:
    """What is right for a part of the examples: its labels, or what the given file answers.

    Raises InputError for class maps and boxes of which nothing could be judged.
    """
    targets = asked.task.truth(_logits(asked.model, asked, inputs)) if part.labels is None else part.labels
    if asked.task.writes != "rows" and (problem := asked.task.targets_problem(targets)):
        whose = part.about if part.labels is not None else f"{asked.model} as the truth for {part.about}"
        raise InputError(f"{whose}: a part of {len(part)} examples: {problem}")
    return targets


def _logits(file: Path, asked: Asked, inputs: Path) -> Outputs:
    subject = Subject(name=file.stem, file=file, precision="as it is")
    return logits_of(subject, asked.site, inputs, asked.folder, asked.task)


def _shifted(asked: Asked, model: onnx.ModelProto, made: Path, part: Ready) -> str:
    """Write the int8 model with uint8 activations, and compare its outputs on real inputs without optimization."""
    if asked.scheme.activation != "uint8":
        raise InputError(f"{asked.model}: is int8 already, and target {asked.site.target.name} wants int8 activations")
    try:
        changed = to_unsigned(model)
    except ModelError as error:
        raise InputError(f"{asked.model}: is int8 already, and {error}") from error
    if not changed:
        raise InputError(f"{asked.model}: is int8 already, and has no int8 activations that could become uint8")
    shrink(model)
    save_model(model, made)
    few = {name: array[: min(32, len(array))] for name, array in part.inputs.items()}
    before, after = (_unoptimized(file, few) for file in (asked.model, made))
    if not all(np.array_equal(one, other) for one, other in zip(before, after, strict=True)):
        raise ModelError(f"{asked.model}: its outputs change when its activations become uint8; nothing was written")
    return f"{changed} int8 activations are uint8 now; without optimization the outputs are the same bit for bit"


def _unoptimized(file: Path, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        fixed = isinstance(session.get_inputs()[0].shape[0], int)
        size = session.get_inputs()[0].shape[0] if fixed else len(next(iter(inputs.values())))
        return [np.asarray(array) for array in session.run(None, {n: array[:size] for n, array in inputs.items()})]
    except Exception as error:  # onnxruntime's exceptions have no common base below Exception
        raise InputError(f"{file}: ONNX Runtime cannot run it: {one_line(error, 150)}") from error


def _compared(asked: Asked, made: Path, part: Ready) -> Comparison:
    inputs, task = _written(asked, part, "judging"), asked.task
    targets, kind = _targets(asked, part, inputs), asked.task.scores[0]
    outputs = [_logits(file, asked, inputs) for file in (asked.model, made)]
    before, after = (task.score(one, targets)[kind.name] for one in outputs)
    each = [task.each(one, targets) for one in outputs]
    counted = task.paired == "mcnemar"
    ratio = time_ratio(made, asked.model, _measuring(asked, inputs, targets, None)) if asked.measurable else None
    return Comparison(
        count=len(targets),
        labelled=part.labels is not None,
        kind=kind,
        before=before,
        after=after,
        change=None if counted else bootstrap(each[1] - each[0], after - before),
        lost=int((each[0] > each[1]).sum()) if counted else 0,
        won=int((each[1] > each[0]).sum()) if counted else 0,
        ratio=ratio,
        bytes_before=model_bytes(asked.model),
        bytes_after=model_bytes(made),
    )
