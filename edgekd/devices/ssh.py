"""A device that is reached by ssh: workers run there, and files go there once, under the digest of their content."""

import dataclasses
import getpass
import hashlib
import json
import platform
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgekd.bench.records import Plan, Record
from edgekd.console import say
from edgekd.devices.device import OnProgress
from edgekd.devices.host import described
from edgekd.devices.link import Dropped, Link, parse_address
from edgekd.devices.outcome import ending, record_of, timed_out
from edgekd.errors import EdgekdError, InputError, ModelError, UnavailableError
from edgekd.external import model_files
from edgekd.files import file_sha256
from edgekd.machine import Machine
from edgekd.target import Target

__all__ = ["Ssh"]

WORKER = Path(__file__).parents[1] / "bench" / "worker.py"
LIMIT_BYTES = 2_000_000_000
"""Bytes of files that edgekd keeps on a device; those used longest ago are removed first."""
RECONNECT_S = 120.0
"""Seconds in which a lost device may come back: enough to restart a small board."""
ASKING_S = 150.0
"""Seconds that a slow device may take to import onnxruntime, when it is asked what it has."""
CUTS = 50
"""A worker that was cut off more often than this is given up."""
TIMED = ("latency", "pair", "throughput")
HOT_C, COOL_S = 70.0, 180.0
"""A device as hot as this is left alone for at most so many seconds before times are measured."""
ROWS = 256
"""Rows of a data set that go over for timing, if one batch needs no more; workers time 64 rows in rotation."""

T = TypeVar("T")


