"""Environments: where they are, what starts a worker there, how they are made, and what is said when one is missing."""

import dataclasses
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edgekd.devices import environments, host
from edgekd.devices.environments import (
    RECIPES,
    EnvironmentRecipe,
    Runtime,
    available_providers,
    environment_folder,
    install,
    providers_of,
)
from edgekd.devices.local import require_runtime, runtime_of
from edgekd.errors import ConfigError, UnavailableError
from edgekd.machine import Machine
from edgekd.target import Provider, Target, load_target


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder of the user."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    return tmp_path / "share" / "edgekd" / "environments"


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH, and the shell's own tools."""
    folder = tmp_path / "commands"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(
        "edgekd.devices.environments.shutil.which",
        lambda name: str(folder / name) if (folder / name).exists() else None,
    )
    return folder


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def target(environment: str = "", provider: str = "CPUExecutionProvider", name: str = "cpu-x86") -> Target:
    return dataclasses.replace(load_target(name), environment=environment, provider=Provider(name=provider))


# --- where ---


def test_a_name_is_in_the_data_folder(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment_folder("openvino") == data / "openvino"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert environment_folder("openvino") == Path("/home/somebody/.local/share/edgekd/environments/openvino")


def test_a_path_is_where_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert environment_folder("/opt/venv", "/etc/board.toml") == Path("/opt/venv")
    assert environment_folder("./venv", "/etc/board.toml") == Path("/etc/venv")
    assert environment_folder("venvs/openvino", "boards/a.toml") == Path("boards/venvs/openvino")
    assert environment_folder("~/venv", "/etc/board.toml") == Path("/home/somebody/venv")


def test_every_bundled_environment_can_be_made() -> None:
    named = {load_target(name).environment for name in ("openvino-cpu", "cuda", "wasm")}
    assert named == set(RECIPES)


# --- what starts a worker ---


def test_without_an_environment_it_is_this_python() -> None:
    runtime = runtime_of(target())
    assert (runtime.kind, runtime.command[0]) == ("python", sys.executable)
    assert Path(runtime.command[-1]).name == "worker.py"
    assert providers_of(runtime) == available_providers()


def test_an_installed_environment_has_a_python_or_modules(data: Path, commands: Path) -> None:
    with_python = target("openvino", "OpenVINOExecutionProvider")
    python = script(data / "openvino" / "bin" / "python", "exit 1")
    assert runtime_of(with_python).command[:2] == (str(python), "-I")

    (data / "wasm" / "node_modules").mkdir(parents=True)
    wasm = target("wasm", "wasm", "wasm")
    with pytest.raises(UnavailableError, match=r"^target wasm: needs Node.js \(the command `node`\)"):
        runtime_of(wasm)
    node = script(commands / "node", "exit 0")
    runtime = runtime_of(wasm)
    assert (runtime.kind, runtime.command[0], runtime.command[2:]) == (
        "node",
        str(node),
        ("--modules", str(data / "wasm")),
    )
    assert Path(runtime.command[1]).name == "worker.mjs"
    assert providers_of(runtime) == ["wasm"]
    require_runtime(wasm)


def test_this_python_serves_if_it_has_the_provider() -> None:
    assert runtime_of(target("openvino")).command[0] == sys.executable  # not installed, but CPU is all it needs
    require_runtime(target("openvino"))


def test_an_environment_that_is_not_installed_is_told_with_the_command() -> None:
    with pytest.raises(UnavailableError) as caught:
        runtime_of(load_target("openvino-cpu"))
    assert str(caught.value) == (
        "target openvino-cpu: its environment 'openvino' is not installed; edgekd doctor --install openvino-cpu"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("openvno", "did you mean 'openvino'? Known: cuda, openvino, wasm."),
        ("./nowhere", "Known: cuda, openvino, wasm."),
    ],
)
def test_an_environment_nobody_can_make_is_told(name: str, said: str) -> None:
    given = target(name, "OpenVINOExecutionProvider")
    with pytest.raises(UnavailableError) as caught:
        runtime_of(given)
    assert str(caught.value) == (
        f"{given.file}: environment: got {name!r}, which is neither a folder with bin/python or node_modules "
        f"nor one that edgekd can make; {said}"
    )


