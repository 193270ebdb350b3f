"""`targets`, `models` and `doctor` as a user sees them."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from edgekd.bench.plugins import try_plugin
from edgekd.spec import bundled_names

Cli = Callable[..., Any]


def test_targets_and_models_list_every_bundled_file(cli: Cli) -> None:
    for command in ("targets", "models"):
        done = cli(command)
        assert done.returncode == 0
        assert all(f"\n{name} " in done.stdout for name in bundled_names(command))


def test_a_target_is_shown_with_its_comments_and_where_it_stands(cli: Cli) -> None:
    done = cli("targets", "coreml")
    assert "# " in done.stdout.splitlines()[0]
    assert "this machine: unavailable, because this onnxruntime offers" in done.stdout.splitlines()[-1]


def test_a_card_is_shown_to_be_copied(cli: Cli, tmp_path: Path) -> None:
    done = cli("models", "digits")
    (tmp_path / "mine.toml").write_text(done.stdout, encoding="utf-8")
    assert cli("models", "mine.toml").returncode == 0


def test_showing_a_target_starts_nothing(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for a file, nor for a bundled target whose environment is there."""
    marker = tmp_path / "started"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    for folder in (tmp_path / "env", tmp_path / "share" / "edgekd" / "environments" / "openvino"):
        python = folder / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\ntouch {marker}\n")
        python.chmod(0o755)
    text = 'environment = "./env"\n' + cli("targets", "cpu-x86").stdout
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    for arguments in (["mine.toml"], ["openvino-cpu"], []):
        done = cli("targets", *arguments)
        assert done.returncode == 0, done.stderr
        assert not marker.exists()
    last = cli("targets", "mine.toml").stdout.splitlines()[-1]
    assert last.startswith("# this machine: measuring starts ")
    assert "env/bin/python; " in last
    assert cli("doctor").returncode == 0
    assert marker.exists()  # doctor may ask


def test_doctor_names_build_providers_and_what_is_missing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))  # no environment is installed
    monkeypatch.setattr("edgekd.devices.host.has_cuda_device", lambda: False)
    done = cli("doctor")
    assert done.returncode == 0
    assert f"onnxruntime {onnxruntime.__version__}" in done.stdout
    assert "CPUExecutionProvider" in done.stdout
    lines = {line.strip().split(" ")[0]: line for line in done.stdout.splitlines() if line.startswith("  ")}
    assert set(bundled_names("targets")) <= set(lines)
    assert "no CUDA device on this machine" in lines["cuda"]
    assert "is not installed; edgekd doctor --install openvino-cpu" in lines["openvino-cpu"]
    assert "is not installed; edgekd doctor --install wasm" in lines["wasm"]


def test_doctor_installs_what_a_target_names(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a fake npm; that the runtime works is another test's."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    for name, body in (("npm", "mkdir node_modules"), ("node", "exit 0")):
        path = tmp_path / "commands" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'commands'}:{os.environ['PATH']}")
    done = cli("doctor", "--install", "wasm")
    folder = tmp_path / "share" / "edgekd" / "environments" / "wasm"
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder}: ready; edgekd bench … --target wasm\n"
    assert "installing, this may take minutes" in done.stderr
    assert (folder / "node_modules").is_dir()
    assert "can be measured here" in cli("targets", "wasm").stdout.splitlines()[-1]

    (tmp_path / "commands" / "npm").write_text("#!/bin/sh\necho the network is down >&2\nexit 1\n")
    done = cli("doctor", "--install", "wasm")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("edgekd: npm install ")
    assert done.stderr.splitlines()[-1].endswith(": the network is down")
    assert (folder / "node_modules").is_dir()  # the one before is still there


def test_doctor_without_onnxruntime_says_how_to_get_it(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = cli("doctor")
    assert done.returncode == 0
    assert 'providers: none; measuring needs onnxruntime; pip install "edgekd[cpu]"' in done.stdout


def test_a_plugin_that_cannot_be_registered_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime_ep_nonsense.py").write_text(
        f'def get_ep_name(): return "Nonsense"\ndef get_library_path(): return {str(tmp_path / "none.so")!r}\n'
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "onnxruntime_ep_nonsense: cannot be registered: " in try_plugin("onnxruntime_ep_nonsense").text


def test_layers_of_a_card_with_their_shapes(cli: Cli) -> None:
    done = cli("models", "digits", "--layers")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["6", "ReLU", "128", "×", "4", "×", "4"] in rows  # the teacher's last map
    assert ["6", "ReLU", "16", "×", "4", "×", "4"] in rows  # and that of the smallest student
    assert cli("models", "sst2", "--layers").returncode == 0
    done = cli("models", "--layers")
    assert (done.returncode, done.stderr) == (2, "edgekd: --layers: name a card, such as bccd\n")
