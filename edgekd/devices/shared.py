"""One device for all targets of a command that are measured on it: a device serves one session at a time."""

from dataclasses import dataclass
from pathlib import Path

from edgekd.bench.records import Plan, Record
from edgekd.devices.device import Device, OnProgress
from edgekd.errors import ConfigError
from edgekd.machine import Machine
from edgekd.target import Target

__all__ = ["Held", "Shared"]


@dataclass
class Shared:
    """A device and the number of sites that hold it; it is closed when the last one closes it."""

    device: Device
    first: Target
    """The target for which the device was opened."""
    holders: int = 0

    def hold(self, target: Target) -> "Held":
        """Return the device for one more site. Raises ConfigError if the target names another interpreter on it."""
        if target.python != self.first.python:
            raise ConfigError(
                f"device {target.device}: targets {self.first.name} and {target.name} name different interpreters on "
                "it, and one call uses one; give each target a call of its own"
            )
        self.holders += 1
        return Held(self)

    def let_go(self) -> None:
        """Give back what one site held."""
        self.holders -= 1
        if not self.holders:
            self.device.close()


class Held:
    """A shared device, as one of its sites holds it."""

    def __init__(self, shared: Shared) -> None:
        """The device is open already."""
        self._shared, self._device, self._open = shared, shared.device, True

    def facts(self) -> Machine:
        """Return the description of the device."""
        return self._device.facts()

    def free_memory(self) -> int | None:
        """Return the bytes of memory that are available there."""
        return self._device.free_memory()

    def require(self, target: Target) -> None:
        """Raise UnavailableError unless the device can run the target's provider."""
        self._device.require(target)

    def run(
        self, plan: Plan, model: Path, target: Target, timeout_s: float, on_progress: OnProgress | None = None
    ) -> Record:
        """Run the plan in one fresh worker process on the device."""
        return self._device.run(plan, model, target, timeout_s, on_progress)

    def close(self) -> None:
        """Give the device back; a second call does nothing."""
        if self._open:
            self._open = False
            self._shared.let_go()