def test_wasm_without_an_environment_is_told() -> None:
    with pytest.raises(ConfigError, match=r"environment: provider wasm runs in Node; write environment = 'wasm'$"):
        runtime_of(target("", "wasm", "wasm"))


# --- providers ---


def test_providers_of_this_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "CPUExecutionProvider" in available_providers()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnavailableError, match=r'^measuring needs onnxruntime; pip install "edgekd\[cpu\]"$'):
        available_providers()
    with pytest.raises(UnavailableError, match=r"is not installed; edgekd doctor --install"):
        runtime_of(load_target("openvino-cpu"))


def test_another_python_is_asked_for_its_providers(tmp_path: Path) -> None:
    """The real Python behind a link: what it says is what is here."""
    python = script(tmp_path / "bin" / "python", f'shift; exec {sys.executable} -P "$@"')
    assert providers_of(Runtime("python", (str(python),))) == available_providers()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo No module named onnxruntime >&2; exit 1", "No module named onnxruntime"),
        ("echo not json; echo odd >&2", "odd"),
        ("exit 0", "list index out of range"),
    ],
)
def test_a_python_without_onnxruntime_is_told(tmp_path: Path, body: str, said: str) -> None:
    python = script(tmp_path / "bin" / "python", body)
    with pytest.raises(UnavailableError) as caught:
        require_runtime(target(str(tmp_path)))
    assert str(caught.value) == f"{python}: has no onnxruntime that works: {said}"


def test_a_python_that_is_no_program_is_told(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("nothing")
    with pytest.raises(UnavailableError, match=r"has no onnxruntime that works: .*Permission denied"):
        require_runtime(target(str(tmp_path)))


def test_an_environment_of_the_wrong_kind_is_told(tmp_path: Path) -> None:
    script(tmp_path / "bin" / "python", """echo '["CPUExecutionProvider"]'""")
    with pytest.raises(UnavailableError) as caught:
        require_runtime(target(str(tmp_path), "OpenVINOExecutionProvider"))
    assert "this onnxruntime offers CPUExecutionProvider and the target needs OpenVINOExecutionProvider" in str(
        caught.value
    )


@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_no_cuda_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "has_cuda_device", lambda: False)
    with pytest.raises(UnavailableError, match=rf"^target {name}: no CUDA device on this machine"):
        require_runtime(load_target(name))
    monkeypatch.setattr(host, "has_cuda_device", lambda: True)
    with pytest.raises(UnavailableError, match=r"is not installed|unavailable, because"):
        require_runtime(load_target(name))


@pytest.mark.parametrize("device", ["nvidia0", "nvhost-gpu", "dxg"])
def test_a_cuda_device_is_its_file(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "machine", lambda: Machine("x86_64", "a PC", frozenset(), "", "Linux"))
    assert not host.has_cuda_device(tmp_path)
    (tmp_path / "nvidiactl").touch()
    assert not host.has_cuda_device(tmp_path)
    (tmp_path / device).touch()
    assert host.has_cuda_device(tmp_path)


# --- making one ---


def fake_venv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pip: str) -> None:
    """A Python whose venv module makes a folder with an interpreter that only knows `pip`."""
    body = f'mkdir -p "$4/bin"\nprintf "%s\\n" "#!/bin/sh" {pip!r} > "$4/bin/python"\nchmod +x "$4/bin/python"'
    monkeypatch.setattr(sys, "executable", str(script(tmp_path / "python", f'[ "$2" = venv ] || exit 3\n{body}')))


