"""`quantize`: make an int8 file of a model that edgekd did not train, and print what it costs and gains."""

import dataclasses
import math
import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd import units
from edgekd.console import out, say
from edgekd.devices.device import Site
from edgekd.devices.local import connect
from edgekd.errors import ConfigError, ExitCode, InputError, ModelError, UnavailableError, did_you_mean, shown
from edgekd.external import generates, model_files
from edgekd.files import atomic, real, write_json
from edgekd.imports import require
from edgekd.judge import EXIT_CODES
from edgekd.runs import task_of_file
from edgekd.scratch import scratch
from edgekd.tables import rich_table
from edgekd.target import SCHEMES, Provider, Quantization, Target, load_target, wide_problem
from edgekd.tasks.image_classification import IMAGE_CLASSIFICATION
from edgekd.tasks.task import Task

if TYPE_CHECKING:
    from edgekd.search.quantizing import Quantized

__all__ = ["QuantizeOptions", "numbers", "quantize_model"]

# quantize.json history:
# 1 - model, out, target, how, comparison, trials, failed, fallback, layers
# 2 - also answers: how they were obtained (measured, emulated, proxy)
# 3 - comparison: also score, and change (value, low, high), which is null for accuracy; lost, won and mcnemar_p are
#     null for other scores
SCHEMA_VERSION = 3
MOST_IMAGES = 3_000
"""Images of a folder that are read at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """The options of `quantize`."""

    data: Path
    out: Path | None = None
    mean: str = ""
    std: str = ""
    size: int | None = None
    max_drop: float = 1.0
    limit_s: float = 300.0
    scheme: str = ""
    """The name of a scheme that replaces those of the target; the target's if it is empty."""
    dynamic: bool = False
    sensitivity: Path | None = None
    save: Path | None = None


def quantize_model(model: Path, target: str, options: QuantizeOptions) -> int:
    """Quantise, measure before and after, and return the exit code of the verdict on the loss of accuracy."""
    if not model.is_file():
        raise InputError(f"{model}: no such model file")
    chosen = _with_scheme(load_target(target), options)
    precision = "int8" if options.scheme or "int8" in chosen.precisions else "fp16"
    path = options.out or model.with_name(f"{model.stem}-{precision}.onnx")
    half = None if options.out else model.with_name(f"{model.stem}-fp16.onnx")
    if real(path) == real(model):
        raise ConfigError(f"--out {path}: is the model itself; name another file")
    if path.suffix == ".ort":
        raise ConfigError(f'--out {path}: names the ONNX file; format = "ort" of a target writes NAME.ort beside it')
    if options.sensitivity and options.dynamic:
        raise ConfigError("--sensitivity, --dynamic: give one of them; layers are compared with calibrated activations")
    for module in ("onnx", "onnxruntime"):
        require(module, "cpu", "quantizing")
    from edgekd.search.quantizing import Asked, in_range, layer_damage, quantize_file

    with closing(_placed(chosen)) as site, scratch() as folder:
        examples = _examples(model, options)
        asked = Asked(
            model=model,
            task=_task(model),
            out=path,
            out_half=half,
            site=site,
            examples=examples,
            folder=Path(folder),
            max_drop=options.max_drop,
            limit_s=options.limit_s,
            scheme=chosen.quantization,
            precisions=("int8",) if options.scheme else chosen.precisions,
            proxy=site.target.provider != chosen.provider,
            dynamic=options.dynamic,
        )
        asked = in_range(asked)
        layers = []
        if options.sensitivity:
            layers = layer_damage(asked)
            _show_layers(layers, options.sensitivity, asked.task)
        done = quantize_file(asked)
        answers = "proxy" if asked.proxy else site.answering.provenance
    if asked.model != model:
        wanted = asked.site.target
        say(f"{model}: its opset became {wanted.opset.min}, the oldest that target {wanted.name} takes")
    found = done.comparison
    outcome = found.outcome(options.max_drop)
    proxy = " (proxy: answers of the CPU provider)" if asked.proxy else ""
    out(f"{done.file}: {done.how}")
    if chosen.format == "ort":
        out(_in_ort_format(done.file, chosen))
    out(f"  {found.words}")
    out(f"  a loss of {found.loss_points:.2f} points, {options.max_drop:g} allowed: {outcome}{proxy}")
    if options.save:
        about = {"schema_version": SCHEMA_VERSION, "model": model.name, "target": target, "answers": answers}
        damage = [dataclasses.asdict(layer) for layer in layers]
        write_json(options.save, about | {"outcome": outcome} | _content(done) | {"layers": damage})
    return EXIT_CODES.get(outcome, ExitCode.INCONCLUSIVE)


def _in_ort_format(file: Path, target: Target) -> str:
    """Write the file in the ORT format beside it, and say so."""
    from edgekd.export.ort import write_ort

    made = file.with_suffix(".ort")
    write_ort(file, target, made)
    return f"{made}: the same in the ORT format, {units.bytes_(made.stat().st_size)}"


