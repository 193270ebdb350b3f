"""Killed (−9) in every stage at a random moment, or interrupted, the same command ends as if nothing had happened."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STAGES = {
    "search": "candidates.json",
    "teaching": "teacher/teacher-attempt-1/checkpoint.pt",
    "training": "student/attempt/checkpoint.pt",
    "export": "exported/student-fp32.onnx",
    "bench": "records/teacher@cpu-x86.latency.json",
}
"""The first file of each stage; the kill comes up to half a second after it."""


TIMEOUT_S = 600
"""A bound for a machine that has other work; idle, a run takes about half a minute."""

QUICKLY = """
import edgekd.pipeline, edgekd.search.candidates, edgekd.search.material
import signal
from edgekd.bench.records import Effort
from edgekd.cli.main import main
# Whoever runs the tests in the background may have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
quick = Effort(processes=2, warmup_s=0.05, max_calls=100, max_s=0.05)
edgekd.pipeline.EFFORT = edgekd.search.candidates.EFFORT = edgekd.search.material.EFFORT = quick
main()
"""


def start(folder: Path, card: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", QUICKLY, "distill", str(card), "-t", "cpu-x86", "--out", "run"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
        process.communicate()
    return process.returncode, output


def at_work(folder: Path, card: Path, file: Path) -> "subprocess.Popen[str]":
    """The command, as soon as it has written the file, anew if it was there, or has ended."""
    before, end = written(file), time.monotonic() + TIMEOUT_S
    process = start(folder, card)
    while written(file) == before and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    return process


def written(file: Path) -> int | None:
    """When the file was written; None if it is not there."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def kill_after(process: "subprocess.Popen[str]", delay_s: float) -> bool:
    """Kill the process after the delay; False if it ended before."""
    time.sleep(delay_s)
    killed = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return killed


def interrupt(process: "subprocess.Popen[str]") -> None:
    """Ctrl-C is one line, and an exit code of its own."""
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 130, output
    assert "interrupted; `distill`, `prune`, `teach` and `sweep` go on where they stopped" in output
    assert "Traceback" not in output


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_interrupted_or_killed_in_every_stage_the_weights_are_the_same(tmp_path: Path, tiny_card: Path) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    undisturbed.mkdir()
    disturbed.mkdir()
    code, output = finish(start(undisturbed, tiny_card))
    assert code == 0, output

    seed = int(os.environ.get("EDGEKD_KILL_SEED", time.time_ns() % 1_000_000))
    moments = random.Random(seed)
    killed = []
    for stage, file in STAGES.items():
        path = disturbed / "run" / file
        if stage == "teaching":
            first = json.loads((disturbed / "run" / "candidates.json").read_text())["candidates"][0]
            interrupt(at_work(disturbed, tiny_card, path))
        if kill_after(at_work(disturbed, tiny_card, path), moments.uniform(0, 0.5)):
            killed.append(stage)
    assert killed, f"nothing was killed, seed {seed}"
    code, output = finish(start(disturbed, tiny_card))
    print(f"seed {seed}, killed in {', '.join(killed)}; then:\n{output}")
    assert code == 0, output

    # How int8 is quantised is chosen by measured time, which may differ between two runs.
    for name in ("teacher/teacher.safetensors", "student/student.safetensors", "exported/student-fp32.onnx"):
        assert sha256(disturbed / "run" / name) == sha256(undisturbed / "run" / name), f"{name}, seed {seed}"
    results = [json.loads((place / "run" / "result.json").read_text()) for place in (undisturbed, disturbed)]
    accuracies = [[model["scores"][0]["value"] for model in result["models"][:2]] for result in results]
    assert accuracies[0] == accuracies[1]
    assert json.loads((disturbed / "run" / "candidates.json").read_text())["candidates"][0] == first
    left = [path.name for path in (disturbed / "run").rglob("*") if path.name.startswith(".") and path.name != ".lock"]
    assert len(left) <= len(killed)  # at most the temporary file each kill left, never under a final name