class Ssh:
    """The device at an address such as `ssh://pi@board`. It is connected when it is first used."""

    def __init__(self, place: str, python: str = "", cool: bool = True) -> None:
        """`python` is the interpreter there; `cool` says whether to wait until a hot device has cooled down."""
        self.address, self.python, self.cool = parse_address(place), python, cool
        self.place = self.address.text
        self.sent_bytes = 0
        self.cuts = 0
        self._link: Link | None = None
        self._gone: EdgekdError | None = None
        self._told: dict[str, Any] = {}
        self._state: dict[str, Any] = {}
        self._owner = uuid.uuid4().hex
        self._jobs = 0
        self._received: list[str] = []
        self._digests: dict[tuple[Any, ...], str] = {}
        self._slices: tempfile.TemporaryDirectory[str] | None = None

    def describe(self) -> dict[str, Any]:
        """Return what the agent tells of the device: see `facts` in edgekd/devices/agent.py."""
        if not self._told:
            request = {"do": "facts", "python": self.python}
            self._told = self._persist(lambda link: link.request(request, patience_s=ASKING_S))
            self._state = self._told["state"]
        return self._told

    def facts(self) -> Machine:
        """Return the description of the device."""
        told = self.describe()
        return described(told["architecture"], told["system"], told["cpuinfo"])

    def free_memory(self) -> int | None:
        """Return the bytes of memory that were available there after the last worker."""
        self.describe()
        free: int | None = self._state.get("free_memory")
        return free

    def require(self, target: Target) -> None:
        """Raise UnavailableError unless the device's Python has numpy and an onnxruntime with the target's provider."""
        if target.provider.name == "wasm":
            raise UnavailableError(f"device {self.place}: target {target.name} runs in Node, and a device runs Python")
        told = self.describe()
        runtime, python = told["runtime"], told["command"]
        if problem := runtime.get("problem"):
            raise UnavailableError(
                f"device {self.place}: {python} cannot run models ({problem}); `edgekd devices {self.place} --setup` "
                "makes an environment there with numpy and onnxruntime"
            )
        if target.provider.name not in runtime["providers"]:
            raise UnavailableError(
                f"device {self.place}: target {target.name} needs {target.provider.name}, and onnxruntime "
                f"{runtime['onnxruntime']} there offers {', '.join(runtime['providers'])}"
            )

    def run(
        self, plan: Plan, model: Path, target: Target, timeout_s: float, on_progress: OnProgress | None = None
    ) -> Record:
        """Run the plan in one fresh worker process on the device.

        A lost connection is taken up again; what the worker measured in the meantime is kept. Raises UnavailableError
        if the device does not come back or is in use.
        """
        if not model.is_file():
            raise InputError(f"{model}: no such model file")
        if plan.baseline is not None and not Path(plan.baseline).is_file():
            raise InputError(f"baseline {plan.baseline}: no such model file")
        self._jobs += 1
        order = self._order(plan, model, timeout_s)
        return self._persist(lambda link: self._run_once(link, order, plan, model, on_progress))

    def ask(self, message: dict[str, Any], payload: Path | None = None) -> dict[str, Any]:
        """Send one request to the agent and return its answer."""
        return self._persist(lambda link: link.request(message, payload))

    def upload(self, link: Link, files: dict[str, Path]) -> None:
        """Send those of the files, given by digest, that are not on the device."""
        missing = link.request({"do": "missing", "files": sorted(files)})["missing"]
        for digest in missing:
            link.request({"do": "put", "sha256": digest, "limit": LIMIT_BYTES}, files[digest])
            self.sent_bytes += files[digest].stat().st_size

    def send(self, paths: list[Path]) -> dict[str, str]:
        """Send the files and return their digests by name."""
        files = {self._digest(path): path for path in paths}
        self._persist(lambda link: self.upload(link, files))
        return {path.name: digest for digest, path in files.items()}

    def close(self) -> None:
        """End the session, which leaves no process on the device."""
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._slices is not None:
            self._slices.cleanup()
            self._slices = None

    # --- the connection ---

    def _persist(self, do: Callable[[Link], T]) -> T:
        """Do something over the connection; if it drops, connect again within RECONNECT_S and do it again."""
        until, cuts = 0.0, 0
        while True:
            if self._gone is not None:
                raise self._gone
            try:
                return do(self._connected())
            except Dropped as dropped:
                cuts, self.cuts = cuts + 1, self.cuts + 1
                until = self._lost(dropped, until, cuts)

    def _connected(self) -> Link:
        if self._link is None:
            self._link = Link(self.address, self.python or "python3")
        return self._link

    def _lost(self, dropped: Dropped, until: float, cuts: int) -> float:
        """Close the lost connection and wait a little; returns until when to try. Raises UnavailableError at the
        end.
        """
        if self._link is not None:
            self._link.close()
            self._link, until = None, 0.0
        if not self._told:  # it has never answered, so it is not a connection that was lost
            self._gone = UnavailableError(f"{dropped}; is it on, and does `ssh {self.address.host}` reach it?")
            return until
        if not until:
            until = time.monotonic() + RECONNECT_S
            if self.cuts == cuts == 1:
                say(f"edgekd: {dropped}; trying for {RECONNECT_S:.0f} s to connect again")
        if time.monotonic() > until or cuts > CUTS:
            self._gone = UnavailableError(f"{dropped}, and did not come back; the same command goes on from here")
        time.sleep(0.2 if cuts == 1 else 2.0)
        return until

    def _lock(self, link: Link) -> None:
        who = f"{getpass.getuser()}@{platform.node()}"
        answer = link.request({"do": "lock", "owner": self._owner, "who": who})
        if not answer["held"]:
            since = f" since {answer['since']}" if answer.get("since") else ""
            raise UnavailableError(f"device {self.place}: {answer['by']} measures there{since}; try again later")

    # --- one worker ---

    def _order(self, plan: Plan, model: Path, timeout_s: float) -> dict[str, Any]:
        """Return the request for one worker, with paths of this machine in `files`, by their names in the job."""
        links = _named(model, "model")
        values = plan.as_json()
        if plan.baseline is not None:
            other = Path(plan.baseline)
            links |= _named(other, "baseline")
            values["baseline"] = {"in": f"baseline/{_sayable(other.name)}"}
        if plan.inputs is not None:
            links[f"inputs{Path(plan.inputs).suffix}"] = self._part(plan)
            values["inputs"] = {"in": f"inputs{Path(plan.inputs).suffix}"}
        libraries = {f"ops/{number}-{Path(path).name}": Path(path) for number, path in enumerate(plan.custom_ops)}
        values["custom_ops"] = [{"in": name} for name in libraries]
        values["outputs"] = {"out": "outputs.npy"} if plan.outputs else None
        values["optimized"] = {"out": "optimized.onnx"} if plan.optimized else None
        job = hashlib.sha256(f"{self._owner} {self._jobs}".encode()).hexdigest()
        files = {"worker": WORKER, **links, **libraries}
        return {
            "do": "run",
            "job": job,
            "plan": json.loads(json.dumps(values)),
            "model": f"model/{_sayable(model.name)}",
            "python": self.python,
            "timeout_s": timeout_s,
            "files": {name: (self._digest(path), path) for name, path in files.items()},
        }

    def _run_once(
        self, link: Link, order: dict[str, Any], plan: Plan, model: Path, on_progress: OnProgress | None
    ) -> Record:
        self._lock(link)
        if plan.mode in TIMED and self.cool:
            self._cool_down(link)
        files: dict[str, tuple[str, Path]] = order["files"]
        self.upload(link, dict(files.values()))
        digests = {name: digest for name, (digest, _) in files.items()}
        request = {**order, "files": None, "worker": digests.pop("worker"), "links": digests}
        told = {} if on_progress is None else {"told": lambda answer: _progress(answer, on_progress)}
        answer = link.request({**request, "received": self._received}, **told)  # type: ignore[arg-type]
        self._state = answer["after"]
        self._received = [order["job"]]
        for name, path in (("outputs.npy", plan.outputs), ("optimized.onnx", plan.optimized)):
            if path and name in answer["outputs"]:
                link.fetch({"do": "get", "job": order["job"], "name": name}, Path(path))
        return self._record(answer, order, plan, model)

    def _record(self, answer: dict[str, Any], order: dict[str, Any], plan: Plan, model: Path) -> Record:
        culprit = f"{model}" if plan.baseline is None else f"{model} or baseline {plan.baseline}"
        if answer["code"] is None:
            raise timed_out(culprit, order["timeout_s"])
        if not answer["result"]:
            raise ModelError(f"{culprit}: on device {self.place}, the worker {ending(answer['code'], answer['last'])}")
        folder = f"{self.describe()['folder']}/jobs/{order['job']}/in/"
        text = answer["result"].replace(folder, "")
        blamed = f"baseline baseline/{_sayable(Path(plan.baseline).name)}: " if plan.baseline else "baseline : "
        record = record_of(text, model, blamed, f"baseline {plan.baseline}: ")
        return dataclasses.replace(
            record,
            disturbance=record.disturbance | disturbed(answer["before"], answer["after"]),
            fingerprint=record.fingerprint | self._marks(answer["after"]),
        )

    def _marks(self, after: dict[str, Any]) -> dict[str, Any]:
        """Return what must be equal for two records of devices to be comparable, beside what the worker knows."""
        marks = {"board": self.describe()["board"], "governor": after.get("governor")}
        return {key: value for key, value in marks.items() if value}

    def _cool_down(self, link: Link) -> None:
        """Wait until a hot or throttled device has cooled down, for at most COOL_S."""
        until = time.monotonic() + COOL_S
        if not hot(self._state):
            return
        self._state = link.request({"do": "state"})
        if hot(self._state):
            say(f"edgekd: device {self.place}: {hot(self._state)}; waiting up to {COOL_S:.0f} s for it to cool down")
        while hot(self._state) and time.monotonic() < until:
            time.sleep(3)
            self._state = link.request({"do": "state"})

    # --- files ---

    def _digest(self, path: Path) -> str:
        status = path.stat()
        key = (path, status.st_size, status.st_mtime_ns, status.st_ino)
        if key not in self._digests:
            self._digests[key] = file_sha256(path)
        return self._digests[key]

    def _part(self, plan: Plan) -> Path:
        """Return the file of inputs, cut to the rows that are timed where a plan times a few rows only."""
        whole = Path(plan.inputs or "")
        if plan.mode == "predict" or plan.sequence_length is not None or whole.suffix != ".npy":
            return whole
        rows = np.load(whole, mmap_mode="r")
        sizes = [shape[0] for shape in plan.shapes.values() if shape]
        count = max([ROWS, 2 * plan.batch_size, *(2 * size for size in sizes)])
        if len(rows) <= count:
            return whole
        status = whole.stat()
        name = hashlib.sha256(f"{whole} {status.st_mtime_ns} {status.st_size} {count}".encode()).hexdigest()
        self._slices = self._slices or tempfile.TemporaryDirectory(prefix="edgekd-slices-")
        part = Path(self._slices.name, f"{name}.npy")
        if not part.exists():
            temporary = part.with_suffix(".part")
            with temporary.open("wb") as file:
                np.save(file, rows[:count])
            temporary.replace(part)
        return part


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


def _progress(answer: dict[str, Any], on_progress: OnProgress) -> None:
    if "progress" in answer:
        on_progress(*answer["progress"])


def hot(state: dict[str, Any]) -> str:
    """Describe why a device in this state should cool down; empty if it need not."""
    degrees, bits = state.get("temperature_c"), state.get("throttled") or 0
    if bits & 0b1110:
        return "it is throttled"
    return f"it has {degrees:.0f} °C" if degrees is not None and degrees >= HOT_C else ""


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
