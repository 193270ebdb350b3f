"""A device on which workers run, and a target together with the device on which its figures are taken."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgekd.bench.records import Plan, Record
from edgekd.machine import Machine
from edgekd.target import Target

__all__ = ["Device", "OnProgress", "Site"]

OnProgress = Callable[[int, int], None]
"""Hears of a worker's progress: `told(done, total)`."""


class Device(Protocol):
    """A place where a worker can run: this machine, or another one that is reached from it."""

    def facts(self) -> Machine:
        """What the device is. The answer never changes."""

    def free_memory(self) -> int | None:
        """Bytes of memory that programs can still take; None where the device does not tell."""

    def require(self, target: Target) -> None:
        """Raise UnavailableError unless the device can run the target's provider."""

    def run(
        self, plan: Plan, model: Path, target: Target, timeout_s: float, on_progress: OnProgress | None = None
    ) -> Record:
        """Run the plan in one fresh worker process of the target's runtime, and return what it measured.

        Raises InputError if the model cannot be loaded, ModelError if it crashes or hangs the worker; so also for
        the plan's baseline.
        """

    def close(self) -> None:
        """Give back what the device holds, such as a connection. A closed device runs nothing."""


@dataclass(frozen=True)
class Site:
    """A target and the device on which its figures are taken; the device need not be what the target describes."""

    target: Target
    device: Device

    @property
    def differences(self) -> list[str]:
        """Why the device is not the target's hardware; empty when it is."""
        return self.target.differences(self.device.facts())

    @property
    def measurable(self) -> bool:
        """Whether time measured on the device is the target's time."""
        return not self.differences

    @property
    def elsewhere(self) -> str:
        """The differences as one text; empty when the device is the target's hardware."""
        return "; ".join(self.differences)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of figures measured on the device must know of its arithmetic."""
        return self.target.remarks(self.device.facts())

    def close(self) -> None:
        """Close the device."""
        self.device.close()
