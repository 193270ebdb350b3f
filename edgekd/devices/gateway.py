"""A device that hangs on a gateway: a node of a Ray cluster that reaches it by ssh, and has it as a resource.

The gateway joins the cluster with `ray start --address=… --resources='{"device:pi4": 1}'`, and its own ssh reaches the
device as `ssh://pi4`. Whoever measures holds that resource, so that only one command of the cluster uses the board at a
time. Nothing of Ray runs on the board.
"""

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekd.bench.records import Plan, Record
from edgekd.cluster import joined
from edgekd.console import say
from edgekd.devices.device import OnProgress
from edgekd.devices.orders import order_of
from edgekd.errors import ConfigError, EdgekdError, UnavailableError, one_line, shown
from edgekd.files import file_sha256
from edgekd.machine import Machine
from edgekd.target import Target

__all__ = ["Gateway"]

ASK_S = 10.0
"""Seconds after which a command that waits for the device says so."""
ADDRESS = "RAY_ADDRESS"
"""The environment variable that names the cluster; without it, it is the one that runs on this machine."""


class Gateway:
    """The device `ray://NAME`: the cluster's resource `device:NAME`, which its gateway reaches as `ssh://NAME`."""

    def __init__(self, place: str, python: str = "", cool: bool = True) -> None:
        """`python` and `cool` are as for a device that is reached by ssh."""
        found = re.fullmatch(r"ray://([\w.][\w.-]*)/?", place)
        if not found:
            raise ConfigError(f"device {shown(place)}: it should be like ray://pi4, for the resource device:pi4")
        self.place, self._name = place, found[1]
        self._session = (f"ssh://{found[1]}", python, cool)
        self._there: Any = None
        self._gone = False
        self._ray: Any = None
        self._joined: Any = None
        self._kept: set[str] = set()
        self._slices: tempfile.TemporaryDirectory[str] | None = None

    def facts(self) -> Machine:
        """Return the description of the device."""
        machine: Machine = self._ask("facts")
        return machine

    def free_memory(self) -> int | None:
        """Return the bytes of memory that were available there after the last worker."""
        free: int | None = self._ask("free_memory")
        return free

    def require(self, target: Target) -> None:
        """Raise UnavailableError unless the device can run the target's provider."""
        self._ask("require", target)

    def run(
        self, plan: Plan, model: Path, target: Target, timeout_s: float, on_progress: OnProgress | None = None
    ) -> Record:
        """Run the plan in one fresh worker process on the device, through the gateway."""
        order = order_of(plan, model, timeout_s, self._scratch)
        digests = {name: file_sha256(path) for name, path in order.files.items() if name != "worker"}
        missing = {digests[name]: order.files[name] for name in digests if digests[name] not in self._kept}
        for digest, path in missing.items():
            self._ask("store", digest, path.read_bytes())
            self._kept.add(digest)
        try:
            record, files = self._ask("run", order.plan, order.model, digests, target, timeout_s)
        except EdgekdError as error:  # it names the files as the gateway has them
            text = str(error).replace(order.model, str(model))
            named = order.plan["baseline"]["in"] if plan.baseline else ""
            raise type(error)(text.replace(named, str(plan.baseline)) if named else text) from None
        for name, place in (("outputs", plan.outputs), ("optimized", plan.optimized)):
            if place and name in files:
                Path(place).write_bytes(files[name])
        return record  # type: ignore[no-any-return]

    def close(self) -> None:
        """Give the device back to the cluster. What another thread asks of it fails."""
        self._gone = True
        if self._there is not None:
            try:
                self._ray.get(self._there.close.remote(), timeout=30)
            except self._ray.exceptions.RayError:  # the gateway is lost, and with it its connection
                pass
            self._ray.kill(self._there)
            self._there = None
        if self._joined is not None:
            self._joined.__exit__(None, None, None)
            self._joined = None
        if self._slices is not None:
            self._slices.cleanup()
            self._slices = None

    def _ask(self, method: str, *values: Any) -> Any:
        """Call a method of the session on the gateway. Raises its EdgekdError, or UnavailableError if it is lost."""
        there = self._connected()
        try:
            kind, value = self._ray.get(there.ask.remote(method, values))
        except self._ray.exceptions.RayError as error:
            raise UnavailableError(
                f"device {self.place}: its gateway is lost ({one_line(error, 100)}); the same command goes on from here"
            ) from error
        if kind == "error":
            raise value
        return value

    def _connected(self) -> Any:
        """Hold the resource, once it is free. Raises UnavailableError if no node of the cluster has it, or after
        `close`."""
        if self._gone:
            raise UnavailableError(f"device {self.place}: is closed")
        if self._there is None:
            if self._joined is None:
                self._joined = joined(os.environ.get(ADDRESS) or "auto")
                self._ray = self._joined.__enter__()
            resource = f"device:{self._name}"
            if not self._ray.cluster_resources().get(resource):
                known = sorted(name for name in self._ray.cluster_resources() if name.startswith("device:"))
                raise UnavailableError(
                    f"device {self.place}: no node of the cluster has the resource {resource} "
                    f"(there {'are ' + ', '.join(known) if known else 'is none'}); start its gateway with "
                    f"ray start --resources='{{\"{resource}\": 1}}'"
                )
            held = self._ray.remote(num_cpus=0, resources={resource: 1}, max_concurrency=2)(Session)
            self._there = held.remote(*self._session)
            self._wait(self._there)
        return self._there

    def _wait(self, there: Any) -> None:
        ready = there.ask.remote("place", ())
        if not self._ray.wait([ready], timeout=ASK_S)[0]:
            say(f"edgekd: device {self.place}: another command of the cluster measures there; waiting")
            self._ray.wait([ready], timeout=None)

    def _scratch(self) -> Path:
        self._slices = self._slices or tempfile.TemporaryDirectory(prefix="edgekd-slices-")
        return Path(self._slices.name)


