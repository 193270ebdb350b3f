"""`bench` of bare files as a user sees it; of a run, see tests/test_pipeline.py."""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekd.bench.records import QUICK, THOROUGH, Effort
from edgekd.cli.measuring import make_asked
from edgekd.errors import ConfigError

Cli = Callable[..., Any]

HERE = """\
title = "this machine"
precisions = ["fp32"]
[hardware]
architecture = "{architecture}"
[provider]
name = "CPUExecutionProvider"
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A target that any machine is."""
    architecture = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    path = tmp_path / "here.toml"
    path.write_text(HERE.format(architecture=architecture))
    return path


def with_interpreter(target: Path, body: str) -> None:
    """Put a script in place of the target's Python; what it does not end goes on to the real one."""
    path = target.parent / "environment" / "bin" / "python"
    path.parent.mkdir(parents=True)
    path.write_text(f'#!/bin/sh\n{body}\nshift\nexec {sys.executable} -P "$@"\n')
    path.chmod(0o755)
    target.write_text('environment = "./environment"\n' + target.read_text())


@pytest.fixture(autouse=True)
def models(tmp_path: Path) -> None:
    """`tiny.onnx` and `other.onnx`: four pixels to four classes, the pixels as they are."""
    for name in ("tiny", "other"):
        nodes = [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["float"], ["logits"], name="the-last"),
        ]
        images = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 2, 2, 1])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])
        save(tmp_path / f"{name}.onnx", helper.make_graph(nodes, name, [images], [logits]))


def save(path: Path, graph: onnx.GraphProto) -> None:
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def images(classes: list[int]) -> NDArray[np.uint8]:
    return (200 * np.eye(4, dtype=np.uint8)[classes]).reshape(-1, 2, 2, 1)


def figures(path: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_text())
    assert content["schema_version"] == 1
    return content["models"]  # type: ignore[no-any-return]