def _content(done: "Quantized") -> dict[str, Any]:
    """What was made, tried and compared, for quantize.json."""
    found, choice = done.comparison, done.choice
    compared = dataclasses.asdict(found) | {"score": found.kind.name, "loss_points": found.loss_points}
    del compared["kind"]
    if found.change is not None:
        compared |= dict.fromkeys(("lost", "won"))
    return {
        "out": done.file.name,
        "how": done.how,
        "comparison": compared | {"mcnemar_p": found.p if found.change is None else None},
        "trials": [trial.as_json() for trial in choice.trials] if choice else [],
        "failed": choice.failed if choice else {},
        "fallback": done.fallback.as_json() if done.fallback else None,
    }


def _with_scheme(target: Target, options: QuantizeOptions) -> Target:
    """The target, whose schemes `--scheme` replaces. Calibrations and forms may still be tried."""
    if not options.scheme:
        return target
    if options.scheme not in SCHEMES:
        raise ConfigError(f"--scheme {shown(options.scheme)}: {did_you_mean(options.scheme, SCHEMES)}")
    if options.scheme == "w8" and target.format == "ort":
        raise ConfigError(f'--scheme w8: target {target.name} has format = "ort", which holds such weights in float')
    if options.dynamic:
        raise ConfigError("--scheme, --dynamic: give one of them; --dynamic scales activations at run time")
    if options.scheme == "a16w8" and (problem := wide_problem(target.provider.name)):
        raise ConfigError(f"--scheme a16w8: target {target.name}: {problem}")
    quantization = dataclasses.replace(target.quantization, schemes=(), **SCHEMES[options.scheme])
    return dataclasses.replace(target, quantization=quantization)


def _placed(target: Target) -> Site:
    """The target on its device. Where nothing can bring the target's provider to this machine, the CPU provider of this
    onnxruntime gives the answers, which is said, and the file is made for the target all the same."""
    try:
        return connect(target)
    except UnavailableError as error:
        named = target.device or os.environ.get("EDGEKD_DEVICE", "")
        if named not in ("", "local") or target.environment:
            raise
        say(f"{error}. The file is made without it; answers are those of the CPU provider (proxy)")
    cpu = Provider(name="CPUExecutionProvider")
    return connect(dataclasses.replace(target, provider=cpu, quantization=Quantization()))


def _examples(model: Path, options: QuantizeOptions) -> Any:
    import onnx

    from edgekd.data.ready import ready_images, ready_npz

    try:
        loaded = onnx.load(model, load_external_data=False)
    except Exception as error:  # onnx passes on any exception of protobuf
        raise InputError(f"{model}: cannot be read as ONNX") from error
    if generates(loaded):
        raise InputError(f"{model}: generates token by token; edgekd distill makes the int8 files of such models")
    model_files(model, loaded)  # raises InputError for weights in other files that cannot be read
    task = _task(model)
    if options.data.is_dir() and task.writes != "rows":
        return _told(model, loaded, task, options)
    if options.data.is_dir():
        require("PIL", "train", f"--data {options.data}: reading image files")
        mean, std = numbers("--mean", options.mean), numbers("--std", options.std)
        return ready_images(options.data, loaded, mean, std, options.size, MOST_IMAGES)
    if not options.data.is_file():
        raise InputError(f"--data {options.data}: no such folder or .npz file")
    if options.mean or options.std or options.size:
        raise ConfigError("--mean, --std, --size: are for a folder of images; an .npz file holds ready inputs")
    ready = ready_npz(options.data, loaded, task.targets_problem)
    if task.writes != "rows" and ready.labels is not None:
        from edgekd.draft.told import beyond_classes

        if problem := beyond_classes(ready.labels, task, loaded):
            raise InputError(f"{options.data}: {problem}")
    return ready


def _task(model: Path) -> Task:
    """What the model is for; all that give a row of logits are judged as classifiers are."""
    task = task_of_file(model)
    return task if task.writes != "rows" else IMAGE_CLASSIFICATION


def _told(model: Path, loaded: Any, task: Task, options: QuantizeOptions) -> Any:
    """The examples of a folder for a model whose metadata say what it takes."""
    if options.mean or options.std or options.size:
        raise ConfigError(f"--mean, --std, --size: have no effect here; the metadata of {model} say what it takes")
    for module in ("PIL", "torch"):
        require(module, "train", f"--data {options.data}: reading image files")
    from edgekd.draft.told import told_examples

    try:
        return told_examples(options.data, loaded, task, MOST_IMAGES)
    except ModelError as error:
        raise InputError(f"{model}: {error}") from error


def numbers(option: str, text: str) -> list[float]:
    """The numbers of an option, such as `0.485,0.456,0.406`. Raises ConfigError for anything else."""
    try:
        numbers = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{option} {text}: should be numbers with commas between, such as 0.485,0.456,0.406")
    return numbers


def _show_layers(layers: list[Any], path: Path, task: Task) -> None:
    """Print a table of the layers, the most damaged first, and write it as a bar chart."""
    rows = [[one.name, f"{one.sqnr_db:.1f} dB", units.accuracy(one.score), f"{100 * one.drop:+.2f}"] for one in layers]
    header = ["layer", "SQNR of the outputs", task.scores[0].limit_words, "points lost"]
    out(rich_table(header, rows, "int8 in one layer at a time, the rest in float"))
    require("matplotlib", "report", "--sensitivity")
    from edgekd.report.layers import draw_layers

    with atomic(path) as temporary:
        draw_layers([(one.name, one.sqnr_db, 100 * one.drop) for one in layers], temporary)
    say(f"{path}: the bar chart")
