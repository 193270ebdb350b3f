"""One device for all targets of a command."""

import dataclasses
from collections.abc import Callable

import pytest

from edgekd.devices.device import Site
from edgekd.devices.local import connect, connect_all
from edgekd.devices.shared import Shared
from edgekd.errors import ConfigError
from edgekd.target import load_target

Place = Callable[..., Site]


def test_a_shared_device_is_closed_when_the_last_of_its_sites_closes_it(place: Place) -> None:
    target = load_target("cpu-arm")
    device = place(target).device
    shared = Shared(device, target)
    one, two = shared.hold(target), shared.hold(load_target("cpu-arm-dotprod"))
    assert one.facts() == two.facts() == device.facts()
    one.close()
    one.close()
    assert not device.closed  # type: ignore[attr-defined]
    two.close()
    assert device.closed  # type: ignore[attr-defined]


def test_two_interpreters_on_one_device_are_refused(place: Place) -> None:
    target = load_target("cpu-arm")
    shared = Shared(place(target).device, target)
    other = dataclasses.replace(target, python="/opt/python", device="ssh://pi")
    with pytest.raises(ConfigError, match=r"^device ssh://pi: targets cpu-arm and cpu-arm name different interpreters"):
        shared.hold(other)


def test_an_unknown_device_is_not_kept() -> None:
    target, shared = load_target("cpu-arm"), dict[str, Shared]()
    with pytest.raises(ConfigError, match=r"^device 'shh://pi'"):
        connect(target, "shh://pi", shared=shared)
    with pytest.raises(ConfigError, match="is named twice"):
        connect_all(target, ["ssh://pi", "ssh://pi"], shared=shared)
    assert not shared
