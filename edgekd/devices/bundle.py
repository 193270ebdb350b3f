"""Measuring by hand: pack orders for a device that nothing can reach, and read the results that it wrote.

A bundle is made by a bench on a device that only notes what it is asked (`Packing`). The results are read by a bench
on a device that answers with them (`Brought`). An answer belongs to the files with its digests alone.
"""

import base64
import contextlib
import hashlib
import io
import json
import tarfile
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd.bench.records import Plan, Record
from edgekd.devices.device import OnProgress
from edgekd.devices.host import described
from edgekd.devices.orders import Order, order_of, record_from
from edgekd.errors import ConfigError, EdgekdError, InputError, UnavailableError
from edgekd.files import atomic, file_sha256, read_json
from edgekd.machine import Machine
from edgekd.target import Target

__all__ = ["Brought", "Noted", "Packing", "bundle_words", "refuse_other_names", "write_bundle"]

AGENT = Path(__file__).with_name("agent.py")
REPEATED = {"memory": 3, "load": 1, "profile": 1, "predict": 1}
"""The number of workers that a bundle holds for each mode: a check needs the memory of three processes, to know its
range."""
FREE = ("memory_limit_bytes", "affinity", "precise_int8", "warmup_s", "min_calls", "max_calls", "max_s")
"""Keys of a plan that may differ between the bundle and the bench that reads its results."""
RUN = """\
#!/bin/sh
# Measure what this folder holds, with Python 3.9, numpy and onnxruntime: sh run.sh
# PYTHON=/path/to/python sh run.sh takes another Python. Started again, it goes on where it stopped.
cd "$(dirname "$0")" && exec "${PYTHON:-python3}" agent.py .
"""


class Noted(EdgekdError):
    """The bench stops here: an order was noted, and the next step needs its real answer."""


class Packing:
    """A device that notes the orders it is given, and answers them with placeholder figures, which are not shown."""

    def __init__(self, target: Target, folder: Path) -> None:
        """Parts of data sets are written to `folder`."""
        hw = target.hardware
        architecture = hw.architecture.replace("arm64", "aarch64")
        system = "Linux" if hw.system == "any" else hw.system
        self._machine = Machine(architecture, "", frozenset(hw.requires), next(iter(hw.cpu_part), ""), system)
        self._folder = folder
        self.orders: list[Order] = []

    def facts(self) -> Machine:
        """Return what the target says of its hardware."""
        return self._machine

    def free_memory(self) -> int | None:
        """Return None, because nobody knows."""
        return None

    def require(self, target: Target) -> None:
        """Raise UnavailableError for a target whose runtime is not Python."""
        if target.provider.name == "wasm":
            raise UnavailableError(f"target {target.name}: runs in Node, and a bundle is run by Python")

    def run(
        self, plan: Plan, model: Path, target: Target, timeout_s: float, on_progress: OnProgress | None = None
    ) -> Record:
        """Note the order. Raises Noted for one whose outputs would be read."""
        order = order_of(plan, model, timeout_s, lambda: self._folder)
        known = sum(_key(other) == _key(order) for other in self.orders)
        self.orders += [order] * max(0, REPEATED.get(plan.mode, known + 1) - known)
        if plan.mode == "predict":
            raise Noted(f"{model}: its answers come with the results")
        numbers: dict[str, Any] = {"latency_s": (1e-3,), "calls": 1, "elapsed_s": 1e-3, "first_call_s": 1e-3}
        return Record(mode=plan.mode, load_s=1e-3, fingerprint={}, memory={"run_bytes": 1}, **numbers)

    def close(self) -> None:
        """Do nothing."""


def _key(order: Order) -> str:
    """The identity of an order's content: files by digest, session, inputs, but not how long it measures."""
    return _identity(order.plan, {name: file_sha256(path) for name, path in order.files.items() if name != "worker"})


def _identity(plan: dict[str, Any], links: dict[str, str]) -> str:
    counted = {key: value for key, value in plan.items() if key not in FREE}
    counted["baseline"] = bool(plan.get("baseline"))
    # A model counts by its content; `model.onnx` of a run is one of its exported files.
    parts = sorted([name.partition("/")[0], digest] for name, digest in links.items())
    return hashlib.sha256(json.dumps([counted, parts], sort_keys=True).encode()).hexdigest()


