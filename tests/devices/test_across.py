"""A whole run across architectures: the board behind a real sshd on loopback is the emulated aarch64 system.

Skipped where sshd, qemu or the emulated system is missing.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekd.bench.records import Effort

FEW = Effort(
    processes=1, min_processes=1, warmup_s=0.0, min_calls=3, max_calls=3, max_s=0.0, placement=False, memory=False
)
"""An emulated process needs seconds to start, and its times mean nothing."""


@pytest.mark.slow
def test_distill_measures_on_a_board_of_another_architecture(
    emulated_board: Any, cli: Callable[..., Any], tiny_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekd.pipeline.EFFORT", FEW)
    monkeypatch.setattr("edgekd.search.candidates.EFFORT", FEW)
    asked = [
        *("distill", tiny_card, "--target", "cpu-arm", "--device", "ssh://board"),
        *("--set", f"target.python='{emulated_board.python}'", "--set", "target.precisions=['fp32']"),
        *("--set", "target.limits={}", "--set", "recipe.epochs=4", "--set", "teacher.training.epochs=4"),
        *("--budget", "latency_p50_ms=100000", "--budget", "min_accuracy=0.2"),
    ]
    done = cli(*asked)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "tiny@cpu-arm"
    candidates = json.loads((run / "candidates.json").read_text())["candidates"]
    assert len(candidates) == 2
    for candidate in candidates:
        assert candidate["precisions"]["fp32"]["latency_p50_ms"]["provenance"] == "measured"
    result = json.loads((run / "result.json").read_text())
    assert result["verdict"] == "pass"
    for model in result["models"]:
        assert (model["fingerprint"]["architecture"], model["fingerprint"]["system"]) == ("aarch64", "Linux")
        assert model["provenance"]["latency_p50_ms"] == model["scores"][0]["provenance"] == "measured"
    assert emulated_board.processes() == []
    again = cli(*asked)
    assert (again.returncode, "already done" in again.stdout) == (0, True)
