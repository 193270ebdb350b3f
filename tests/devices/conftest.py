"""A board on loopback: a real sshd on a port of its own, with throw-away keys, for tests of devices."""

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from edgekd.devices.emulated import Emulated
from edgekd.devices.ssh import Ssh
from edgekd.errors import EdgekdError
from edgekd.target import load_target

SERVER = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PrintMotd no
SetEnv HOME={home} XDG_CACHE_HOME={home}/.cache EDGEKD_DEVICE_LOCK={home}/lock PATH={home}/bin:{path}
"""
CLIENT = """
Host {name}
    HostName 127.0.0.1
    Port {port}
    IdentityFile {folder}/user_key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
"""


def sessions(port: int) -> list[int]:
    """The processes of sshd that serve one connection each, found by their parent, the server on that port."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition(") ")
        except OSError:
            continue
        if "(sshd" in name and int(rest.split()[1]) == port:
            found.append(int(path.parent.name))
    return found


@dataclass
class Board:
    """A machine that is reached as `ssh://board`; its home is a folder of the test."""

    folder: Path
    port: int
    home: Path
    server: "subprocess.Popen[bytes] | None" = None
    python: str = sys.executable
    opened: list[Ssh] = field(default_factory=list)

    @property
    def cache(self) -> Path:
        """The folder that edgekd uses there."""
        return self.home / ".cache" / "edgekd"

    def start(self) -> None:
        """Start sshd and wait until it answers."""
        sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:" + os.environ["PATH"])
        assert sshd is not None
        command = [sshd, "-D", "-E", str(self.folder / "sshd.log"), "-f", str(self.folder / "sshd_config")]
        self.server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        pytest.fail(f"sshd does not listen: {(self.folder / 'sshd.log').read_text()}")

    def stop(self) -> None:
        """End sshd; connections that are open stay open."""
        if self.server is not None:
            self.server.terminate()
            self.server.wait()

    def cut(self) -> int:
        """Cut every open connection, as a cable does: both of its ends only see that it is gone. Returns how many."""
        assert self.server is not None
        found = sessions(self.server.pid)
        for pid in found:
            for child in sessions(pid):
                os.kill(child, 9)
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(pid, 9)
        return len(found)

    def processes(self) -> list[str]:
        """Command lines of agents and workers that live on the board."""
        lines = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                text = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                environment = (path.parent / "environ").read_bytes()
            except OSError:
                continue
            if f"HOME={self.home}\0".encode() in environment and "python" in text:
                lines.append(text)
        return lines

    def device(self, **values: object) -> Ssh:
        """A device on this board, which is closed after the test."""
        device = Ssh("ssh://board", self.python, **values)  # type: ignore[arg-type]
        self.opened.append(device)
        return device


def _keys(folder: Path) -> None:
    for name in ("host_key", "user_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)


@contextlib.contextmanager
def serving(factory: pytest.TempPathFactory, name: str) -> Iterator[Board]:
    """A server of its own for the board of that name; the test is skipped where OpenSSH is not installed."""
    where = "/usr/sbin:/usr/local/sbin:" + os.environ["PATH"]
    missing = [tool for tool in ("sshd", "ssh", "ssh-keygen") if shutil.which(tool, path=where) is None]
    if missing or not Path("/proc").is_dir():
        pytest.skip(f"needs {', '.join(missing) or '/proc'}; install openssh-server and openssh-client")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(parents=True, exist_ok=True)  # sshd refuses to start as root without it
    folder, home = factory.mktemp("sshd"), factory.mktemp(name)
    _keys(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    values = {"name": name, "port": port, "folder": folder, "home": home, "path": os.environ["PATH"]}
    (folder / "sshd_config").write_text(SERVER.format(**values))
    (folder / "ssh_config").write_text(CLIENT.format(**values))
    host_key = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    board = Board(folder, port, home)
    board.start()
    yield board
    board.stop()


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """The server, for all tests of one process."""
    with serving(tmp_path_factory, "board") as board:
        yield board


@pytest.fixture
def board(sshd: Board, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    """A board with an empty home, which `ssh board` reaches through a private configuration."""
    for entry in sshd.home.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    monkeypatch.setenv("EDGEKD_SSH_CONFIG", str(sshd.folder / "ssh_config"))
    monkeypatch.delenv("EDGEKD_DEVICE", raising=False)
    yield sshd
    for device in sshd.opened:
        device.close()
    sshd.opened.clear()
    sshd.python = sys.executable


@pytest.fixture
def emulated_board(board: Board) -> Board:
    """A board whose Python is an emulated one, so that agent and workers run on another architecture than the test."""
    core = Emulated("qemu://cortex-a72")
    try:
        core.require(load_target("cpu-arm"))
    except EdgekdError as error:
        pytest.skip(str(error))
    python = board.home / "python"
    command = " ".join(shlex.quote(word) for word in core.command() if word != "-I")
    python.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    python.chmod(0o755)
    board.python = str(python)
    return board


@pytest.fixture
def second_board(
    board: Board, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Board]:
    """Another board, beside the first one, which `ssh board2` reaches."""
    with serving(tmp_path_factory, "board2") as second:
        both = second.folder / "both"
        both.write_text((board.folder / "ssh_config").read_text() + (second.folder / "ssh_config").read_text())
        monkeypatch.setenv("EDGEKD_SSH_CONFIG", str(both))
        yield second


Waiting = Callable[[Callable[[], object]], None]


@pytest.fixture
def until() -> Waiting:
    """Wait until a condition holds; fail after ten seconds."""

    def wait(condition: Callable[[], object]) -> None:
        for _ in range(400):
            if condition():
                return
            time.sleep(0.025)
        pytest.fail("it did not come true within ten seconds")

    return wait


@pytest.fixture(scope="session")
def tiny_model() -> Callable[[Path, int], Path]:
    """Write a network of one matrix product: rows of eight numbers to three, with weights drawn by a seed."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def write(file: Path, seed: int) -> Path:
        weights = np.random.Generator(np.random.PCG64(seed)).standard_normal((8, 3)).astype(np.float32)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
            [numpy_helper.from_array(weights, "w")],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), file)
        return file

    return write