def write_bundle(path: Path, orders: list[Order], python: str) -> None:
    """Write the bundle (.tar.gz): the agent, the orders, each file once under its digest, and `run.sh`."""
    requests: list[dict[str, Any]] = []
    files: dict[str, Path] = {}
    for number, order in enumerate(orders):
        job = hashlib.sha256(f"{_key(order)} {number}".encode()).hexdigest()
        requests.append(order.request(job, python, file_sha256))
        files |= {file_sha256(one): one for one in order.files.values()}
    name = hashlib.sha256(json.dumps(requests, sort_keys=True).encode()).hexdigest()
    content = json.dumps({"schema_version": 1, "bundle": name, "orders": requests}).encode()
    folder = path.name.removesuffix(".gz").removesuffix(".tar")
    with atomic(path) as temporary, tarfile.open(temporary, "w:gz") as archive:
        for digest, file in sorted(files.items()):
            archive.add(file.resolve(), f"{folder}/files/{digest}", filter=_anonymous)
        archive.add(AGENT, f"{folder}/agent.py", filter=_anonymous)
        for member, data in (("orders.json", content), ("run.sh", RUN.encode())):
            info = tarfile.TarInfo(f"{folder}/{member}")
            info.size, info.mode = len(data), 0o644
            archive.addfile(info, io.BytesIO(data))


def refuse_other_names(path: Path, option: str) -> None:
    """Raise ConfigError for a name that a bundle cannot have, and that was given with `option`."""
    if not path.name.endswith(".tar.gz"):
        raise ConfigError(f"{option} {path}: a bundle is a compressed archive; give a name that ends in .tar.gz")


def bundle_words(path: Path, workers: int) -> str:
    """What a bundle holds, and how it is used on the device."""
    size, name = path.stat().st_size / 1e6, path.name.removesuffix(".tar.gz")
    return f"{path}: {workers} workers, {size:.1f} MB; on the device: tar xzf {path.name} && sh {name}/run.sh"


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime, info.mode = 0, 0o644
    return info


@dataclass
class Brought:
    """A device whose workers have run already: `results.json` of a bundle."""

    path: Path
    _answers: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = field(default_factory=lambda: defaultdict(list))
    _taken: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read the results. Raises InputError for a file that holds none."""
        if not self.path.is_file():
            raise InputError(f"--from {self.path}: no such file")
        content = read_json(self.path, "`sh run.sh` of a bundle writes it on the device; copy it from there again")
        try:
            if content["kind"] != "edgekd results" or content["schema_version"] != 1:
                raise ValueError
            self._facts = content["facts"]
            for order, answer in zip(content["orders"], content["answers"], strict=True):
                self._answers[_identity(order["plan"], order["links"])].append((order, answer))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError(f"--from {self.path}: holds no results; `sh run.sh` of a bundle writes them") from None

    @property
    def source(self) -> str:
        """The name and the SHA-256 of the results, which figures made of them keep."""
        return f"{self.path.name}, SHA-256 {file_sha256(self.path)}"

    @property
    def processes(self) -> int:
        """The number of processes in which latency was measured, of the model with the fewest."""
        counts = [len(found) for found in self._answers.values() if found[0][0]["plan"]["mode"] == "latency"]
        return min(counts, default=0)

    def facts(self) -> Machine:
        """Return the description of the device that ran the bundle."""
        told = self._facts
        return described(told["architecture"], told["system"], told["cpuinfo"])

    def free_memory(self) -> int | None:
        """Return None, because nothing is started."""
        return None

    def require(self, target: Target) -> None:
        """Raise UnavailableError unless the device's onnxruntime had the target's provider."""
        offered = self._facts["runtime"].get("providers", [])
        if target.provider.name not in offered:
            raise UnavailableError(
                f"--from {self.path}: target {target.name} needs {target.provider.name}, and onnxruntime there "
                f"offered {', '.join(offered)}"
            )

    def run(
        self, plan: Plan, model: Path, target: Target, timeout_s: float, on_progress: OnProgress | None = None
    ) -> Record:
        """Return the record of one worker that ran. Raises InputError if none ran with these files and settings."""
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
            key = _key(order_of(plan, model, timeout_s, lambda: Path(folder)))
        found, number = self._answers.get(key, []), self._taken[key]
        if not found:
            raise InputError(
                f"{model}: {self.path} holds no {plan.mode} of exactly this file on target {target.name} with these "
                "inputs; `edgekd bundle` packs it"
            )
        if number >= len(found) and plan.mode == "pair":
            raise InputError(
                f"{model}: {self.path} holds too few processes in which it takes turns with {plan.baseline}; measure "
                "again, by `edgekd bundle --baseline` and `sh run.sh`"
            )
        if number >= len(found) and plan.mode in ("latency", "throughput"):
            raise InputError(
                f"{model}: {self.path} holds {len(found)} processes in mode {plan.mode}, and more are needed; "
                f"`edgekd bundle --processes {2 * len(found)}` packs more"
            )
        self._taken[key] += 1
        request, answer = found[min(number, len(found) - 1)]
        with contextlib.suppress(KeyError):
            for name, path in (("outputs.npy", plan.outputs), ("optimized.onnx", plan.optimized)):
                if path:
                    Path(path).write_bytes(base64.b64decode(answer["files"][name]))
        job = f"{self._facts['folder']}/jobs/{request['job']}"
        return record_from(answer, plan, model, "the device", job, timeout_s, self._facts["board"])

    def close(self) -> None:
        """Do nothing, because nothing is held."""