class Session:
    """What runs on the gateway while a command holds the device: the connection to it, and the files of the command."""

    def __init__(self, place: str, python: str, cool: bool) -> None:
        """Nothing is connected yet."""
        from edgekd.devices.ssh import Ssh

        self._device = Ssh(place, python, cool)
        self._folder = tempfile.TemporaryDirectory(prefix="edgekd-gateway-")

    def ask(self, method: str, values: tuple[Any, ...]) -> tuple[str, Any]:
        """Call a method; return "value" and its result, or "error" and the EdgekdError that it raised."""
        methods: dict[str, Callable[..., Any]] = {
            "place": lambda: self._device.place,
            "facts": self._device.facts,
            "free_memory": self._device.free_memory,
            "require": self._device.require,
            "store": self._store,
            "run": self._run,
        }
        try:
            return "value", methods[method](*values)
        except EdgekdError as error:
            return "error", error

    def close(self) -> None:
        """End the connection to the device."""
        self._device.close()
        self._folder.cleanup()

    def _store(self, digest: str, content: bytes) -> None:
        Path(self._folder.name, digest).write_bytes(content)

    def _run(
        self, plan: dict[str, Any], model: str, digests: dict[str, str], target: Target, timeout_s: float
    ) -> tuple[Record, dict[str, bytes]]:
        """Run one worker on the device; return its record and the files that it wrote, by the plan's keys."""
        with tempfile.TemporaryDirectory(dir=self._folder.name) as job:
            for name, digest in digests.items():
                place = Path(job, name)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.link(Path(self._folder.name, digest), place)
            values = {key: _placed(value, job) for key, value in plan.items()}
            try:
                record = self._device.run(Plan(**values), Path(job, model), target, timeout_s)
            except EdgekdError as error:
                raise type(error)(str(error).replace(f"{job}{os.sep}", "")) from None
            wrote = {key: Path(values[key]) for key in ("outputs", "optimized") if values.get(key)}
            return record, {key: path.read_bytes() for key, path in wrote.items() if path.exists()}


def _placed(value: Any, job: str) -> Any:
    """Replace {"in": NAME} and {"out": NAME} of an order's plan by paths in the job's folder, and lists by tuples."""
    if isinstance(value, list):
        return tuple(_placed(one, job) for one in value)
    if isinstance(value, dict) and list(value) in (["in"], ["out"]):
        return str(Path(job, *value.values()))
    return value