def test_a_python_environment_is_made_whole(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_venv(monkeypatch, tmp_path, f'echo "$@" > {tmp_path}/arguments')
    assert install(load_target("openvino-cpu")) == data / "openvino"
    assert (data / "openvino" / "bin" / "python").exists()
    arguments = (tmp_path / "arguments").read_text()
    assert arguments.startswith("-m pip install --quiet ")
    assert all(package in arguments for package in RECIPES["openvino"].packages)
    assert [path.name for path in data.iterdir()] == ["openvino"]
    # Again: it takes the old one's place.
    (data / "openvino" / "old").touch()
    install(load_target("openvino-cpu"))
    assert not (data / "openvino" / "old").exists()


def test_a_step_that_fails_leaves_nothing_behind(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_venv(monkeypatch, tmp_path, "echo trying >&2; echo no such package >&2; exit 1")
    with pytest.raises(UnavailableError, match=r"-m pip install .+: no such package$") as caught:
        install(load_target("openvino-cpu"))
    assert "\n" not in str(caught.value)
    assert list(data.iterdir()) == []
    # And what was there before stays.
    (data / "openvino" / "bin").mkdir(parents=True)
    with pytest.raises(UnavailableError):
        install(load_target("openvino-cpu"))
    assert [path.name for path in data.iterdir()] == ["openvino"]
    monkeypatch.setattr(sys, "executable", str(script(tmp_path / "python", "exit 4")))
    with pytest.raises(UnavailableError, match=r"-m venv .+: no message$"):
        install(load_target("openvino-cpu"))


def test_node_modules_are_installed_without_scripts(data: Path, commands: Path, tmp_path: Path) -> None:
    script(commands / "npm", f'echo "$@" > {tmp_path}/arguments; [ -f package.json ] && mkdir node_modules')
    assert install(load_target("wasm")) == data / "wasm"
    assert (data / "wasm" / "node_modules").is_dir()
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments[0] == "install"
    assert "--ignore-scripts" in arguments
    assert arguments[-1].startswith("onnxruntime-web@")

    script(commands / "npm", "echo network is down; exit 1")
    with pytest.raises(UnavailableError, match=r"^npm install .+: network is down$"):
        install(load_target("wasm"))
    assert (data / "wasm" / "node_modules").is_dir()
    assert [path.name for path in data.iterdir()] == ["wasm"]


def test_without_npm_it_is_told(data: Path, commands: Path) -> None:
    with pytest.raises(UnavailableError, match=r"^target wasm: needs Node.js and npm; install them$"):
        install(load_target("wasm"))
    assert list(data.iterdir()) == []


def test_a_step_that_hangs_is_stopped(data: Path, commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "INSTALL_LIMIT_S", 0.2)
    script(commands / "npm", "exec sleep 30")
    with pytest.raises(UnavailableError, match=r"^npm install .+: still running after 0.2 s; stopped$"):
        install(load_target("wasm"))
    assert list(data.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ("", "target cpu-x86: needs no environment of its own; Known: cuda, openvino, wasm."),
        ("./mine", "target cpu-x86: names './mine', which edgekd cannot make; Known: cuda, openvino, wasm."),
    ],
)
def test_what_edgekd_cannot_make_is_told(environment: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        install(target(environment))
    assert str(caught.value) == said


def test_a_real_environment_needs_no_more_than_its_folder(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A venv really made, moved into place and started; without packages, for there may be no network."""
    steps: list[list[str]] = []
    step = environments._step

    def without_pip(command: list[str], *rest: object) -> None:
        steps.append(command)
        if "venv" in command:
            step([*command, "--without-pip"])

    monkeypatch.setattr(environments, "_step", without_pip)
    monkeypatch.setitem(RECIPES, "openvino", EnvironmentRecipe("python", ("nothing",)))
    python = install(load_target("openvino-cpu")) / "bin" / "python"
    done = subprocess.run([python, "-I", "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True)
    assert os.path.realpath(done.stdout.strip()) == os.path.realpath(data / "openvino"), done.stderr
    assert [command[1:3] for command in steps] == [["-m", "venv"], ["-m", "pip"]]
