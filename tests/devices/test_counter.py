"""The plugin that counts instructions; tests that compile it are skipped where there is no C compiler."""

import re
import shutil
from pathlib import Path

import pytest

from edgekd.bench import worker
from edgekd.devices import counter
from edgekd.devices.counter import MARK, make_counter, plugin_option, read_counts
from edgekd.errors import ModelError, UnavailableError


def test_plugin_worker_and_trial_agree_on_the_mark() -> None:
    (told,) = re.findall(r"#define MARK (\S+)", counter.SOURCE.read_text(encoding="utf-8"))
    assert int(told, 16) == MARK == worker.MARK


def test_without_a_compiler_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UnavailableError, match=r"^instructions cannot be counted: needs a C compiler; `apt-get install"
    ):
        make_counter(tmp_path, lambda *_: ["true"])


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_qemu_without_plugins_is_told(tmp_path: Path) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\necho 'qemu: unknown option plugin' >&2\nexit 1\n")
    qemu.chmod(0o755)
    with pytest.raises(UnavailableError, match=r"takes no plugins: qemu: unknown option plugin$"):
        make_counter(tmp_path, lambda *options: [str(qemu), *options])
    assert [entry.name for entry in tmp_path.iterdir()] == ["qemu"]


def test_a_comma_in_a_path_is_written_twice() -> None:
    assert plugin_option(Path("/a,b/c.so"), Path("/d,e")) == "/a,,b/c.so,out=/d,,e"


@pytest.mark.parametrize("text", ["", "12\n", "12\nx\n"])
def test_counts_that_say_nothing_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "counts").write_text(text)
    with pytest.raises(ModelError, match=r"^m\.onnx: its instructions were not counted"):
        read_counts(tmp_path / "counts", Path("m.onnx"))
    (tmp_path / "counts").write_text("12\n19\n")
    assert read_counts(tmp_path / "counts", Path("m.onnx")) == (12, 19)
