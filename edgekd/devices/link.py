"""The connection to a device: the user's own OpenSSH client, at its other end edgekd/devices/agent.py."""

import contextlib
import json
import os
import re
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgekd.errors import ConfigError, EdgekdError, InputError, UnavailableError, cut, shown
from edgekd.units import flat

__all__ = ["Address", "Dropped", "Link", "parse_address"]

AGENT = Path(__file__).with_name("agent.py")
CONNECT_S = 15
"""Seconds that OpenSSH may take to reach the device."""
SILENT_S = 30.0
"""A device that says nothing for so many seconds is taken to hang; the agent says something every two seconds."""
GREETING_LINES = 200
"""Lines of text that a login shell may print before the agent's first answer."""
_START = "import os; s = b''\nwhile len(s) < {n}: s += os.read(0, {n} - len(s))\nexec(compile(s, 'agent.py', 'exec'))"

Told = Callable[[dict[str, Any]], None]


class Dropped(EdgekdError):
    """The connection was lost, or the device does not answer any more. It may come back."""


@dataclass(frozen=True)
class Address:
    """Where a device is: `ssh://[user@]host[:port]`. The host may be an alias of the user's ssh configuration."""

    text: str
    host: str
    user: str = ""
    port: int | None = None


def parse_address(text: str) -> Address:
    """Parse `ssh://[user@]host[:port]`. Raises ConfigError for any other text."""
    found = re.fullmatch(r"ssh://(?:([\w.][\w.-]*)@)?([\w.][\w.-]*|\[[0-9a-fA-F:.]+\])(?::(\d{1,5}))?/?", text)
    if not found or (found[3] and not 0 < int(found[3]) < 65_536):
        raise ConfigError(f"device {shown(text)}: it should be like ssh://pi@board or ssh://pi@192.168.1.7:2222")
    return Address(text.rstrip("/"), found[2].strip("[]"), found[1] or "", int(found[3]) if found[3] else None)


def _command(address: Address, python: str) -> list[str]:
    """The command that connects and starts the agent there. It asks for no password; the user's configuration holds,
    also for host keys.
    """
    if shutil.which("ssh") is None:
        raise UnavailableError(f"device {address.text}: needs the command `ssh`; install an OpenSSH client")
    config = os.environ.get("EDGEKD_SSH_CONFIG")
    options = ["BatchMode=yes", f"ConnectTimeout={CONNECT_S}", "ServerAliveInterval=5", "ServerAliveCountMax=3"]
    # One connection serves the whole session. A connection that other programs share could be closed by them.
    options += ["ControlPath=none", "ForwardX11=no", "ForwardAgent=no", "LogLevel=ERROR"]
    start = _START.format(n=AGENT.stat().st_size)
    return [
        *("ssh", "-T", *(["-F", config] if config else [])),
        *(part for option in options for part in ("-o", option)),
        *(["-l", address.user] if address.user else []),
        *(["-p", str(address.port)] if address.port else []),
        *("--", address.host, f"exec {_quoted(python)} -c {shlex.quote(start)}"),
    ]


def _quoted(python: str) -> str:
    """The interpreter's path for the device's shell; `~/` at its start stays outside the quotes."""
    return f"~/{shlex.quote(python[2:])}" if python.startswith("~/") else shlex.quote(python)


