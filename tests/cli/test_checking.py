"""`check` and `baseline accept` as a user sees them; workers are replaced where their times would matter."""

import dataclasses
import json
import os
import platform
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekd.bench.records import Plan, Record
from edgekd.check.record import read_record
from edgekd.check.tolerance import tolerance_keys
from edgekd.devices.local import run_worker
from edgekd.figures import Placement
from edgekd.history import read_history
from edgekd.scores import ACCURACY

Cli = Callable[..., Any]

HERE = """\
title = "this machine"
precisions = ["fp32"]
[hardware]
architecture = "{architecture}"
[provider]
name = "CPUExecutionProvider"
"""
MACHINE = {"cpu": "a CPU", "onnxruntime": "1.24.1", "python": "3.11.9", "numpy": "2.1.0", "inputs": "random"}
QUIET = ["max_slowdown_p95", "max_load_growth", "max_memory_growth", "max_coverage_loss", "max_fused_loss"]
"""Tolerances that a test about another one leaves out."""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A target that any machine is."""
    architecture = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    path = tmp_path / "here.toml"
    path.write_text(HERE.format(architecture=architecture))
    return path


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tiny.onnx` and `other.onnx`: four pixels to four classes; and no CI system around the test."""
    for name in ("tiny", "other"):
        nodes = [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["float"], ["logits"], name="the-last"),
        ]
        images = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 2, 2, 1])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])
        graph = helper.make_graph(nodes, name, [images], [logits])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, tmp_path / f"{name}.onnx")
    for variable in ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS", "GITHUB_SHA", "CI_COMMIT_SHA"):
        monkeypatch.delenv(variable, raising=False)


