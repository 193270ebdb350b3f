"""The whole road on embedded data: teacher to verdict, then again, then bench and check."""

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from edgekd.bench.records import Plan, Record
from edgekd.devices.device import Site
from edgekd.devices.local import Local
from edgekd.errors import BudgetError
from edgekd.figures import Figure, ModelFigures
from edgekd.machine import Machine
from edgekd.pipeline import notes, on_emulated_core
from edgekd.report.run.gather import gather
from edgekd.result import read_bench
from edgekd.target import load_target

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for one finished run, shared by the tests of this file."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def run(finished: Path, cli: Cli, tiny_card: Path) -> Path:
    """The finished run, made by the first test that asks; moved beside its card."""
    if not finished.exists():
        done = cli("distill", tiny_card, "-t", "cpu-x86", "--out", finished)
        assert done.returncode == 0, done.stderr
        assert "tiny on cpu-x86: pass" in done.stdout.splitlines()[-1]
    return finished


def test_result_holds_what_it_promises(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert {"schema_version", "card", "target", "verdict", "reasons", "test_reads", "models"} <= result.keys()
    assert (result["verdict"], result["reasons"], result["test_reads"]) == ("pass", [], 1)
    assert [model["name"] for model in result["models"]] == ["teacher", "student fp32", "student int8"]
    for model in result["models"]:
        file = run / "exported" / model["file"]
        assert model["size_bytes"] == file.stat().st_size
        accuracy, _, macro_f1, _ = model["scores"]
        assert accuracy["value"] > 0 and macro_f1["value"] > 0
        assert accuracy["provenance"] == macro_f1["provenance"] == "measured"
        for figure in ("agreement", "latency_p50_ms", "latency_p95_ms", "load_ms"):
            assert model[figure] > 0
            assert model["provenance"][figure] == "measured"
        assert model["provenance"]["size_bytes"] == "exact"
        assert model["fingerprint"]["providers_assigned"] == ["CPUExecutionProvider"]
        assert model["fingerprint"]["model_sha256"] == model["sha256"]
    teacher, student, _ = result["models"]
    assert student["params"] == 8 * 9 + 2 * 8 + 8 * 16 * 9 + 2 * 16 + 16 * 16 + 16 + 16 * 10 + 10
    assert student["params"] < teacher["params"]
    assert result["parity"]["relative"] < 1e-4


def test_the_shipped_file_runs_in_onnxruntime_alone(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    chosen = next(model for model in result["models"] if model["name"] == result["chosen"])
    session = onnxruntime.InferenceSession(run / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == "tensor(uint8)"
    assert session.get_inputs()[0].shape == ["batch", 8, 8, 1]
    images, labels = np.load(run / "data" / "test.npy"), np.load(run / "data" / "test.labels.npy")
    (logits,) = session.run(None, {"image": images})
    assert np.mean(logits.argmax(1) == labels) == pytest.approx(chosen["scores"][0]["value"])


def test_the_shipped_file_describes_itself(run: Path) -> None:
    model = onnx.load(run / "model.onnx")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["labels"]) == [str(digit) for digit in range(10)]
    assert json.loads(metadata["normalization"])["mean"] == [0.3055]
    assert (metadata["card"], metadata["target"]) == ("tiny", "cpu-x86")
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [20]


def test_the_report_is_for_reading(run: Path) -> None:
    text = (run / "report.md").read_text()
    assert text.startswith("# tiny on cpu-x86: pass")
    assert "- file size " in text
    assert "| top-1 accuracy |" in text
    with Image.open(run / "figures.png") as picture:
        assert picture.size[0] > 500
        assert len(picture.convert("L").getcolors(256) or []) > 50  # something is drawn


def test_candidates_were_measured_before_training(run: Path) -> None:
    candidates = json.loads((run / "candidates.json").read_text())["candidates"]
    assert [c["shape"]["channels"] for c in candidates] == [[8, 8], [8, 16]]
    for candidate in candidates:
        assert set(candidate["precisions"]) == {"int8", "fp32"}
        assert candidate["precisions"]["int8"]["latency_p50_ms"]["provenance"] == "measured"
    assert json.loads((run / "result.json").read_text())["shape"]["channels"] == [8, 16]


def test_the_same_command_again_says_it_is_done(run: Path, cli: Cli, tiny_card: Path) -> None:
    before = (run / "result.json").read_bytes()
    done = cli("distill", tiny_card, "-t", "cpu-x86", "--out", run)
    assert done.returncode == 0
    assert "already done, verdict pass" in done.stdout
    assert (run / "result.json").read_bytes() == before
    done = cli("distill", tiny_card, "-t", "cpu-x86", "--out", run, "--teacher", "gone.safetensors")
    assert (done.returncode, done.stderr) == (2, "edgekd: --teacher gone.safetensors: no such weights file\n")


def test_a_changed_card_is_said(run: Path, cli: Cli, tiny_card: Path) -> None:
    tiny_card.write_text(tiny_card.read_text().replace("views = 2", "views = 3"))
    done = cli("distill", tiny_card, "-t", "cpu-x86", "--out", run)
    assert done.returncode == 2
    assert "card.recipe.views was 2" in done.stderr
    assert "--fresh" in done.stderr


def test_a_changed_further_teacher_is_said(
    cli: Cli, tiny_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enough(*given: Any) -> None:
        given[-1].run.student_weights.parent.mkdir(exist_ok=True)
        given[-1].run.student_weights.touch()  # as if it were trained
        raise BudgetError("enough")

    monkeypatch.setattr("edgekd.planning.measure_candidates", enough)
    monkeypatch.setattr("edgekd.planning.more_teachers", lambda card: [])
    tiny_card.write_text(tiny_card.read_text() + '\n[[more_teachers]]\nfamily = "convnet"\nweights = "further.pt"\n')
    (tmp_path / "further.pt").write_bytes(b"one")
    for _ in range(2):
        assert cli("distill", tiny_card, "-t", "cpu-x86", "--out", "run").stderr.endswith("enough\n")
    (tmp_path / "further.pt").write_bytes(b"another")
    done = cli("distill", tiny_card, "-t", "cpu-x86", "--out", "run")
    was, now = (hashlib.sha256(content).hexdigest() for content in (b"one", b"another"))
    assert done.returncode == 2
    assert (
        f"run: files.more_teachers[0]_sha256 was '{was[:58]}… when this run began and is '{now[:58]}… now"
        in done.stderr
    )


def test_bench_of_a_run_and_of_a_file(run: Path, cli: Cli, tmp_path: Path) -> None:
    done = cli("bench", run, run / "model.onnx", "gone.onnx", "-t", "cpu-x86", "--quick", "--json", "bench.json")
    assert done.returncode == 2
    assert "gone.onnx: no such model file" in done.stderr
    models = json.loads((tmp_path / "bench.json").read_text())["models"]
    assert [model["name"] for model in models] == ["teacher", "student fp32", "student int8", "model.onnx"]
    assert (
        models[0]["scores"][0]["value"]
        == json.loads((run / "result.json").read_text())["models"][0]["scores"][0]["value"]
    )
    assert "value" not in models[3]["scores"][0]
    assert models[3]["latency_p50_ms"] > 0
    assert "seeded random inputs" in done.stdout


def test_bench_of_a_run_is_kept_in_it(run: Path, cli: Cli) -> None:
    before = (run / "result.json").read_bytes()
    done = cli("bench", run, "-t", "cpu-x86", "--quick")
    assert (done.returncode, done.stderr) == (0, "")
    content, models = read_bench(run / "bench" / "cpu-x86" / "bench.json")
    labels = np.load(run / "data" / "test.labels.npy")
    assert (content["split"], content["examples"], content["target"]) == ("test", len(labels), "cpu-x86")
    assert content["command"].endswith("-t cpu-x86 --quick")
    assert f"accuracy on the run's test data, {len(labels)} inputs" in done.stdout
    teacher, student, int8 = models
    # The file again, in ONNX Runtime as it is here.
    session = onnxruntime.InferenceSession(run / "exported" / student.file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": np.load(run / "data" / "test.npy")})
    assert student.score.value == pytest.approx(np.mean(logits.argmax(1) == labels))
    assert student.scores["top5"].value == pytest.approx(
        np.mean([label in row.argsort()[-5:] for row, label in zip(logits, labels, strict=True)])
    )
    assert student.details["recall"] == pytest.approx([np.mean(logits.argmax(1)[labels == k] == k) for k in range(10)])
    assert teacher.torch_agreement.value is None
    torch = np.load(run / "data" / "test.student.npy")  # what the student in torch said of them was kept
    assert student.max_logit_diff.value == pytest.approx(np.abs(torch - logits).max(), abs=1e-4)
    assert student.torch_agreement.value == 1
    assert int8.max_logit_diff.value is not None and student.max_logit_diff.value is not None
    assert int8.max_logit_diff.value > student.max_logit_diff.value
    assert int8.placement is not None
    assert int8.placement.fused is not None and int8.placement.fused >= 3
    records = sorted(path.name for path in (run / "bench" / "cpu-x86").iterdir())
    assert "student-int8@cpu-x86.latency.json" in records
    assert not list((run / "bench").glob(".*"))
    assert (run / "result.json").read_bytes() == before


def test_bench_on_validation_data_is_shown_and_not_kept(run: Path, cli: Cli, tmp_path: Path) -> None:
    kept = {path: path.read_bytes() for path in (run / "bench").rglob("*") if path.is_file()}
    done = cli("bench", run, "-t", "cpu-x86", "--quick", "--split", "val", "--json", "val.json")
    assert (done.returncode, done.stderr) == (0, "")
    labels = np.load(run / "data" / "validation.labels.npy")
    assert f"accuracy on the run's validation data, {len(labels)} inputs" in done.stdout
    models = json.loads((tmp_path / "val.json").read_text())["models"]
    session = onnxruntime.InferenceSession(run / "exported" / models[1]["file"], providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": np.load(run / "data" / "validation.npy")})
    assert models[1]["scores"][0]["value"] == pytest.approx(np.mean(logits.argmax(1) == labels))
    # The report compares figures of the same data.
    assert {path: path.read_bytes() for path in (run / "bench").rglob("*") if path.is_file()} == kept
    done = cli("bench", run / "model.onnx", "-t", "cpu-x86", "--quick", "--split", "val")
    assert done.returncode == 2
    assert done.stderr == "edgekd: --split val: is for run folders, and without --data; leave one of them out\n"


def test_bench_of_a_run_with_other_data(run: Path, cli: Cli, tmp_path: Path) -> None:
    images, labels = np.load(run / "data" / "test.npy"), np.load(run / "data" / "test.labels.npy")
    np.savez(tmp_path / "dark.npz", inputs=images[:40] // 4, labels=labels[:40])
    kept = (run / "bench" / "cpu-x86" / "bench.json").read_bytes() if (run / "bench").exists() else None
    done = cli("bench", run, "-t", "cpu-x86", "--quick", "--data", "dark.npz", "--json", "dark.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "accuracy on dark.npz, 40 inputs" in done.stdout
    models = json.loads((tmp_path / "dark.json").read_text())["models"]
    session = onnxruntime.InferenceSession(run / "exported" / "teacher-fp32.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": images[:40] // 4})
    assert models[0]["scores"][0]["value"] == pytest.approx(np.mean(logits.argmax(1) == labels[:40]))
    now = (run / "bench" / "cpu-x86" / "bench.json").read_bytes() if (run / "bench").exists() else None
    assert now == kept  # what `edgekd report` shows is about the run's own data

    for given, said in ((tmp_path, "are embedded; give an .npz file instead"), ("gone", "no such folder or .npz file")):
        done = cli("bench", run, "-t", "cpu-x86", "--quick", "--data", given)
        assert done.returncode == 2
        assert said in done.stderr


def test_bench_of_a_run_that_lost_its_data(run: Path, cli: Cli, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "data" / "validation.npy").unlink()
    done = cli("bench", copy, "-t", "cpu-x86", "--quick", "--split", "val")
    assert done.returncode == 2
    assert "validation.npy: is missing; run its `edgekd distill` with --fresh" in done.stderr


def test_check_of_a_run_that_lost_what_it_was_made_from(run: Path, cli: Cli, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "run.json").unlink()
    done = cli("check", copy, "-t", "cpu-x86")
    assert done.returncode == 2
    assert done.stderr == f"edgekd: {copy}/run.json: is missing; run its `edgekd distill` with --fresh\n"


def test_check_passes_fails_and_knows_when_it_cannot_tell(run: Path, cli: Cli) -> None:
    done = cli("check", run, "-t", "cpu-x86")
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    done = cli("check", run, "-t", "cpu-x86", "--budget", "size_kb=1")  # no time: on a busy machine that is no failure
    assert done.returncode == 1
    assert "≤ 1.0 kB: fail" in done.stdout
    done = cli("check", run / "model.onnx", "-t", "cpu-x86", "--budget", "min_accuracy=0.9")
    assert done.returncode == 3
    assert "inconclusive" in done.stdout
    done = cli("check", run / "model.onnx", "-t", "cpu-x86")
    assert done.returncode == 2
    assert "no budget to judge it by" in done.stderr


def test_check_on_a_target_that_is_not_here_does_not_judge_time(run: Path, cli: Cli) -> None:
    done = cli("check", run, "-t", "cpu-arm", "--budget", "latency_p50_ms=1000")
    assert done.returncode == 3
    assert "latency p50 unknown" in done.stdout
    assert "accuracy" in done.stdout


def test_check_sees_a_tampered_file(run: Path, cli: Cli, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.copyfile(copy / "exported" / "teacher-fp32.onnx", copy / "model.onnx")
    done = cli("check", copy, "-t", "cpu-x86")
    assert done.returncode == 2
    assert "SHA-256 differs" in done.stderr


def test_a_damaged_run_never_passes(run: Path, cli: Cli, tiny_card: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    flipped = bytearray((run / "exported" / "student-int8.onnx").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (copy / "exported" / "student-int8.onnx").write_bytes(flipped)
    (copy / "model.onnx").write_bytes(b"")
    (copy / "data" / "test.npy").write_bytes(b"")
    for command in (["check", copy, "-t", "cpu-x86"], ["bench", copy, "-t", "cpu-x86", "--quick"], ["report", copy]):
        done = cli(*command)
        assert (done.returncode, done.stdout) == (2, ""), command
        assert done.stderr.count("\n") == 1 and "run its `edgekd distill` again" in done.stderr
    done = cli("distill", tiny_card, "-t", "cpu-x86", "--out", copy)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("; it is made again\n") == 3
    for name in ("exported/student-int8.onnx", "data/test.npy"):
        assert (copy / name).read_bytes() == (run / name).read_bytes()
    done = cli("distill", tiny_card, "-t", "cpu-x86", "--out", copy)
    assert (done.returncode, done.stderr) == (0, "") and "already done" in done.stdout

    done = cli("distill", tiny_card, "-t", "cpu-x86", "--out", copy, "--data", "gone")
    assert done.returncode == 2 and "gone: no such data folder; give the folder with --data DIR" in done.stderr
    (copy / "run.json").write_text("[]")
    done = cli("distill", tiny_card, "-t", "cpu-x86", "--out", copy)
    assert done.returncode == 2
    assert "run.json: holds no JSON object with anything in it, and it says what the run was made of" in done.stderr


def test_a_latency_asked_of_a_device_that_is_not_here_is_inconclusive(
    cli: Cli, tiny_card: Path, tmp_path: Path, place: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = tiny_card.read_text().replace("[budget]", "[budget]\nlatency_p50_ms = 1.0")
    tiny_card.write_text(card)
    done = cli("distill", tiny_card, "-t", "cpu-arm")
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines()[-1] == "tiny on cpu-arm: inconclusive"
    assert cli("distill", tiny_card, "-t", "cpu-arm").returncode == 3  # already done, and no pass either
    for counted, code in (("pass", 0), ("fail", 1)):
        done = cli("distill", tiny_card, "-t", "cpu-arm", "--on-inconclusive", counted)
        assert (done.returncode, "verdict inconclusive" in done.stdout) == (code, True)
    assert "should be pass or fail" in cli("distill", tiny_card, "-t", "cpu-arm", "--on-inconclusive", "no").stderr
    assert "# tiny on cpu-arm: inconclusive" in (tmp_path / "runs" / "tiny@cpu-arm" / "report.md").read_text()
    assert "tiny on cpu-arm: inconclusive" in cli("report", "runs/tiny@cpu-arm").stdout
    cli("report", "runs/tiny@cpu-arm", "--html", "page.html")
    assert '<div class="verdict inconclusive">INCONCLUSIVE</div>' in (tmp_path / "page.html").read_text()
    result = json.loads((tmp_path / "runs" / "tiny@cpu-arm" / "result.json").read_text())
    student = result["models"][2]
    assert result["chosen"] == "student int8"  # the target's first precision, by declaration
    assert student["latency_p50_ms"] is None
    assert student["provenance"]["latency_p50_ms"] == "unknown"
    assert student["scores"][0]["provenance"] == "proxy"
    _judged_again_with_an_emulated_board(cli, tiny_card, tmp_path / "runs" / "tiny@cpu-arm", place, monkeypatch)


def _judged_again_with_an_emulated_board(
    cli: Cli, card: Path, run: Path, place: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run as it goes on where an emulated board is installed, which a fake one stands for: its workers answer on
    this machine, and it counts 30 instructions for a call of the teacher and 10 for another model's."""

    def works(plan: Plan, model: Path, *rest: Any) -> Record:
        if plan.mode != "count":  # an Arm CPU adds int8 products exactly, as this one may not without VNNI
            return Local().run(dataclasses.replace(plan, precise_int8=True), model, *rest)
        each = 300 if model.name.startswith("teacher") else 100
        mark = {"providers": ["CPUExecutionProvider"], "nodes_by_provider": {}}
        about: dict[str, Any] = {"mode": "count", "load_s": 0.1, "memory": {}, "fingerprint": mark}
        return Record(**about, calls=20, block_calls=10, elapsed_s=1.0, counts=(0, each, 2 * each))

    facts = Machine("aarch64", "", frozenset({"asimd"}), "0xd08", "Linux", "qemu-user (cortex-a72)")
    board = place(load_target("cpu-arm"), facts, answer=works).device
    monkeypatch.setattr("edgekd.devices.local._companion", lambda target: board)
    monkeypatch.delenv("EDGEKD_DEVICE")
    (run / "result.json").unlink()
    done = cli("distill", card, "-t", "cpu-arm")
    assert done.returncode == 3, done.stderr
    assert re.search(r"instructions per call +30 ±0\.0 % +10 ±0\.0 % \(÷3\.0\) +10 ±0\.0 % \(÷3\.0\)", done.stdout)
    assert "top-1 accuracy" not in done.stdout.partition("how: ")[2].partition("proxy: ")[2].splitlines()[0]
    assert "note: answers are emulated; on this machine (proxy): teacher" in done.stdout
    assert done.stdout.count("the same answer on 100.00 %") == 3
    models = json.loads((run / "result.json").read_text())["models"]
    assert [model["scores"][0]["provenance"] for model in models] == ["emulated"] * 3
    assert [model["instructions_m"] for model in models] == pytest.approx([30e-6, 10e-6, 10e-6])
    assert ", needs 3.0 × fewer instructions" in gather(run).sentence


@pytest.mark.parametrize(
    ("asked", "told"),
    [({}, 1), ({"accuracy_on": "host"}, 0), ({"device": "ssh://pi4"}, 0)],
)
def test_answers_are_emulated_only_in_place_of_this_machines(
    place: Callable[..., Site], tmp_path: Path, asked: dict[str, Any], told: int
) -> None:
    target = dataclasses.replace(load_target("cpu-arm"), **asked)
    facts = Machine("aarch64", "", frozenset({"asimd"}), "0xd08", "Linux", "qemu-user (cortex-a72)")
    elsewhere = Machine("x86_64", "a PC", frozenset({"avx2"}), "")
    site = dataclasses.replace(place(target, elsewhere), companion=place(target, facts).device)
    np.save(tmp_path / "test.labels.npy", np.zeros(5, np.int64))
    models = [ModelFigures("teacher", "", "", 1, "fp32", instructions_m=Figure())]
    plan: Any = SimpleNamespace(site=site)
    student: Any = None
    found, notes = on_emulated_core(plan, student, [], models, tmp_path / "test.npy")
    assert found == models
    assert len(notes) == told


def test_the_weights_alone_are_told_where_the_target_writes_int8_operators(place: Callable[..., Site]) -> None:
    """Only the whole of the chosen scheme is valid: such weights have no int8 operators."""
    known = load_target("cpu-x86")
    target = dataclasses.replace(known, quantization=dataclasses.replace(known.quantization, form="qoperator"))
    plan: Any = SimpleNamespace(site=place(target))
    scheme = {"activation": "float", "weight": "int8", "form": "qdq", "reduce_range": False}
    told = notes(plan, {"scheme": scheme, "reduce_range": False, "why": "W8, the weights alone", "fallback": None})
    assert told == ("int8: W8, the weights alone",)


def test_an_onnx_teacher_teaches(run: Path, cli: Cli, tiny_card: Path, tmp_path: Path) -> None:
    teacher = run / "exported" / "teacher-fp32.onnx"
    done = cli("distill", tiny_card, "-t", "cpu-x86", "--teacher", teacher, "--out", "onnx-taught")
    assert done.returncode == 0, done.stderr
    mine = json.loads((tmp_path / "onnx-taught" / "result.json").read_text())["models"][0]
    theirs = json.loads((run / "result.json").read_text())["models"][0]
    assert mine["scores"][0]["value"] == theirs["scores"][0]["value"]
    assert mine["params"] is None


@pytest.mark.slow
def test_two_targets_train_equal_networks_once(cli: Cli, tiny_card: Path, tmp_path: Path) -> None:
    done = cli("distill", tiny_card, "-t", "cpu-arm-dotprod", "-t", "cpu-arm", "--out", tmp_path / "both")
    assert done.returncode == 0, done.stderr
    first, second = (tmp_path / "both" / f"tiny@{name}" for name in ("cpu-arm-dotprod", "cpu-arm"))
    for name in ("teacher/teacher.safetensors", "student/student.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
        assert (first / name).with_name("log").is_dir() and not (second / name).with_name("log").exists()
    common = (tmp_path / "both" / "tiny.md").read_text()
    for name in ("cpu-arm-dotprod", "cpu-arm"):
        assert f"- tiny on {name}: pass (latency not asked, not known)" in common
        assert f"| {name} | student " in common
    again = cli("distill", tiny_card, "-t", "cpu-arm-dotprod", "-t", "cpu-arm", "--out", tmp_path / "both")
    assert again.returncode == 0 and again.stdout.count("already done") == 2
