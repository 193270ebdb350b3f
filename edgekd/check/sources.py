"""What a user points `check` at: a model file, a run folder, a record; and which of them a baseline is."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from edgekd.bench.measure import file_sha256
from edgekd.bench.paths import Inputs, finished, run_inputs
from edgekd.card import Budget
from edgekd.check.record import Checked, Sample, differences, read_record
from edgekd.errors import ConfigError, InputError
from edgekd.run import Run, read_json
from edgekd.target import Target

__all__ = ["Source", "baseline_of", "is_record", "refuse_other_machine", "signature_of", "source_of"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model file to measure, and what its place brings along."""

    name: str
    file: Path
    precision: str = "as it is"
    inputs: Inputs | None = None
    teacher: Path | None = None
    """The run's teacher, whose answers those of the model are held against."""
    budget: Budget = Budget()  # noqa: RUF009 - frozen
    """What the run was made for; empty for a bare file."""


def is_record(path: Path) -> bool:
    """Whether the path is meant to be a record; nothing is opened."""
    return path.suffix == ".json"


def source_of(path: Path, target: Target, inputs: Inputs | None) -> Source:
    """The model at a path: a file, or the `model.onnx` of a run folder, with the run's test data and budget.

    `inputs` given by the user go before the run's. Raises InputError for anything else.
    """
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"{path}: no such model file or run folder")
        return Source(name=path.name, file=path, inputs=inputs)
    run, content, models = finished(path)
    chosen = next((model for model in models if model.name == content["chosen"]), None)
    if chosen is None or not run.model.is_file():
        raise InputError(f"{run.model}: is missing; run its `edgekd distill` with --fresh")
    if file_sha256(run.model) != chosen.sha256:
        raise InputError(f"{run.model}: is not the file the run made (its SHA-256 differs); check it by its own path")
    return Source(
        name=f"{path.name}/{chosen.name}",
        file=run.model,
        precision=chosen.precision,
        inputs=inputs or run_inputs(run, "test"),
        teacher=run.exported / models[0].file,
        budget=_run_budget(run, content["target"], target),
    )


def _run_budget(run: Run, made_for: str, target: Target) -> Budget:
    """The budget the run was made for; its latency counts on its own target alone."""
    budget = Budget(**read_json(run.folder / "run.json")["budget"])
    budget = dataclasses.replace(budget, teacher_min_accuracy=None)  # the teacher's, not this file's
    if made_for == target.name:
        return budget
    return dataclasses.replace(budget, latency_p50_ms=None, latency_p95_ms=None, latency_p99_ms=None, load_ms=None)


def baseline_of(path: Path, target: Target) -> Source | Checked:
    """A baseline: a model or run to measure now, or a stored record of this target.

    Raises InputError for a record of another target, or a file that is not there.
    """
    if not path.exists():
        make = f"`edgekd baseline accept MODEL --target {target.option} --to {path}` makes one"
        raise InputError(f"{path}: no such baseline; {make if is_record(path) else 'give a model, a run or a record'}")
    if not is_record(path):
        return dataclasses.replace(source_of(path, target, None), inputs=None)
    stored = read_record(path)
    if stored.sample.target != target.name:
        raise InputError(f"{path}: is a record of target {stored.sample.target}, not of {target.name}")
    return stored


def refuse_other_machine(stored: Sample, now: Sample, allowed: Collection[str]) -> list[str]:
    """What differs between a stored record and this measurement, as far as it is allowed, in words.

    Raises ConfigError for what is not.
    """
    found = differences(stored, now)
    if not now.latency:
        found.pop("inputs", None)  # only calls that are timed are made with the user's data
    refused = {key: text for key, text in found.items() if key not in allowed}
    if refused:
        allow = " ".join(f"--allow-difference {key}" for key in refused)
        raise ConfigError(
            f"the record of {stored.name} was made elsewhere: {'; '.join(refused.values())}; measure a baseline here, "
            f"give the old model file as --baseline, or allow it: {allow}"
        )
    return [f"compared although {text}" for text in found.values()]


def signature_of(file: Path) -> str:
    """Inputs of an ONNX file with type and shape: `float [N,3,32,32]`; empty for what cannot be read as ONNX."""
    import onnx

    try:
        graph = onnx.load(file, load_external_data=False).graph
        constants = {tensor.name for tensor in graph.initializer}
        kinds = [value.type.tensor_type for value in graph.input if value.name not in constants]
        texts = [f"{onnx.TensorProto.DataType.Name(kind.elem_type).lower()} [{_shape(kind)}]" for kind in kinds]
    except Exception:  # protobuf's errors have no common base; the runtime says what is wrong with the file
        return ""
    return ", ".join(texts)


def _shape(kind: "object") -> str:
    dims = kind.shape.dim  # type: ignore[attr-defined]
    return ",".join(str(dim.dim_value) if dim.HasField("dim_value") else "N" for dim in dims)
