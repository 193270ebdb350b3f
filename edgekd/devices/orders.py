"""Orders: what another machine needs to run one worker, and how its answer becomes a record."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.bench.records import Plan, Record
from edgekd.devices.outcome import ending, record_of, timed_out
from edgekd.errors import InputError, ModelError
from edgekd.external import model_files
from edgekd.files import file_sha256

__all__ = ["WORKER", "Order", "disturbed", "order_of", "record_from"]

WORKER = Path(__file__).parents[1] / "bench" / "worker.py"
ROWS = 256
"""The number of rows of a data set that are sent for timing, unless one batch needs more; workers time 64 rows in
rotation."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """One worker process that another machine is to run; edgekd/devices/agent.py carries it out."""

    plan: dict[str, Any]
    """The plan as JSON, in which the job's own files are named as {"in": NAME} and {"out": NAME}."""
    model: str
    """The model's name among the files."""
    files: dict[str, Path]
    """The files that the worker reads, by their names in the job, and the worker itself."""
    timeout_s: float

    def request(self, job: str, python: str, digest: Callable[[Path], str]) -> dict[str, Any]:
        """Return the request to the agent; `digest` gives the SHA-256 of a file."""
        digests = {name: digest(path) for name, path in self.files.items()}
        return {
            "do": "run",
            "job": job,
            "plan": self.plan,
            "model": self.model,
            "python": python,
            "timeout_s": self.timeout_s,
            "worker": digests.pop("worker"),
            "links": digests,
        }


def order_of(plan: Plan, model: Path, timeout_s: float, scratch: Callable[[], Path]) -> Order:
    """Make the order for a plan. `scratch()` returns a folder for the part of the inputs that is timed.

    Raises InputError for files that are missing.
    """
    if not model.is_file():
        raise InputError(f"{model}: no such model file")
    if plan.baseline is not None and not Path(plan.baseline).is_file():
        raise InputError(f"baseline {plan.baseline}: no such model file")
    files = {"worker": WORKER} | _named(model, "model")
    values = plan.as_json()
    if plan.baseline is not None:
        files |= _named(Path(plan.baseline), "baseline")
        values["baseline"] = {"in": f"baseline/{_sayable(Path(plan.baseline).name)}"}
    if plan.inputs is not None:
        files[f"inputs{Path(plan.inputs).suffix}"] = _part(plan, scratch)
        values["inputs"] = {"in": f"inputs{Path(plan.inputs).suffix}"}
    libraries = {f"ops/{number}-{Path(path).name}": Path(path) for number, path in enumerate(plan.custom_ops)}
    values["custom_ops"] = [{"in": name} for name in libraries]
    values["outputs"] = {"out": "outputs.npy"} if plan.outputs else None
    values["optimized"] = {"out": "optimized.onnx"} if plan.optimized else None
    return Order(
        plan=json.loads(json.dumps(values)),
        model=f"model/{_sayable(model.name)}",
        files=files | libraries,
        timeout_s=timeout_s,
    )


def record_from(
    answer: dict[str, Any], plan: Plan, model: Path, where: str, folder: str, timeout_s: float, board: str
) -> Record:
    """Return the record in an agent's answer, with the device's state around it.

    `where` names the device, `folder` is the job's folder there, and `board` is the name of its hardware. Raises
    ModelError or InputError for a worker that failed.
    """
    culprit = f"{model}" if plan.baseline is None else f"{model} or baseline {plan.baseline}"
    if answer["code"] is None:
        raise timed_out(culprit, timeout_s)
    if not answer["result"]:
        raise ModelError(f"{culprit}: on {where}, the worker {ending(answer['code'], answer['last'])}")
    text = answer["result"].replace(f"{folder}/in/", "")
    blamed = f"baseline baseline/{_sayable(Path(plan.baseline).name)}: " if plan.baseline else "baseline : "
    record = record_of(text, model, blamed, f"baseline {plan.baseline}: ")
    marks = {"board": board, "governor": answer["after"].get("governor")}
    return dataclasses.replace(
        record,
        disturbance=record.disturbance | disturbed(answer["before"], answer["after"]),
        # These, too, must be equal for two records to be comparable.
        fingerprint=record.fingerprint | {key: value for key, value in marks.items() if value},
    )


def disturbed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float | None]:
    """Return the device's temperature and throttling around one worker, as entries of a record's `disturbance`."""
    bits = [state["throttled"] & 0xF for state in (before, after) if state.get("throttled") is not None]
    found = {
        "temperature_before_c": before.get("temperature_c"),
        "temperature_c": after.get("temperature_c"),
        "max_mhz": after.get("max_mhz"),
        "throttled": float(bits[0] | bits[-1]) if bits else None,
    }
    return {key: value for key, value in found.items() if value is not None}


def _sayable(name: str) -> str:
    """Return the name of a model's file for the device; one that is not valid UTF-8 is replaced."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "model.onnx"
    return name


def _named(file: Path, folder: str) -> dict[str, Path]:
    """Return the files of a model by their names in the job: the model itself, and the files of its weights."""
    model, *weights = model_files(file)
    names = {f"{folder}/{part.relative_to(file.parent)}": part for part in weights}
    return {f"{folder}/{_sayable(file.name)}": model, **names}


def _part(plan: Plan, scratch: Callable[[], Path]) -> Path:
    """Return the file of inputs, cut to the rows that are timed where a plan times a few rows only."""
    whole = Path(plan.inputs or "")
    if plan.mode == "predict" or plan.sequence_length is not None or whole.suffix != ".npy":
        return whole
    rows = np.load(whole, mmap_mode="r")
    sizes = [shape[0] for shape in plan.shapes.values() if shape]
    count = max([ROWS, 2 * plan.batch_size, *(2 * size for size in sizes)])
    if len(rows) <= count:
        return whole
    name = hashlib.sha256(f"{file_sha256(whole)} {count}".encode()).hexdigest()
    part = scratch() / f"{name}.npy"
    if not part.exists():
        temporary = part.with_suffix(".part")
        with temporary.open("wb") as file:
            np.save(file, rows[:count])
        temporary.replace(part)
    return part
