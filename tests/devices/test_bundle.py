"""Measuring by hand: a bundle, its run on this machine as if it were the device, and reading the results."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.devices.bundle import Brought
from edgekd.devices.local import Local
from edgekd.errors import InputError
from edgekd.files import file_sha256

HERE = """
title = "This machine"
precisions = ["fp32"]
[hardware]
architecture = "{architecture}"
[provider]
name = "CPUExecutionProvider"
"""


@pytest.fixture
def files(tmp_path: Path, tiny_model: Callable[[Path, int], Path]) -> Path:
    """A folder with a target for this machine, two models, and labelled inputs."""
    (tmp_path / "here.toml").write_text(HERE.format(architecture=Local().facts().architecture))
    tiny_model(tmp_path / "a.onnx", 1)
    tiny_model(tmp_path / "b.onnx", 2)
    rows = np.random.Generator(np.random.PCG64(3)).standard_normal((300, 8)).astype(np.float32)
    np.savez(tmp_path / "set.npz", inputs=rows, labels=rows.argmax(axis=1) % 3)
    return tmp_path


def unpacked(archive: Path) -> Path:
    """The folder of a bundle, unpacked beside it."""
    with tarfile.open(archive) as content:
        content.extractall(archive.parent, filter="data")
    return archive.parent / archive.name.removesuffix(".tar.gz")


def measure(folder: Path, python: str = sys.executable) -> "subprocess.CompletedProcess[str]":
    """Run the bundle as its user does."""
    environment = {**os.environ, "PYTHON": python, "EDGEKD_DEVICE_LOCK": str(folder / "lock")}
    return subprocess.run(["sh", str(folder / "run.sh")], capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_what_a_bundle_measured_is_read_as_if_by_ssh(files: Path, cli: Callable[..., Any]) -> None:
    made = cli("bundle", "a.onnx", "--target", "here.toml", "--data", "set.npz", "--processes", 3, "--out", "m.tar.gz")
    assert made.returncode == 0, made.stderr
    size = (files / "m.tar.gz").stat().st_size / 1e6
    told = f"wrote m.tar.gz: 8 workers, {size:.1f} MB; on the device: tar xzf m.tar.gz && sh m/run.sh"
    assert made.stdout.startswith(told)
    done = measure(unpacked(files / "m.tar.gz"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == "1 of 8: latency"
    same = ("a.onnx", "--target", "here.toml", "--data", "set.npz")
    shown = cli("bench", *same, "--from", "m/results.json", "--json", "f.json")
    assert shown.returncode == 0, shown.stderr
    (figures,) = json.loads((files / "f.json").read_text())["models"]
    by_hand = cli("bench", "a.onnx", "--target", "here.toml", "--data", "set.npz", "--quick", "--json", "g.json")
    (here,) = json.loads((files / "g.json").read_text())["models"]
    assert by_hand.returncode == 0
    assert figures["scores"] == here["scores"]
    assert figures["provenance"]["latency_p50_ms"] == "measured"
    raw = [json.loads(one["result"]) for one in json.loads((files / "m/results.json").read_text())["answers"]]
    seconds = [record["latency_s"] for record in raw if record["mode"] == "latency"]
    assert min(map(min, seconds)) <= figures["latency_p50_ms"] / 1e3 <= max(map(max, seconds))
    again = measure(files / "m")  # what ran is not repeated
    assert again.returncode == 0
    assert [json.loads(one["result"]) for one in json.loads((files / "m/results.json").read_text())["answers"]] == raw

    limited = ("--target", "here.toml", "--from", "m/results.json", "--budget", "latency_p50_ms=50")
    judged = cli("check", "a.onnx", *limited)
    assert judged.returncode == 2
    assert "m/results.json holds no latency of exactly this file on target here with these inputs" in judged.stderr
    other = cli("bench", "b.onnx", "--target", "here.toml", "--data", "set.npz", "--from", "m/results.json")
    assert other.returncode == 2
    assert "b.onnx: m/results.json holds no latency of exactly this file" in other.stderr
    few = cli("check", "a.onnx", *limited, "--data", "set.npz")
    assert few.returncode == 2
    assert "holds 3 processes in mode latency, and more are needed; `edgekd bundle --processes 6`" in few.stderr


@pytest.mark.slow
def test_a_check_against_a_baseline_is_judged_by_the_pairs_that_ran_on_the_device(
    files: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekd.cli.bundling.PAIR_LOOKS", (6,))
    same = ("--target", "here.toml", "--data", "set.npz")
    made = cli("bundle", "a.onnx", *same, "--baseline", "b.onnx", "--processes", 3, "--out", "m.tar.gz")
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("wrote m.tar.gz: 25 workers")  # 8 of the model, 6 pairs, 6 of the baseline alone, 5
    done = measure(unpacked(files / "m.tar.gz"))
    assert done.returncode == 0, done.stderr
    wide = (
        "--tolerance",
        "max_slowdown=0.9",
        "--tolerance",
        "max_slowdown_p95=off",
        "--tolerance",
        "max_load_growth=off",
    )
    compared = (*same, "--from", "m/results.json", "--baseline", "b.onnx")
    judged = cli("check", "a.onnx", *compared, *wide, "--records", "records")
    assert judged.returncode in (0, 1), judged.stderr  # b answers other labels rightly
    assert "a.onnx on here: " in judged.stdout and "against b.onnx" in judged.stdout
    (record,) = (files / "records").glob("*.json")
    content = json.loads(record.read_text())
    raw = [json.loads(one["result"]) for one in json.loads((files / "m/results.json").read_text())["answers"]]
    pairs = [one for one in raw if one["mode"] == "pair"]
    assert len(pairs) == 12
    taken = [pair["latency_s"] for pair in content["pairs"]]
    assert len(taken) == 6
    assert sorted(map(sum, taken)) == sorted(
        sum(one["latency_s"]) for one in pairs if one["fingerprint"] != one["baseline"]["fingerprint"]
    )
    narrow = cli("check", "a.onnx", *compared, "--tolerance", "max_slowdown=0.0001")
    assert narrow.returncode == 2 or "a.onnx on here: fail" in narrow.stdout
    if narrow.returncode == 2:
        assert "holds too few processes in which it takes turns with b.onnx" in narrow.stderr
    other = cli("check", "b.onnx", *same, "--from", "m/results.json", "--baseline", "a.onnx")
    assert other.returncode == 2 and "holds no" in other.stderr
    stored = cli("bundle", "a.onnx", *same, "--baseline", record, "--out", "n.tar.gz")
    assert stored.returncode == 2 and "is a record, which was measured before" in stored.stderr


@pytest.mark.slow
def test_all_candidates_of_a_search_are_timed_by_one_call(
    files: Path, tiny_card: Path, cli: Callable[..., Any]
) -> None:
    same = ("search", tiny_card, "--target", "here.toml", "--out", "run")
    made = cli(*same, "--bundle", "c.tar.gz")
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("wrote c.tar.gz: 6 workers")  # two candidates in fp32, two times and a profile each
    done = measure(unpacked(files / "c.tar.gz"))
    assert done.returncode == 0, done.stderr
    raw = [json.loads(one["result"]) for one in json.loads((files / "c/results.json").read_text())["answers"]]
    taken = [np.median(one["latency_s"]) * 1e3 for one in raw if one["mode"] == "latency"]
    for _ in range(2):  # a second reading takes the same times
        searched = cli(*same, "--from", "c/results.json", "--rank", "capacity")
        assert searched.returncode == 0, searched.stderr
        found = json.loads(Path("run/candidates.json").read_text())["candidates"]
        assert {one["brought"] for one in found} == {f"results.json, SHA-256 {file_sha256(files / 'c/results.json')}"}
        times = [one["precisions"]["fp32"]["latency_p50_ms"] for one in found]
        assert {time["provenance"] for time in times} == {"measured"}
        for number, time in enumerate(times):
            low, high = sorted(taken[2 * number : 2 * number + 2])
            assert low <= time["value"] <= high
    assert json.loads(Path("run/run.json").read_text())["target"]["device"] == ""  # `distill` goes on here
    other = cli(*same, "--from", "c/results.json", "--set", "recipe.seed=9", "--out", "other")
    assert other.returncode == 2
    assert "c/results.json holds no latency of exactly this file" in other.stderr


def test_what_cannot_be_packed_for_a_search_is_told(files: Path, tiny_card: Path, cli: Callable[..., Any]) -> None:
    same = ("search", tiny_card, "--target", "here.toml", "--bundle")
    placed = cli(*same, "c.tar.gz", "--device", "ssh://board")
    assert placed.returncode == 2
    assert placed.stderr == "edgekd: --bundle: is for a device that nothing can reach; leave --device and --from out\n"
    named = "c.zip: a bundle is a compressed archive; give a name that ends in .tar.gz"
    assert cli(*same, "c.zip").stderr == f"edgekd: --bundle {named}\n"
    assert cli("bundle", "a.onnx", "--target", "here.toml", "--out", "c.zip").stderr == f"edgekd: --out {named}\n"
    assert "--rank size: student.rank: got" in cli(*same, "c.tar.gz", "--rank", "size").stderr
    many = cli(*same, "c.tar.gz", "--set", f"student.knobs.hidden={list(range(1, 42))}")
    assert many.returncode == 2
    assert "shapes, and a bundle holds at most 40; give fewer values" in many.stderr


def test_python_without_onnxruntime_is_told_on_the_device(files: Path, cli: Callable[..., Any]) -> None:
    cli("bundle", "a.onnx", "--target", "here.toml", "--processes", 3)
    bare = files / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    done = measure(unpacked(files / "bundle.tar.gz"), str(bare))
    assert (done.returncode, done.stderr) == (2, f"edgekd: {bare} cannot run models (No module named 'numpy')\n")


def test_what_is_no_bundle_or_holds_no_results_is_told(files: Path, cli: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"^--from .*: no such file$"):
        Brought(files / "none.json")
    (files / "x.json").write_text("{")
    with pytest.raises(InputError, match=r"not valid JSON.* `sh run\.sh` of a bundle writes it on the device; copy"):
        Brought(files / "x.json")
    (files / "x.json").write_text('{"kind": "other"}')
    with pytest.raises(InputError, match=r"holds no results; `sh run\.sh` of a bundle writes them$"):
        Brought(files / "x.json")
    missing = cli("bundle", "none.onnx", "--target", "here.toml")
    assert (missing.returncode, missing.stderr) == (2, "edgekd: none.onnx: no such model file or run folder\n")
    named = cli("bundle", "a.onnx", "--target", "here.toml", "--out", "x.zip")
    assert (named.returncode, "give a name that ends in .tar.gz" in named.stderr) == (2, True)
    both = cli("bench", "a.onnx", "--target", "here.toml", "--from", "x.json", "--device", "local")
    assert (both.returncode, "leave --device out" in both.stderr) == (2, True)
