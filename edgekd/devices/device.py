"""Interfaces for devices on which workers run, and the pair of a target with the device that measures its figures."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgekd.bench.records import Plan, Record
from edgekd.figures import Provenance
from edgekd.machine import Machine
from edgekd.target import Target

__all__ = ["Device", "OnProgress", "Site"]

OnProgress = Callable[[int, int], None]
"""Callback for a worker's progress; it is called as `on_progress(done, total)`."""


class Device(Protocol):
    """A place where a worker can run: this machine, or another one that is reached from it."""

    def facts(self) -> Machine:
        """Return the description of the device, which never changes."""

    def free_memory(self) -> int | None:
        """Return the bytes of memory that are available to programs; None if the device does not report them."""

    def require(self, target: Target) -> None:
        """Raise UnavailableError unless the device can run the target's provider."""

    def run(
        self, plan: Plan, model: Path, target: Target, timeout_s: float, on_progress: OnProgress | None = None
    ) -> Record:
        """Run the plan in one fresh worker process of the target's runtime, and return the worker's record.

        Raises InputError if the model or the plan's baseline cannot be loaded, ModelError if one of them crashes or
        hangs the worker.
        """

    def close(self) -> None:
        """Release what the device holds, such as a connection. A closed device cannot run plans."""


@dataclass(frozen=True)
class Site:
    """A target and the device that measures its figures; the device need not be the hardware that the target
    describes.
    """

    target: Target
    device: Device
    companion: Device | None = None
    """An emulated board of the target's hardware, for figures that the device itself cannot give."""

    @property
    def board(self) -> Device | None:
        """The emulated board on which instructions are counted: the device itself, or its companion; None without
        one.
        """
        return self.device if self.device.facts().emulator else self.companion

    stands_for: str = ""
    """The place of the device for which this one computes answers; empty if it computes its own."""
    more: tuple["Site", ...] = ()
    """Further devices of the same target, which share the timing of candidates."""

    @property
    def place(self) -> str:
        """The name of the device."""
        return self.target.device or "local"

    @property
    def all(self) -> tuple["Site", ...]:
        """This site and the further ones."""
        return (self, *self.more)

    @property
    def differences(self) -> list[str]:
        """The reasons why the device is not the target's hardware; empty if it is."""
        return self.target.differences(self.device.facts())

    @property
    def answering(self) -> "Site":
        """The target on the device that computes the answers from which accuracy is scored: this one, or this
        machine.
        """
        if self.target.accuracy_on == "device":
            return self
        from edgekd.devices.local import Local

        return Site(dataclasses.replace(self.target, accuracy_on="device"), Local(), stands_for=self.target.device)

    @property
    def provenance(self) -> Provenance:
        """How figures other than time were obtained on this device: measured, emulated or proxy."""
        if self.differences or self.stands_for:
            return "proxy"
        return "emulated" if self.device.facts().emulator else "measured"

    @property
    def proxies(self) -> list[str]:
        """The reasons why answers that are computed on this device are a proxy; empty if they are not."""
        here = [f"computed on this machine, not on {self.stands_for}"] if self.stands_for else []
        return [*self.differences, *here]

    @property
    def measurable(self) -> bool:
        """Whether time measured on the device counts as the target's time."""
        return not self.elsewhere

    @property
    def elsewhere(self) -> str:
        """The reasons why times on this device are not the target's, as one text; empty if they are."""
        emulator = self.device.facts().emulator
        return "; ".join([*self.differences, *([f"{emulator} tells no time"] if emulator else [])])

    @property
    def remarks(self) -> tuple[str, ...]:
        """Remarks on the device's arithmetic for readers of figures that were measured on it."""
        return self.target.remarks(self.device.facts())

    def close(self) -> None:
        """Close the device and the further ones."""
        self.device.close()
        for site in self.more:
            site.close()
