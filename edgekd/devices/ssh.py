"""A device that is reached by ssh: workers run there, and files go there once, under the digest of their content."""

import getpass
import hashlib
import platform
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from edgekd.bench.records import Plan, Record
from edgekd.console import say
from edgekd.devices.device import OnProgress
from edgekd.devices.host import described
from edgekd.devices.link import Dropped, Link, parse_address
from edgekd.devices.orders import Order, order_of, record_from
from edgekd.errors import EdgekdError, UnavailableError
from edgekd.files import file_sha256
from edgekd.machine import Machine
from edgekd.target import Target

__all__ = ["Ssh"]

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
        self._jobs += 1
        job = hashlib.sha256(f"{self._owner} {self._jobs}".encode()).hexdigest()
        order = order_of(plan, model, timeout_s, self._scratch)
        request = order.request(job, self.python, self._digest)
        return self._persist(lambda link: self._run_once(link, order, request, plan, model, on_progress))

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
        """End the session, which leaves no process on the device. What another thread measures there fails."""
        self._gone = self._gone or UnavailableError(f"device {self.place}: is closed")
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

    def _run_once(
        self, link: Link, order: Order, request: dict[str, Any], plan: Plan, model: Path, on_progress: OnProgress | None
    ) -> Record:
        self._lock(link)
        if plan.mode in TIMED and self.cool:
            self._cool_down(link)
        self.upload(link, {self._digest(path): path for path in order.files.values()})
        told = {} if on_progress is None else {"told": lambda answer: _progress(answer, on_progress)}
        answer = link.request({**request, "received": self._received}, **told)  # type: ignore[arg-type]
        self._state = answer["after"]
        self._received = [request["job"]]
        for name, path in (("outputs.npy", plan.outputs), ("optimized.onnx", plan.optimized)):
            if path and name in answer["outputs"]:
                link.fetch({"do": "get", "job": request["job"], "name": name}, Path(path))
        facts = self.describe()
        folder = f"{facts['folder']}/jobs/{request['job']}"
        return record_from(answer, plan, model, f"device {self.place}", folder, order.timeout_s, facts["board"])

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

    def _scratch(self) -> Path:
        self._slices = self._slices or tempfile.TemporaryDirectory(prefix="edgekd-slices-")
        return Path(self._slices.name)

    def _digest(self, path: Path) -> str:
        status = path.stat()
        key = (path, status.st_size, status.st_mtime_ns, status.st_ino)
        if key not in self._digests:
            self._digests[key] = file_sha256(path)
        return self._digests[key]


def _progress(answer: dict[str, Any], on_progress: OnProgress) -> None:
    if "progress" in answer:
        on_progress(*answer["progress"])


def hot(state: dict[str, Any]) -> str:
    """Describe why a device in this state should cool down; empty if it need not."""
    degrees, bits = state.get("temperature_c"), state.get("throttled") or 0
    if bits & 0b1110:
        return "it is throttled"
    return f"it has {degrees:.0f} °C" if degrees is not None and degrees >= HOT_C else ""
