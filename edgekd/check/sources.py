"""Resolve the path given to `check` to a model file, a run folder or a record, and the same for a baseline."""

from dataclasses import dataclass
from pathlib import Path

from edgekd.budget import Budget, read_budget
from edgekd.card import Card
from edgekd.check.record import Checked, is_record, record_of
from edgekd.errors import InputError
from edgekd.external import file_digest
from edgekd.files import read_json
from edgekd.run import Run
from edgekd.runs import Inputs, finished, run_inputs, task_of_file, task_of_run
from edgekd.scores import ScoreKind
from edgekd.target import Target
from edgekd.tasks.known import TASKS
from edgekd.tasks.task import Task
from edgekd.units import visible

__all__ = ["Source", "baseline_of", "signature_of", "source_of"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model file to measure, with the data and budget of its run if it has one."""

    name: str
    file: Path
    precision: str = "as it is"
    inputs: Inputs | None = None
    teacher: Path | None = None
    """The run's teacher, with whose answers the model's answers are compared."""
    budget: Budget = Budget()  # noqa: RUF009 - frozen
    """The budget for which the run was made; empty for a bare file."""
    task: Task = TASKS[Card.task]


def source_of(path: Path, target: Target, inputs: Inputs | None, own_data: bool = True) -> Source:
    """Return the model at a path: a file, or the shipped file of a run folder, with the run's test data and budget.

    The user's `inputs` replace the run's data, which are also ignored if `own_data` is False. Raises InputError for
    other paths.
    """
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"{path}: no such model file or run folder")
        task = task_of_file(path)
        return Source(name=visible(path.name), file=path, inputs=inputs, budget=Budget(task.scores[0]), task=task)
    run, content, models = finished(path)
    if not (run.folder / "run.json").is_file():  # it holds the task and the budget
        raise InputError(f"{run.folder / 'run.json'}: is missing; run its `edgekd distill` with --fresh")
    chosen = next((model for model in models if model.name == content.get("chosen")), None)
    if chosen is None or not run.model.is_file():
        raise InputError(f"{run.model}: is missing; run its `edgekd distill` again, which makes it again")
    if file_digest(run.model) != chosen.sha256:
        raise InputError(f"{run.model}: is not the file the run made (its SHA-256 differs); check it by its own path")
    return Source(
        name=visible(f"{path.name}/{chosen.name}"),
        file=run.model,
        precision=chosen.precision,
        inputs=inputs or (run_inputs(run, "test") if own_data else None),
        teacher=run.exported / models[0].file,
        budget=_run_budget(run, content.get("target"), target, models[0].kinds[0]),
        task=task_of_run(run),
    )


def _run_budget(run: Run, made_for: str | None, target: Target, kind: ScoreKind) -> Budget:
    """Return the run's budget; for another target, the card's budget there with the values of the run's `--budget`."""
    file = run.folder / "run.json"
    made = read_json(file)
    if not isinstance(made, dict) or not isinstance(made.get("budget"), dict):
        raise InputError(f"{file}: holds no budget; was it edited?")
    budget = read_budget(made["budget"], f"{file}: budget", [kind])
    budget = budget.without(kind.teacher_key)  # this limit applies to the teacher, not to this file
    if made_for == target.name:
        return budget
    of_card = made.get("budgets")
    if isinstance(of_card, dict) and all(isinstance(limits, dict) for limits in of_card.values()):
        everywhere = of_card.get("", {})
        own, there = (everywhere | of_card.get(name, {}) for name in (made_for, target.name))
        overridden = {key: limit for key, limit in budget.limits().items() if own.get(key) != limit}
        return read_budget(there | overridden, f"{file}: budgets", [kind]).without(kind.teacher_key)
    # Runs of an earlier edgekd do not store the card's budgets for other targets; their latency limits apply only to
    # their own target.
    return budget.without("latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "load_ms")


def baseline_of(path: Path, target: Target) -> Source | Checked:
    """Return a baseline: a model or run to measure now, or a stored record of this target.

    Raises InputError for a record of another target or a file that does not exist.
    """
    if is_record(path):
        return record_of(path, target)
    if not path.exists():
        raise InputError(f"{path}: no such baseline; give a model, a run or a record (.json)")
    return source_of(path, target, None, own_data=False)


def signature_of(file: Path) -> str | None:
    """Return the inputs of an ONNX file with type and shape: `float [N,3,32,32]`; None if it cannot be read as ONNX."""
    import onnx

    try:
        graph = onnx.load(file, load_external_data=False).graph
        if not graph.output:  # protobuf reads almost any content as an empty message
            return None
        constants = {tensor.name for tensor in graph.initializer}
        kinds = [value.type.tensor_type for value in graph.input if value.name not in constants]
        texts = [f"{onnx.TensorProto.DataType.Name(kind.elem_type).lower()} [{_shape(kind)}]" for kind in kinds]
    except Exception:  # protobuf's errors have no common base; the runtime reports what is wrong with the file
        return None
    return ", ".join(texts)


def _shape(kind: "object") -> str:
    dims = kind.shape.dim  # type: ignore[attr-defined]
    return ",".join(str(dim.dim_value) if dim.HasField("dim_value") else "N" for dim in dims)