@dataclasses.dataclass
class Machine:
    """In place of the workers: what each model takes, in ms, and of which machine the records tell."""

    p50_ms: dict[str, float]
    mark: dict[str, str]
    processes: int = 0

    def alone(self, model: Path, *_: Any) -> Record:
        self.processes += 1
        p50_s = 1e-3 * self.p50_ms[model.name] * (1 + 0.001 * (self.processes % 5))
        memory: dict[str, int | None] = {"run_bytes": 50_000_000}
        return Record(mode="latency", load_s=0.01, fingerprint=self.mark, memory=memory, latency_s=(p50_s,) * 100)

    def pair(self, model: Path, baseline: Path, *_: Any) -> Record:
        mine, theirs = self.alone(model), self.alone(baseline)
        other = {"load_s": 0.01, "first_call_s": 0.01, "latency_s": list(theirs.latency_s), "fingerprint": self.mark}
        return dataclasses.replace(mine, mode="pair", first_call_s=0.01, block_calls=10, baseline=other)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A steady machine."""
    found = Machine({"tiny.onnx": 1.0, "other.onnx": 2.0}, dict(MACHINE))
    placement = Placement(nodes={"CPUExecutionProvider": 2}, time_share={}, fused=0, unfused=0)
    monkeypatch.setattr("edgekd.check.measure.measure_process", found.alone)
    monkeypatch.setattr("edgekd.check.measure.measure_memory", found.alone)
    monkeypatch.setattr("edgekd.check.measure.measure_load", found.alone)
    monkeypatch.setattr("edgekd.check.measure.measure_pair", found.pair)
    monkeypatch.setattr("edgekd.check.measure.measure_placement", lambda *_: placement)
    return found


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def assert_refused(done: Any, *words: str) -> None:
    """Exactly one line of complaint, with the words in it."""
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("edgekd: ")
    for word in words:
        assert word in line, line


# --- budgets ---


def test_the_size_is_judged_without_a_call(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []

    def start(plan: Plan, *rest: Any) -> Record:
        modes.append(plan.mode)
        return run_worker(plan, *rest)

    monkeypatch.setattr("edgekd.devices.local.run_worker", start)
    done = cli("check", "tiny.onnx", "-t", here, "--budget", "size_kb=1")
    assert (done.returncode, done.stderr) == (0, "")
    first, second, *_ = done.stdout.splitlines()
    assert first.startswith("tiny.onnx on here: pass, ")
    assert second.startswith("  ✓ file size ") and second.endswith("≤ 1.0 kB: pass")
    done = cli("check", "tiny.onnx", "-t", here, "--budget", "size_kb=0.1")
    assert done.returncode == 1
    assert "✗ file size" in done.stdout
    assert modes == ["load", "load"]


def test_exit_codes_of_several_models(cli: Cli, here: Path, machine: Machine) -> None:
    done = cli("check", "tiny.onnx", "other.onnx", "-t", here, "--budget", "latency_p50_ms=1.5")
    assert done.returncode == 1
    assert "tiny.onnx on here: pass" in done.stdout
    assert "other.onnx on here: fail" in done.stdout
    assert "95 % over all looks; look 1 of 4, 8 processes" in done.stdout
    done = cli("check", "tiny.onnx", "gone.onnx", "-t", here, "--budget", "latency_p50_ms=1.5")
    assert (done.returncode, done.stderr) == (2, "edgekd: gone.onnx: no such model file or run folder\n")
    assert "tiny.onnx on here: pass" in done.stdout


@pytest.mark.parametrize(
    ("option", "code", "said", "headline", "command"),
    [
        ([], 3, "inconclusive, ", "inconclusive", "::warning "),
        (["--on-inconclusive", "pass"], 0, "inconclusive (counted as pass: --on-inconclusive), ", "pass", "::warning "),
        (["--on-inconclusive", "fail"], 1, "inconclusive (counted as fail: --on-inconclusive), ", "fail", "::error "),
    ],
)
def test_what_an_inconclusive_verdict_counts_as(
    cli: Cli, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    option: list[str], code: int, said: str, headline: str, command: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    written = ["--markdown", "summary.md", "--json", "all.json"]
    done = cli("check", "tiny.onnx", "-t", here, "--budget", "min_accuracy=0.5", *option, *written)
    assert (tmp_path / "summary.md").read_text().splitlines()[0].endswith(f" edgekd check: {headline}")
    (one,) = json.loads((tmp_path / "all.json").read_text())["judged"]
    assert (one["outcome"], one["exit_code"]) == ("inconclusive", code)
    assert done.stdout.splitlines()[-1].startswith(command)
    assert done.returncode == code
    assert done.stdout.startswith(f"tiny.onnx on here: {said}")
    assert (
        "? accuracy unknown ≥ 50.00 %: inconclusive (no data: --data FILE.npz brings inputs and labels)" in done.stdout
    )


def test_data_bring_accuracy(cli: Cli, here: Path, tmp_path: Path) -> None:
    inputs = (200 * np.eye(4, dtype=np.uint8)[[0, 1, 2, 3]]).reshape(-1, 2, 2, 1)
    np.savez(tmp_path / "set.npz", inputs=inputs, labels=np.array([0, 1, 2, 2]))
    done = cli("check", "tiny.onnx", "-t", here, "--data", "set.npz", "--budget", "min_accuracy=0.3")
    assert (done.returncode, done.stderr) == (0, "")
    assert "✓ accuracy 75.00 % ≥ 30.00 %: pass (95 % interval 30.06 % … 95.44 % on 4 examples)" in done.stdout
    assert "exact on these 4; of others 95 %: 30.06 … 95.44 %" in done.stdout
    done = cli("check", "tiny.onnx", "-t", here, "--data", "set.npz", "--budget", "min_accuracy=0.75")
    assert done.returncode == 3
    told = "too few to tell: 95 % interval 30.06 % … 95.44 % on 4 examples"
    assert f"? accuracy 75.00 % ≥ 75.00 %: inconclusive ({told})" in done.stdout


def test_tighter_limits_are_offered(cli: Cli, here: Path, machine: Machine) -> None:
    budget = ["--budget", "latency_p50_ms=5", "--budget", "size_kb=0.15"]
    done = cli("check", "tiny.onnx", "-t", here, *budget, "--ratchet")
    assert done.returncode == 0
    (offered,) = [line for line in done.stdout.splitlines() if "# was" in line]
    key, _, rest = offered.strip().partition(" = ")
    value, _, was = rest.partition("    # was ")
    assert (key, was) == ("latency_p50_ms", "5")
    assert 1.05 <= float(value) < 1.1
    assert "# was" not in cli("check", "tiny.onnx", "-t", here, *budget).stdout


# --- against a model ---


def test_a_real_model_against_another(cli: Cli, here: Path) -> None:
    """Real workers; limits so wide that no time matters."""
    wide = [f"--tolerance={key}=10" for key in ("max_slowdown", "max_slowdown_p95", "max_load_growth")]
    done = cli(
        "check", "tiny.onnx", "-t", here, "--baseline", "other.onnx", *wide, "--tolerance", "max_memory_growth=10",
        "--tolerance", "max_size_growth=0.02", "--records", "kept",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("tiny.onnx on here: pass, against other.onnx (")
    for words in ("p50 slowdown", "p95 slowdown", "load time growth", "file size growth", "peak memory growth"):
        assert f"✓ {words} " in done.stdout
    assert "– accuracy loss unknown ≤ 0.50 points: not judged (no data given)" in done.stdout
    assert "✓ nodes lost by the provider 0.0 % ≤ 0.0 %: pass" in done.stdout
    assert "(A/A, 6 process pairs)" in done.stdout
    checked = read_record(Path("kept/tiny@here.json"))
    assert (len(checked.pairs), len(checked.same), len(checked.sample.memory_bytes)) == (6, 6, 3)


def test_a_slower_model_fails(cli: Cli, here: Path, machine: Machine) -> None:
    off = [f"--tolerance={key}=off" for key in QUIET]
    done = cli("check", "other.onnx", "-t", here, "--baseline", "tiny.onnx", *off)
    assert done.returncode == 1
    assert "✗ p50 slowdown +100.0 % ≤ +2.5 %: fail (confirmed on fresh samples)" in done.stdout
    done = cli("check", "other.onnx", "-t", here, "--baseline", "tiny.onnx", *off, "--tolerance", "max_slowdown=1.1")
    assert done.returncode == 0
    done = cli("check", "tiny.onnx", "-t", here, "--baseline", "other.onnx", *off, "--ratchet")
    assert done.returncode == 0
    assert "--ratchet: faster than its baseline; `edgekd baseline accept` makes this model the new one" in done.stdout
    small = ["--budget", "size_kb=0.01"]
    done = cli("check", "tiny.onnx", "-t", here, "--baseline", "other.onnx", *off, *small, "--ratchet")
    assert (done.returncode, "baseline accept" in done.stdout) == (1, False)


def test_a_tolerance_wants_a_baseline(cli: Cli, here: Path, records: Path) -> None:
    wide = ["--tolerance", "max_slowdown=0.5"]
    done = cli("check", "tiny.onnx", "-t", here, "--budget", "size_kb=1", *wide)
    assert_refused(done, "--tolerance: says how much worse than a baseline a model may be; give a --baseline, too")
    kept = records / "tiny@here.json"
    assert cli("check", kept, "-t", here, "--budget", "size_kb=1", *wide).returncode == 0  # it may hold its baseline
    done = cli("check", kept, "-t", here, "--budget", "size_kb=1", "--data", "set.npz")
    assert_refused(done, "--data set.npz: ", "is a record, which holds its answers already; leave it out")
    off = [f"--tolerance={key}=off" for key in tolerance_keys([ACCURACY])]
    done = cli("check", "tiny.onnx", "-t", here, "--baseline", "other.onnx", *off)
    assert_refused(done, "tiny.onnx: no budget to judge it by")


def test_a_baseline_that_is_not_there(cli: Cli, here: Path) -> None:
    done = cli("check", "tiny.onnx", "-t", here, "--baseline", "gone.onnx")
    assert_refused(done, "gone.onnx: no such baseline; give a model, a run or a record (.json)")
    done = cli("check", "tiny.onnx", "-t", here, "--baseline", "gone.json")
    assert_refused(done, f"gone.json: no such record; `edgekd baseline accept MODEL --target {here} --to gone.json`")


# --- kept baselines ---


def test_a_baseline_is_kept_and_checked_against(cli: Cli, here: Path, machine: Machine, tmp_path: Path) -> None:
    done = cli("baseline", "accept", "tiny.onnx", "other.onnx", "-t", here)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "baselines/tiny@here.json: tiny.onnx on here (new; p50 1.00 ms)",
        "baselines/other@here.json: other.onnx on here (new; p50 2.00 ms)",
    ]
    kept = read_record(tmp_path / "baselines/tiny@here.json").sample
    assert (len(kept.latency), len(kept.memory_bytes), kept.placement is not None) == (8, 3, True)
    against = ["check", "tiny.onnx", "-t", here, "--baseline", "baselines/tiny@here.json"]
    done = cli(*against)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"record of {kept.at})" in done.stdout
    assert "8 processes, unpaired" in done.stdout
    assert f"note: the baseline was measured on {kept.at}; a machine's pace drifts between days" in done.stdout
    machine.p50_ms["tiny.onnx"] = 1.2
    done = cli(*against)
    assert done.returncode == 1
    assert "✗ p50 slowdown +20." in done.stdout
    assert cli(*against, "--tolerance", "max_slowdown_stored=0.3").returncode == 0

    done = cli("baseline", "accept", "tiny.onnx", "-t", here)
    assert done.stdout == "baselines/tiny@here.json: tiny.onnx on here (replaced; p50 1.00 ms then, 1.20 ms now)\n"
    assert cli(*against).returncode == 0


def test_where_a_baseline_is_kept(cli: Cli, here: Path, machine: Machine, tmp_path: Path) -> None:
    assert cli("baseline", "accept", "tiny.onnx", "-t", here, "--to", "main").stdout.startswith("main/tiny@here.json: ")
    done = cli("baseline", "accept", "tiny.onnx", "-t", here, "--to", "deep/mine.json")
    assert done.stdout.startswith("deep/mine.json: ")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json")) == [
        "deep/mine.json", "main/tiny@here.json",
    ]  # fmt: skip
    done = cli("baseline", "accept", "tiny.onnx", "other.onnx", "-t", here, "--to", "one.json")
    assert_refused(done, "--to one.json: is one file for several baselines; give a folder")
    assert not (tmp_path / "one.json").exists()


def test_two_models_of_one_name_do_not_replace_each_other(
    cli: Cli, here: Path, machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "other.onnx").rename(tmp_path / "old/tiny.onnx")
    done = cli("baseline", "accept", "tiny.onnx", "old/tiny.onnx", "-t", here)
    assert done.returncode == 2
    assert done.stderr == (
        "edgekd: baselines/tiny@here.json: old/tiny.onnx would replace the baseline just written; use --to\n"
    )
    kept = read_record(tmp_path / "baselines/tiny@here.json").sample
    assert kept.size_bytes == (tmp_path / "tiny.onnx").stat().st_size


def test_a_damaged_baseline_is_told_and_written_anew(cli: Cli, here: Path, machine: Machine, tmp_path: Path) -> None:
    cli("baseline", "accept", "tiny.onnx", "-t", here)
    path = tmp_path / "baselines/tiny@here.json"
    path.write_bytes(path.read_bytes()[:100])
    done = cli("check", "tiny.onnx", "-t", here, "--baseline", "baselines/tiny@here.json")
    assert_refused(done, "baselines/tiny@here.json: not valid JSON: ", "`edgekd baseline accept` writes it anew")
    done = cli("baseline", "accept", "tiny.onnx", "-t", here)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("on here (replaced; what was there could not be read; p50 1.00 ms)\n")
    assert read_record(path).sample.name == "tiny.onnx"


def test_a_record_becomes_the_baseline(cli: Cli, here: Path, machine: Machine, tmp_path: Path) -> None:
    cli("check", "tiny.onnx", "-t", here, "--budget", "latency_p50_ms=5", "--records", "kept")
    before = machine.processes
    done = cli("baseline", "accept", "kept/tiny@here.json")
    assert (done.returncode, machine.processes) == (0, before)  # nothing is measured again
    assert done.stdout == "baselines/tiny@here.json: tiny.onnx on here (new; p50 1.00 ms)\n"
    assert read_record(tmp_path / "baselines/tiny@here.json").sample.latency
    # A record of a comparison alone lacks what a baseline needs.
    off = [f"--tolerance={key}=off" for key in QUIET]
    cli("check", "tiny.onnx", "-t", here, "--baseline", "other.onnx", *off, "--records", "kept")
    done = cli("baseline", "accept", "kept/tiny@here.json")
    assert_refused(done, "kept/tiny@here.json: holds no times of the model alone, which a baseline needs")


def test_what_is_no_record_is_not_replaced_and_the_next_model_has_its_turn(
    cli: Cli, here: Path, machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "tiny@here.json").write_text('{"name": "package"}')
    (tmp_path / "deep" / "tiny@here.json").mkdir(parents=True)
    for folder, said in ((".", "is there already and is no record of edgekd; name another file"), ("deep", "director")):
        done = cli("baseline", "accept", "tiny.onnx", "other.onnx", "-t", here, "--to", folder)
        assert_refused(done, "tiny@here.json: ", said)
        assert read_record(tmp_path / folder / "other@here.json").sample.name == "other.onnx"
    assert (tmp_path / "tiny@here.json").read_text() == '{"name": "package"}'
    edit(tmp_path / "other@here.json", lambda content: content.update(schema_version=99))
    done = cli("baseline", "accept", "other.onnx", "-t", here, "--to", ".")
    assert (
        done.stdout == "other@here.json: other.onnx on here (replaced; what was there could not be read; p50 2.00 ms)\n"
    )


MANIFEST = """\
targets = ["here.toml"]
baseline = "baselines/{stem}@{target}.json"
[budget]
size_kb = 1
[tolerance]
max_accuracy_loss = "off"
[[model]]
path = "*.onnx"
"""


def test_a_manifest_names_everything(cli: Cli, here: Path, machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "edgekd-check.toml").write_text(MANIFEST)
    done = cli("check", "--manifest", "edgekd-check.toml")
    assert done.returncode == 2
    assert done.stderr.count("baselines/tiny@here.json: no such record; ") == 1
    done = cli("baseline", "accept", "--manifest", "edgekd-check.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        "baselines/other@here.json", "baselines/tiny@here.json",
    ]  # fmt: skip
    done = cli("check", "--manifest", "edgekd-check.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(" ")[0] for line in done.stdout.splitlines() if " on here: pass" in line] == [
        "other.onnx", "tiny.onnx",
    ]  # fmt: skip
    assert "accuracy loss" not in done.stdout
    # The command line wins.
    assert cli("check", "--manifest", "edgekd-check.toml", "--budget", "size_kb=0.01").returncode == 1
    machine.p50_ms["tiny.onnx"] = 1.2
    assert cli("check", "--manifest", "edgekd-check.toml").returncode == 1
    relaxed = ["--tolerance", "max_slowdown_stored=off"]
    assert cli("check", "--manifest", "edgekd-check.toml", *relaxed).returncode == 0


def test_what_is_asked_for_wrongly(cli: Cli, here: Path, tmp_path: Path) -> None:
    assert_refused(cli("check"), "no model given; name model files, run folders or records, or a --manifest")
    (tmp_path / "edgekd-check.toml").write_text('targets = ["here.toml"]\n[[model]]\npath = "tiny.onnx"')
    assert_refused(cli("check"), "(there is one here: --manifest edgekd-check.toml)")
    assert_refused(cli("check", "tiny.onnx"), "no target given; name one, such as --target cpu-x86")
    assert_refused(cli("check", "tiny.onnx", "-t", here), "no budget to judge it by; give one or more --budget")
    alone = "names models, targets, baselines and data itself; give it alone"
    assert_refused(cli("check", "tiny.onnx", "--manifest", "edgekd-check.toml"), "--manifest: ", alone)
    assert_refused(cli("baseline", "accept", "-t", here, "--manifest", "edgekd-check.toml"), "--manifest: ", alone)
    assert_refused(
        cli("check", "tiny.onnx", "-t", here, "--on-inconclusive", "maybe"),
        "--on-inconclusive 'maybe': it should be pass or fail",
    )
    assert_refused(
        cli("check", "tiny.onnx", "-t", here, "--tolerance", "max_slowdwn=1"),
        "--tolerance: max_slowdwn: unknown key; did you mean 'max_slowdown'",
    )
    assert_refused(cli("baseline", "accept", "tiny.onnx"), "baseline accept: name models and a --target, records of")
    assert_refused(cli("baseline", "accept", "--manifest", "edgekd-check.toml"), "names no record; add baseline = ")
    assert_refused(cli("check", "--manifest", "none.toml"), "none.toml: no such manifest; `edgekd check RUN --init`")


def test_a_manifest_from_a_run(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "digits@cpu-x86"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"budget": {"size_kb": 60.0, "min_accuracy": None}}))
    (run / "result.json").write_text(json.dumps({"target": "cpu-x86"}))
    done = cli("check", "runs/digits@cpu-x86", "--init")
    assert done.returncode == 0
    assert done.stdout == "wrote edgekd-check.toml; now: edgekd check --manifest edgekd-check.toml\n"
    written = (tmp_path / "edgekd-check.toml").read_text()
    assert 'path = "runs/digits@cpu-x86"' in written
    assert "\nsize_kb = 60.0\n" in written
    done = cli("check", "runs/digits@cpu-x86", "--init")
    assert_refused(done, "edgekd-check.toml: is there already; add a [[model]] by hand, or move it away")
    assert (tmp_path / "edgekd-check.toml").read_text() == written
    assert_refused(cli("check", "--init"), "--init: name the one run folder to write a manifest from")
    (tmp_path / "edgekd-check.toml").unlink()
    (run / "run.json").write_text('{"budget": {"size_kb": "x"}}')
    assert_refused(cli("check", "runs/digits@cpu-x86", "--init"), 'run.json: budget: size_kb: got "x"; ')
    assert not (tmp_path / "edgekd-check.toml").exists()


# --- records of other machines, and records alone ---


@pytest.mark.parametrize(("key", "value"), [("cpu", "another CPU"), ("onnxruntime", "1.0.0")])
def test_a_record_of_another_machine_is_refused_until_allowed(
    cli: Cli, here: Path, machine: Machine, tmp_path: Path, key: str, value: str
) -> None:
    cli("baseline", "accept", "tiny.onnx", "-t", here)
    edit(tmp_path / "baselines/tiny@here.json", lambda content: content["sample"]["fingerprint"].update({key: value}))
    against = ["check", "tiny.onnx", "-t", here, "--baseline", "baselines/tiny@here.json"]
    words = f"{key} was {value!r} and is {MACHINE[key]!r}"
    assert_refused(cli(*against), "was made elsewhere", words, f"--allow-difference {key}")
    done = cli(*against, "--allow-difference", key)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"note: compared although {words}" in done.stdout


def test_python_and_numpy_may_differ(cli: Cli, here: Path, machine: Machine, tmp_path: Path) -> None:
    cli("baseline", "accept", "tiny.onnx", "-t", here)
    other = {"python": "3.14.0", "numpy": "9.0"}
    edit(tmp_path / "baselines/tiny@here.json", lambda content: content["sample"]["fingerprint"].update(other))
    done = cli("check", "tiny.onnx", "-t", here, "--baseline", "baselines/tiny@here.json")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def records(cli: Cli, here: Path, machine: Machine) -> Path:
    """Records of both models: `tiny@here.json` and `other@here.json`."""
    for name in ("tiny", "other"):
        cli("baseline", "accept", f"{name}.onnx", "-t", here)
    return Path("baselines")


def test_a_record_is_judged_without_measuring(cli: Cli, here: Path, machine: Machine, records: Path) -> None:
    before = machine.processes
    done = cli("check", records / "tiny@here.json", "-t", here, "--budget", "latency_p50_ms=1.5")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("tiny.onnx on here: pass, ")
    assert "note: from a record of " in done.stdout
    done = cli("check", records / "tiny@here.json", "-t", here, "--baseline", records / "other@here.json")
    assert done.returncode == 0
    assert "faster: it takes 50.0 % of the baseline's time" in done.stdout
    assert machine.processes == before
    done = cli("check", records / "tiny@here.json", "-t", here, "--baseline", "other.onnx")
    assert_refused(done, "is a record, so its baseline must be one, too")
    done = cli("check", records / "tiny@here.json", "-t", "cpu-arm", "--budget", "size_kb=1")
    assert_refused(done, "baselines/tiny@here.json: is a record of target here, not of cpu-arm")
    done = cli("check", records / "tiny@here.json", "-t", here)
    assert_refused(done, "no budget to judge it by")


def test_a_record_keeps_the_budget_it_was_made_for(cli: Cli, here: Path, machine: Machine) -> None:
    cli("check", "tiny.onnx", "-t", here, "--budget", "latency_p50_ms=1.5", "--records", "kept")
    done = cli("check", "kept/tiny@here.json", "-t", here)
    assert done.returncode == 0
    assert "✓ latency p50 1.00 ms ≤ 1.50 ms: pass" in done.stdout
    assert cli("check", "kept/tiny@here.json", "-t", here, "--budget", "latency_p50_ms=0.5").returncode == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c["sample"]["latency"][0]["latency_s"].append(10**400),
        lambda c: c["sample"]["latency"][0]["latency_s"].append(1e300),
        lambda c: c["sample"]["latency"][0].update(load_s=-1),
        lambda c: c["sample"]["latency"][0].update(inner_calls="x"),
        lambda c: c["sample"]["latency"][0].update(batch_size=0),
        lambda c: c["sample"].update(size_bytes=10**400),
        lambda c: c["sample"].update(memory_bytes=[10**17, 1], placement=None),
        lambda c: c["sample"]["placement"].update(nodes={"CPUExecutionProvider": 0}),
        lambda c: c["sample"].update(estimate={"value": float("inf")}),
        lambda c: c["pairs"][0]["baseline"].update(latency_s=[0.0] * 100),
        lambda c: c["pairs"][0]["baseline"].update(latency_s=[5e-324] * 100),
        lambda c: [pair["baseline"].update(latency_s=[1e-11] * 50 + [9e5] * 50) for pair in c["same"]],
        lambda c: c.update(pairs=[], same=c["same"][:2]),
        lambda c: c.update(same=[c["same"][0] | {"load_s": 1e-9}, c["same"][1]]),
    ],
)
def test_a_damaged_record_is_one_line_or_inconclusive(
    cli: Cli, here: Path, machine: Machine, tmp_path: Path, damage: Any
) -> None:
    budget = ["--budget", "latency_p50_ms=1.5", "--budget", "peak_memory_mb=60", "--budget", "min_coverage=0.5"]
    cli("check", "tiny.onnx", "-t", here, "--baseline", "other.onnx", *budget, "--records", "kept")
    edit(tmp_path / "kept/tiny@here.json", damage)
    done = cli("check", "kept/tiny@here.json", "-t", here, "--budget", "min_accuracy=0.1", "--json", "all.json")
    assert (done.returncode, len(done.stderr.splitlines())) in ((2, 1), (3, 0)), done.stdout
    assert "internal error" not in done.stderr
    assert json.loads((tmp_path / "all.json").read_text())["judged"][0]["exit_code"] == done.returncode


def test_records_alone_import_nothing_heavy(here: Path, tmp_path: Path, records: Path) -> None:
    code = "import sys; sys.argv[0] = 'edgekd'\nfrom edgekd.cli.main import main\n" + (
        "try:\n    main()\nexcept SystemExit as ended:\n    print(ended.code, *sys.modules)"
    )
    arguments = ["check", "baselines/tiny@here.json", "-t", "here.toml", "--baseline", "baselines/other@here.json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    ended, *loaded = done.stdout.splitlines()[-1].split()
    assert (ended, done.stderr) == ("0", "")
    assert "edgekd.check.verdict" in loaded
    assert {"torch", "onnx", "onnxruntime", "scipy", "matplotlib", "edgekd.bench.runner"}.isdisjoint(loaded)


def test_models_are_checked_without_torch(here: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv[0] = 'edgekd'; sys.modules.update(torch=None, torchvision=None)\n"
        "from edgekd.cli.main import main\nmain()"
    )
    arguments = ["check", "tiny.onnx", "-t", "here.toml", "--budget", "min_coverage=1", "--budget", "size_kb=1"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "✓ nodes on the provider 100.00 % ≥ 100.00 %: pass" in done.stdout


# --- models that break ---


def test_a_model_that_crashes_keeps_the_others(cli: Cli, here: Path, tmp_path: Path) -> None:
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    crash = 'case "$6" in *tiny*) echo illegal instruction >&2; kill -ILL $$;; esac'
    python.write_text(f'#!/bin/sh\n{crash}\nshift\nexec {sys.executable} -P "$@"\n')
    python.chmod(0o755)
    here.write_text('environment = "./environment"\n' + here.read_text())
    done = cli("check", "tiny.onnx", "other.onnx", "-t", here, "--budget", "min_coverage=1", "--json", "all.json")
    assert done.returncode == 1
    said = "tiny.onnx: the worker crashed with SIGILL while it ran the model (illegal instruction)"
    assert done.stderr == f"edgekd: {said}\n"
    assert "other.onnx on here: pass" in done.stdout
    judged = json.loads((tmp_path / "all.json").read_text())["judged"]
    assert [(one["name"], one["outcome"], one["problem"], one["exit_code"]) for one in judged] == [
        ("tiny.onnx", "error", said, 1),
        ("other.onnx", "pass", "", 0),
    ]


# --- what is written ---


def test_every_output_is_written(cli: Cli, here: Path, machine: Machine, tmp_path: Path) -> None:
    done = cli(
        "check", "tiny.onnx", "other.onnx", "-t", here, "--budget", "latency_p50_ms=1.5",
        "--junit", "out/junit.xml", "--markdown", "out/summary.md", "--gitlab-metrics", "out/metrics.txt",
        "--json", "out/all.json", "--records", "out/records", "--history", "out/history.jsonl",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    out = tmp_path / "out"
    cases = ET.parse(out / "junit.xml").getroot().findall(".//testcase")
    assert [len(case.findall("failure")) for case in cases] == [0, 1]
    assert "edgekd check: fail" in (out / "summary.md").read_text()
    assert 'edgekd_latency_p50_ms{model="tiny.onnx"' in (out / "metrics.txt").read_text()
    content = json.loads((out / "all.json").read_text())
    assert content["schema_version"] == 1
    first, second = content["judged"]
    assert (first["name"], first["outcome"], second["outcome"], second["exit_code"]) == ("tiny.onnx", "pass", "fail", 1)
    (line,) = first["lines"]
    assert (line["key"], line["outcome"], line["advisory"]) == ("latency_p50_ms", "pass", False)
    assert line["margin"] == pytest.approx(1.5 - line["figure"]["value"])
    assert first["machine"] == "a CPU, onnxruntime 1.24.1"
    assert first["figures"]["size_kb"]["value"] == (tmp_path / "tiny.onnx").stat().st_size / 1e3
    assert sorted(path.name for path in (out / "records").iterdir()) == ["other@here.json", "tiny@here.json"]
    entries, warnings = read_history(out / "history.jsonl")
    assert [(entry.model, entry.outcome) for entry in entries] == [("tiny.onnx", "pass"), ("other.onnx", "fail")]
    assert warnings == []


def test_two_of_one_name_are_told_apart(cli: Cli, here: Path, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "other.onnx").rename(tmp_path / "old/tiny.onnx")
    written = ["--records", "kept", "--history", "history.jsonl"]
    cli("check", "tiny.onnx", "old/tiny.onnx", "-t", here, "--budget", "size_kb=1", *written)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["tiny@here-2.json", "tiny@here.json"]
    entries, _ = read_history(tmp_path / "history.jsonl")
    assert [entry.model for entry in entries] == ["tiny.onnx", "old/tiny.onnx"]


def test_a_name_that_is_bytes_is_written_everywhere(cli: Cli, here: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"bad\xff.onnx")
    (tmp_path / "tiny.onnx").rename(tmp_path / name)
    done = cli(
        "check", name, "-t", here, "--budget", "size_kb=1", "--budget", "min_coverage=1",
        "--junit", "out/junit.xml", "--markdown", "out/summary.md", "--gitlab-metrics", "out/metrics.txt",
        "--json", "out/all.json", "--records", "out/records", "--history", "out/history.jsonl",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(r"bad\udcff.onnx on here: pass, ")
    out = tmp_path / "out"
    assert len(list(out.iterdir())) == 6
    assert json.loads((out / "all.json").read_text())["judged"][0]["file"] == name
    (record,) = (out / "records").iterdir()
    assert read_record(record).sample.name == r"bad\udcff.onnx"
    assert read_history(out / "history.jsonl")[0][0].model == r"bad\udcff.onnx"
    for file in ("junit.xml", "summary.md", "metrics.txt"):
        assert r"udcff.onnx" in (out / file).read_text()
    assert cli("check", record, "-t", here).returncode == 0


@pytest.mark.parametrize("name", ["a\n::error::owned\x1b[31m", "::error::owned\n\x9b1m", "a\n##[error]owned"])
def test_nothing_in_a_name_is_obeyed(
    cli: Cli, here: Path, tmp_path: Path, records: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    edit(tmp_path / records / "tiny@here.json", lambda c: c["sample"].update(name=name, at=name, elsewhere=name))
    against = ["--baseline", records / "tiny@here.json"]
    edit(tmp_path / records / "other@here.json", lambda c: c["sample"]["fingerprint"].update(cpu=name))
    said = [
        cli("check", records / "tiny@here.json", "-t", here, "--budget", "load_ms=0.01", "--budget", "size_kb=0.1"),
        cli("check", records / "other@here.json", "-t", here, *against),
        cli("check", records / "other@here.json", "-t", here, *against, "--allow-difference", "cpu"),
        cli("baseline", "accept", records / "tiny@here.json", "--to", "kept"),
        cli("check", f"{name}.onnx", "-t", here, "--budget", "size_kb=1"),
        cli("check", "tiny.onnx", "-t", name, "--budget", "size_kb=1"),
    ]
    text = "".join(done.stdout + done.stderr for done in said)
    assert "owned" in text or "1m" in text
    assert all(character.isprintable() or character == "\n" for character in text)
    obeyed = [line for line in text.splitlines() if line.strip().startswith("::") or "##[" in line]
    assert all(line.startswith(("::error title=", "::warning title=")) for line in obeyed), obeyed


def test_a_path_with_a_number_between_colons_is_no_emoji(cli: Cli, here: Path) -> None:
    assert cli("check", "a:100:b.onnx", "-t", here, "--budget", "size_kb=1").stderr.startswith("edgekd: a:100:b.onnx: ")


@pytest.mark.parametrize("option", ["--junit", "--markdown", "--gitlab-metrics", "--json", "--records", "--history"])
def test_an_output_that_cannot_be_written_leaves_the_others_and_the_verdict(
    cli: Cli, here: Path, tmp_path: Path, option: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    done = cli(
        "check", "tiny.onnx", "-t", here, "--budget", "size_kb=1", option, "file/x",
        *(["--json", "all.json"] if option != "--json" else []),
    )  # fmt: skip
    assert_refused(done, "file", "cannot be written")
    assert "tiny.onnx on here: pass" in done.stdout
    assert (tmp_path / "all.json").exists() == (option != "--json")


@pytest.mark.parametrize("place", ["folder", "missing/summary.md"])
def test_a_summary_that_cannot_be_written(
    cli: Cli, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / place))
    done = cli("check", "tiny.onnx", "-t", here, "--budget", "size_kb=1")
    assert_refused(done, str(tmp_path / place), "the summary cannot be appended", "GITHUB_STEP_SUMMARY")
    assert "tiny.onnx on here: pass" in done.stdout


def test_github_gets_its_summary_and_annotations(
    cli: Cli, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "summary.md").write_text("before")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    done = cli("check", "tiny.onnx", "-t", here, "--budget", "size_kb=0.1", "--budget", "min_accuracy=0.5")
    assert done.returncode == 1
    errors = [line for line in done.stdout.splitlines() if line.startswith("::")]
    assert [line.partition(" title=")[0] for line in errors] == ["::error", "::warning"]
    assert errors[0].startswith("::error title=tiny.onnx on here%3A file size::file size ")
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("before\n## ") and "edgekd check: fail" in summary
    done = cli("check", "tiny.onnx", "-t", here, "--budget", "size_kb=1")
    assert "::" not in done.stdout
    assert done.stdout.endswith("\n") and not done.stdout.endswith("\n\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--junit", "tiny.onnx"], "--junit tiny.onnx: is read by this check already"),
        (["--json", "old.onnx", "--baseline", "old.onnx"], "--json old.onnx: is read by this check already"),
        (["--junit", "out", "--markdown", "./out"], "--markdown out: is written (--junit) by this check already"),
    ],
)
def test_no_output_replaces_an_input_or_another_output(
    tmp_path: Path, cli: Cli, options: list[str], words: str
) -> None:
    before = (tmp_path / "tiny.onnx").read_bytes()
    done = cli("check", "tiny.onnx", "-t", "cpu-x86", "--budget", "size_kb=100", *options)
    assert done.returncode == 2
    assert words in done.stderr
    assert (tmp_path / "tiny.onnx").read_bytes() == before


def test_a_reader_that_has_gone_changes_no_verdict(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m edgekd check tiny.onnx tiny.onnx tiny.onnx -t cpu-x86 --budget size_kb=100"
    shell = f"{command} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (done.stdout.strip(), done.stderr) == ("0", "")


def test_a_terminal_without_unicode_is_no_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgekd", "check", "tiny.onnx", "-t", "cpu-x86", "--budget", "size_kb=100"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "? file size" in done.stdout