class Link:
    """One connection with one agent. After a Dropped error it cannot be used any more."""

    def __init__(self, address: Address, python: str) -> None:
        """Connect. Raises UnavailableError if the device cannot be reached at all, Dropped if it may come back."""
        self.address = address
        self.sent_bytes = 0
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        self._rest = b""
        self._process = subprocess.Popen(
            _command(address, python),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # so that an interrupt at the keyboard does not end it before it is told to stop
        )
        try:
            self._send(AGENT.read_bytes())
            self._greet()
        except BaseException:
            self.close()
            raise

    def request(
        self,
        message: dict[str, Any],
        payload: Path | None = None,
        told: Told | None = None,
        patience_s: float = 0.0,
    ) -> dict[str, Any]:
        """Send one request, with a file after it if there is one, and return its answer.

        `told` is called with each answer in between; `patience_s` is the longest silence, by default SILENT_S. Raises
        Dropped, or InputError with the agent's reason.
        """
        size = payload.stat().st_size if payload else 0
        self._send(json.dumps({**message, "bytes": size} if payload else message).encode() + b"\n")
        if payload:
            with payload.open("rb") as file:
                while chunk := file.read(1 << 20):
                    self._send(chunk)
            self.sent_bytes += size
        while True:
            answer = self._answer(patience_s or SILENT_S)
            if "refused" in answer:
                raise InputError(f"device {self.address.text}: {flat(str(answer['refused']))}")
            if not {"beat", "progress"} & answer.keys():
                return answer
            if told:
                told(answer)

    def fetch(self, message: dict[str, Any], path: Path) -> None:
        """Send a request whose answer is a file, and write that file."""
        rest = int(self.request(message)["bytes"])
        with path.open("wb") as file:
            while rest:
                if not self._rest:
                    self._read(SILENT_S)
                chunk, self._rest = self._rest[:rest], self._rest[rest:]
                file.write(chunk)
                rest -= len(chunk)
        self._answer(SILENT_S)

    def close(self) -> None:
        """Tell the agent to stop, which ends its worker, and close the connection."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(b'{"do": "stop"}\n')
            self._process.stdin.flush()
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except OSError:
            raise self._ended() from None

    def _greet(self) -> None:
        """Wait for the agent's first answer, past what a login shell prints."""
        self._send(b'{"do": "state"}\n')
        for _ in range(GREETING_LINES):
            line = self._line(CONNECT_S + SILENT_S)
            if line.startswith(b"{"):
                with contextlib.suppress(ValueError):
                    first = json.loads(line)
                    if "refused" in first:
                        raise UnavailableError(f"device {self.address.text}: {flat(str(first['refused']))}")
                    return
        raise UnavailableError(f"device {self.address.text}: prints much text and does not start Python")

    def _answer(self, seconds: float) -> dict[str, Any]:
        line = self._line(seconds)
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise Dropped(f"device {self.address.text}: sent {shown(line.decode('utf-8', 'replace'))}") from None
        return answer

    def _line(self, seconds: float) -> bytes:
        while b"\n" not in self._rest:
            self._read(seconds)
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _read(self, seconds: float) -> None:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        ready, _, _ = select.select([descriptor], [], [], seconds)
        if not ready:
            raise Dropped(f"device {self.address.text}: has said nothing for {seconds:.0f} s")
        chunk = os.read(descriptor, 1 << 20)
        if not chunk:
            raise self._ended()
        self._rest += chunk

    def _ended(self) -> EdgekdError:
        """Return the error for the end of the ssh client, by what it printed last."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        time.sleep(0.05)  # for what it printed last
        self._errors.seek(0)
        return explain(self.address, self._process.poll(), self._errors.read().decode("utf-8", "replace"))


def explain(address: Address, code: int | None, printed: str) -> EdgekdError:
    """Return the error that one line of the ssh client's output means, with what to do about it."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    text, last = " ".join(lines).lower(), cut(flat(lines[-1]), 200) if lines else "the connection was closed"
    device, login = f"device {address.text}", f"{address.user}@{address.host}" if address.user else address.host
    port = f" -p {address.port}" if address.port else ""
    if "identification has changed" in text or "host key verification failed" in text:
        return UnavailableError(
            f"{device}: its host key is not the one in known_hosts, or none is there; check it by `ssh{port} {login}`"
        )
    if "permission denied" in text and code == 255:
        return UnavailableError(
            f"{device}: lets nobody in without a password, and edgekd asks for none; set up a key: "
            f"`ssh-copy-id{port} {login}`"
        )
    if "could not resolve" in text or "bad configuration option" in text or "too many authentication" in text:
        return UnavailableError(f"{device}: {last}")
    if code in (126, 127):
        return UnavailableError(f"{device}: has no Python to start ({last}); install python3, 3.9 or newer")
    if code not in (255, None) and code >= 0 and lines:
        return UnavailableError(f"{device}: Python ended there with exit code {code} ({last})")
    return Dropped(f"{device}: cannot be reached ({last})")
