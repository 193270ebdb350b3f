"""`edgekd devices` on this machine, and what it writes; tests/devices has the tests by ssh."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekd.cli.devices import target_text
from edgekd.devices.local import Local
from edgekd.machine import Machine
from edgekd.target import load_target

Cli = Callable[..., Any]

PI = Machine("aarch64", "", frozenset({"fp", "asimd", "crc32"}), "0xd08")
TOLD: dict[str, Any] = {
    "board": "Raspberry Pi 4 Model B Rev 1.4",
    "command": "/home/pi/py/bin/python",
    "cores": 4,
    "memory": 3_980_000_000,
}


def test_this_machine_is_described_and_a_target_file_written_for_it(cli: Cli, tmp_path: Path) -> None:
    done = cli("devices", "--write", "mine.toml")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert lines["architecture"] == Local().facts().architecture
    assert "CPUExecutionProvider" in lines["providers"]
    assert done.stdout.endswith("wrote mine.toml; now: edgekd distill --target mine.toml\n")
    assert load_target("mine.toml").differences(Local().facts()) == []
    again = cli("devices", "--write", "mine.toml")
    assert again.returncode == 2
    assert again.stderr == "edgekd: --write mine.toml: is there already; name another file, or move it away\n"


def test_a_device_that_is_not_the_target_fails(cli: Cli) -> None:
    foreign = "cpu-arm" if Local().facts().architecture == "x86_64" else "cpu-x86"
    done = cli("devices", "--target", foreign)
    assert done.returncode == 1
    assert f"  {foreign}: this machine is " in done.stdout


def test_a_place_that_is_no_device_is_told(cli: Cli) -> None:
    done = cli("devices", "board")
    assert done.returncode == 2
    assert done.stderr == "edgekd: device 'board': it should be local or like ssh://pi@board\n"


def test_the_target_of_a_board_is_the_bundled_one(tmp_path: Path) -> None:
    (tmp_path / "pi.toml").write_text(target_text("ssh://pi@board", TOLD, PI), encoding="utf-8")
    target, bundled = load_target(str(tmp_path / "pi.toml")), load_target("cpu-arm")
    assert (target.device, target.python) == ("ssh://pi@board", "/home/pi/py/bin/python")
    assert target.title == "Raspberry Pi 4 Model B Rev 1.4, one thread"
    assert (target.hardware.architecture, target.hardware.cpu_part) == ("aarch64", bundled.hardware.cpu_part)
    assert target.quantization == bundled.quantization
    assert target.limits.peak_memory_mb == 2786
    assert target.differences(PI) == []
    assert target.differences(Machine("aarch64", "", PI.features | {"asimddp"}, "0xd0b")) != []