def test_a_bare_file(cli: Cli, here: Path, tmp_path: Path) -> None:
    done = cli("bench", "tiny.onnx", "-t", here, "--quick", "--json", "figures.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "here: this machine" in done.stdout
    for row in ("file size", "latency p50", "latency p95", "first call", "load time", "where it ran"):
        assert any(line.strip().startswith(row) for line in done.stdout.splitlines()), row
    assert "note: a bare file brings no data: accuracy unknown" in done.stdout
    assert "seeded random inputs, for no data was given" in done.stdout
    assert "no counter here" in done.stdout or "energy per call" in done.stdout
    (model,) = figures(tmp_path / "figures.json")
    assert (model["target"], model["name"], model["file"]) == ("here", "tiny.onnx", "tiny.onnx")
    assert model["size_bytes"] == (tmp_path / "tiny.onnx").stat().st_size
    low, high = model["intervals"]["latency_p50_ms"]
    assert low <= model["latency_p50_ms"] <= high
    assert model["provenance"]["latency_p50_ms"] == "measured"
    assert model["placement"]["nodes"] == {"CPUExecutionProvider": 2}
    command = json.loads((tmp_path / "figures.json").read_text())["command"]
    assert command == f"edgekd bench tiny.onnx -t {here} --quick --json figures.json"
    assert not (tmp_path / "bench").exists()


def test_a_bare_file_with_data(cli: Cli, here: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", inputs=images([0, 1, 2, 3]), labels=np.array([0, 1, 2, 2]))
    done = cli("bench", "tiny.onnx", "-t", here, "--quick", "--data", "set.npz", "--json", "figures.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "75.00 %" in done.stdout
    assert "accuracy on set.npz, 4 inputs" in done.stdout
    assert "random" not in done.stdout
    (model,) = figures(tmp_path / "figures.json")
    assert (model["scores"][0]["value"], model["details"]["recall"]) == (0.75, [1.0, 1.0, 0.5, None])

    np.savez(tmp_path / "set.npz", inputs=images([0, 1]), labels=np.array([0, 9]))
    done = cli("bench", "tiny.onnx", "-t", here, "--quick", "--data", "set.npz")
    assert done.returncode == 2
    assert done.stderr == "edgekd: set.npz: labels go up to 9, and tiny.onnx tells 4 classes apart\n"


def test_the_costliest_nodes_and_sessions_side_by_side(cli: Cli, here: Path) -> None:
    done = cli("bench", "tiny.onnx", "-t", here, "--quick", "--profile", "--parallel", "2")
    assert done.returncode == 0, done.stderr
    assert "tiny.onnx: the costliest nodes (profiled, not timed)" in done.stdout
    assert "the-last" in done.stdout
    assert "inputs per second, 1 session" in done.stdout
    assert "inputs per second, 2 sessions" in done.stdout


def test_several_targets_of_which_one_cannot_run_here(
    cli: Cli, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekd.devices.host.has_cuda_device", lambda: False)
    elsewhere = tmp_path / "board.toml"
    strange = "aarch64" if "x86_64" in here.read_text() else "x86_64"
    elsewhere.write_text(HERE.format(architecture=strange).replace("this machine", "a board"))
    done = cli(
        "bench", "tiny.onnx", "-t", "cuda", "-t", here, "-t", elsewhere, "--quick", "--json", "figures.json"
    )  # fmt: skip
    assert done.returncode == 2
    reason = "target cuda: no CUDA device on this machine (no /dev/nvidia0 or the like)"
    assert done.stderr.splitlines() == [f"edgekd: {reason}"]
    assert done.stdout.count("Models on several targets") == 1
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert "measured" in rows["here"]
    assert "tiny.onnx" in rows["board"] and "unknown" in rows["board"]
    assert "cannot run here" in done.stdout
    assert f"cuda: {reason}" in done.stdout
    assert [model["target"] for model in figures(tmp_path / "figures.json")] == ["here", "board"]
    absent = json.loads((tmp_path / "figures.json").read_text())["absent"]
    assert absent == [{"target": "cuda", "reason": reason}]
    assert "not yet stable" not in done.stdout.partition("board:")[2]  # nothing was timed for it


def test_a_model_that_crashes_keeps_the_others(cli: Cli, here: Path, tmp_path: Path) -> None:
    with_interpreter(here, 'case "$6" in *tiny*) echo illegal instruction >&2; kill -ILL $$;; esac')
    done = cli("bench", "tiny.onnx", "other.onnx", "-t", here, "--quick", "--json", "figures.json")
    assert done.returncode == 1
    assert done.stderr == (
        "edgekd: tiny.onnx: the worker crashed with SIGILL while it ran the model (illegal instruction)\n"
    )
    assert [model["name"] for model in figures(tmp_path / "figures.json")] == ["other.onnx"]
    assert "latency p50" in done.stdout


def test_a_model_that_hangs_is_stopped(cli: Cli, here: Path, tmp_path: Path) -> None:
    with_interpreter(here, 'case "$6" in *tiny*) exec sleep 60;; esac')
    done = cli("bench", "tiny.onnx", "-t", here, "--quick", "--timeout", "1", "--json", "figures.json")
    assert done.returncode == 1
    assert done.stderr == "edgekd: tiny.onnx: still running after 1 s (exit 124); stopped\n"
    assert figures(tmp_path / "figures.json") == []


def test_a_model_that_wants_more_memory_than_allowed(cli: Cli, here: Path, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Expand", ["x", "shape"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["logits"], keepdims=0),
    ]
    shape = numpy_helper.from_array(np.array([300_000_000, 1], np.int64), "shape")  # 1.2 GB
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [])
    save(tmp_path / "huge.onnx", helper.make_graph(nodes, "huge", [given], [logits], [shape]))
    done = cli("bench", "huge.onnx", "tiny.onnx", "-t", here, "--quick", "--memory-limit", "1000")
    assert done.returncode == 1
    assert done.stderr == ("edgekd: huge.onnx: out of memory, with a limit of 1000 MB (the model fails when it runs)\n")
    assert "tiny.onnx" in done.stdout


def test_a_runtime_without_onnxruntime_is_told(cli: Cli, here: Path) -> None:
    with_interpreter(here, 'echo "ModuleNotFoundError: No module named onnxruntime" >&2; exit 1')
    done = cli("bench", "tiny.onnx", "-t", here, "--quick")
    assert done.returncode == 2
    assert "has no onnxruntime that works: ModuleNotFoundError: No module named onnxruntime" in done.stderr


# --- options ---


def asked(**values: Any) -> Any:
    plain: dict[str, Any] = {
        "quick": False, "thorough": False, "profile": False, "split": "test", "data": None, "parallel": 1,
        "timeout_s": 300.0, "memory_limit_mb": None,
    }  # fmt: skip
    return make_asked(**plain | values)


def test_options_become_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked().effort == Effort()
    assert asked(quick=True).effort == QUICK
    assert asked(thorough=True).effort == THOROUGH
    given = asked(profile=True, parallel=3, timeout_s=7.0, memory_limit_mb=50.0, split="val", data=Path("x"))
    assert (given.effort.costliest, given.effort.sessions, given.effort.timeout_s) == (10, 3, 7.0)
    assert (given.effort.memory_limit_mb, given.split, given.data) == (50.0, "val", Path("x"))
    monkeypatch.setattr(sys, "argv", ["/usr/bin/edgekd", "bench", "my run", "-t", "cpu-x86"])
    assert asked().command == "edgekd bench 'my run' -t cpu-x86"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"quick": True, "thorough": True}, r"^--quick and --thorough: give one of them$"),
        ({"split": "nonsense"}, r"^--split 'nonsense': Known: test, val.$"),
        ({"split": "tset"}, r"^--split 'tset': did you mean 'test'\? Known: test, val.$"),
    ],
)
def test_options_that_do_not_fit_are_told(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        asked(**values)


def test_two_targets_of_one_name_are_refused(cli: Callable[..., Any], tmp_path: Path) -> None:
    done = cli("bench", "model.onnx", "--target", "cpu-x86", "--target", "boards/cpu-x86.toml")
    assert done.returncode == 2
    assert done.stderr == "edgekd: --target: 'cpu-x86' is given more than once; rename one of the files\n"


@pytest.mark.parametrize("at_once", [False, True])
def test_a_cancelled_bench_leaves_no_worker(tmp_path: Path, at_once: bool) -> None:
    """SIGTERM, as a CI system sends it, while a worker hangs or in the moment in which it is started."""
    target = tmp_path / "slow.toml"
    environment = tmp_path / "environment" / "bin"
    environment.mkdir(parents=True)
    python = environment / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *get_available_providers*) echo \'["CPUExecutionProvider"]\';;\n'
        f"*) echo $$ > {tmp_path}/pid; {'kill -TERM $PPID; ' if at_once else ''}exec sleep 60;; esac\n"
    )
    python.chmod(0o755)
    machine = platform.machine()
    target.write_text(
        f'title = "t"\nenvironment = "{tmp_path}/environment"\n[hardware]\narchitecture = "{machine}"\n'
        '[provider]\nname = "CPUExecutionProvider"\n'
    )
    (tmp_path / "m.onnx").write_bytes(b"")
    command = [sys.executable, "-m", "edgekd", "bench", str(tmp_path / "m.onnx"), "--target", str(target)]
    bench = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert time.monotonic() < deadline and (at_once or bench.poll() is None)
        time.sleep(0.05)
    if not at_once:
        bench.terminate()
    _, said = bench.communicate(timeout=30)
    assert bench.returncode == 130
    assert said.startswith("edgekd: interrupted")
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()
