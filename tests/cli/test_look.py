"""`targets`, `models` and `doctor` as a user sees them."""

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
        assert all(f"\n {name} " in done.stdout for name in bundled_names(command))


def test_a_target_is_shown_with_its_comments_and_where_it_stands(cli: Cli) -> None:
    done = cli("targets", "cuda")
    assert "# " in done.stdout.splitlines()[0]
    assert "this machine: unavailable, because this onnxruntime offers" in done.stdout.splitlines()[-1]


def test_a_card_is_shown_to_be_copied(cli: Cli, tmp_path: Path) -> None:
    done = cli("models", "digits")
    (tmp_path / "mine.toml").write_text(done.stdout, encoding="utf-8")
    assert cli("models", "mine.toml").returncode == 0


def test_doctor_names_build_providers_and_what_is_missing(cli: Cli) -> None:
    done = cli("doctor")
    assert done.returncode == 0
    assert f"onnxruntime {onnxruntime.__version__}" in done.stdout
    assert "CPUExecutionProvider" in done.stdout
    lines = {line.strip().split(" ")[0]: line for line in done.stdout.splitlines() if line.startswith("  ")}
    assert set(bundled_names("targets")) <= set(lines)
    assert 'pip install "edgekd[cuda]"' in lines["cuda"]


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
