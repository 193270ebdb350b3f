"""Temporary files: in one folder a process, gone with it; what is told where there is no room for them."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekd import scratch as module
from edgekd.errors import InputError, UnavailableError
from edgekd.scratch import require_scratch, scratch

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of temporary files that this process has not used yet."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    module._process_folder.cache_clear()
    yield folder
    module._process_folder.cache_clear()


def a_process(body: str) -> "subprocess.Popen[str]":
    text = f"import os, signal, time; from edgekd.scratch import scratch\nwith scratch() as folder:\n    {body}\n"
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)


def test_all_is_in_one_folder_that_goes_with_the_process(temporary: Path) -> None:
    with scratch() as one, scratch() as other:
        assert one != other
        assert one.parent == other.parent
        assert one.parent.name.startswith(f"edgekd-{os.getpid()}-")
    assert not one.exists()
    with a_process("(folder / 'file').touch()") as other_process:
        assert other_process.wait() == 0
    assert len(list(temporary.iterdir())) == 1  # this process's own


def test_what_a_killed_process_left_is_removed_by_the_next_one(temporary: Path) -> None:
    with a_process("os.kill(os.getpid(), signal.SIGKILL)") as killed:
        assert killed.wait() == -signal.SIGKILL
    with a_process("print('ready', flush=True); time.sleep(60)") as living:
        assert living.stdout is not None
        living.stdout.readline()
        strange = [temporary / "edgekd-mine", temporary / "edgekd-999999999-nolock"]
        for folder in strange:
            folder.mkdir()
        (left,) = temporary.glob(f"edgekd-{living.pid}-*")
        assert not list(temporary.glob(f"edgekd-{killed.pid}-*"))  # the second one did it
        require_scratch()
        assert left.exists()
        assert all(folder.exists() for folder in strange)  # neither is surely edgekd's
        living.kill()


def test_one_in_another_container_is_known_by_its_lock(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with a_process("print('ready', flush=True); time.sleep(60)") as living:
        assert living.stdout is not None
        living.stdout.readline()
        monkeypatch.setattr(module, "_lives", lambda pid: False)
        require_scratch()
        assert list(temporary.glob(f"edgekd-{living.pid}-*"))
        living.kill()


def full(monkeypatch: pytest.MonkeyPatch, free: int, nodes: int = 1) -> None:
    status = SimpleNamespace(f_bavail=free, f_frsize=1, f_files=10, f_favail=nodes)
    monkeypatch.setattr(os, "statvfs", lambda folder: status)


def test_too_little_room_is_told_first(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_scratch()
    full(monkeypatch, 5_000_000)
    with pytest.raises(UnavailableError) as caught:
        require_scratch()
    assert str(caught.value) == (
        f"{temporary}: the folder of temporary files has 5.0 MB free and 16 MB are needed; free some, or set TMPDIR to "
        "another folder"
    )
    full(monkeypatch, 10**9, nodes=0)
    with pytest.raises(UnavailableError, match=r"has 0\.0 MB free"):
        require_scratch()


def test_an_error_on_a_full_disk_is_one_of_the_disk(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="Wire format was corrupt"), scratch():
        raise InputError("Wire format was corrupt")
    full(monkeypatch, 4_096)
    with pytest.raises(UnavailableError, match=f"^{temporary}: the folder of temporary files is full"), scratch():
        raise InputError("Wire format was corrupt")


def test_no_folder_at_all_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(UnavailableError, match=r"^no folder of temporary files can be written.*set TMPDIR"):
        require_scratch()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/proc")
    with pytest.raises(UnavailableError, match=r"^/proc: temporary files cannot be written there \(.+\); set TMPDIR"):
        require_scratch()


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "m.onnx", "-t", "cpu-x86"],
        ["check", "m.onnx", "-t", "cpu-x86", "--budget", "size_kb=1"],
        ["baseline", "accept", "m.onnx", "-t", "cpu-x86"],
        ["distill", "-t", "cpu-x86"],
    ],
)
def test_commands_say_it_before_they_begin(cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr("edgekd.devices.local.run_worker", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr("edgekd.pipeline.distill_all", lambda *_: pytest.fail("begun"))
    full(monkeypatch, 5_000_000)
    done = cli(*arguments)
    assert done.returncode == 2
    assert "the folder of temporary files has 5.0 MB free" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("where", ["EDGEKD_CACHE_HOME", "XDG_CACHE_HOME", "HOME"])
def test_a_cache_that_cannot_be_written_is_told_first(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    begun: list[bool] = []

    def begin(*rest: Any) -> None:
        begun.append(True)
        raise InputError("begun")

    monkeypatch.setattr("edgekd.pipeline.distill_all", begin)
    for name in ("EDGEKD_CACHE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv(where, str(tmp_path / "file"))
    done = cli("distill", "-t", "cpu-x86")
    assert (done.returncode, begun) == (2, [])
    assert "the cache of the teacher's outputs cannot be written there (Not a directory)" in done.stderr
    assert done.stderr.endswith("set EDGEKD_CACHE_HOME to another folder, or use --online\n")
    assert "begun" in cli("distill", "-t", "cpu-x86", "--online").stderr
